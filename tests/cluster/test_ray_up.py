"""A real `ray up` over ssh on throw-away hosts of this machine, and sweeps that are sent there from another one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests import sweeps

HOSTS = Path(__file__).parent / "hosts.sh"
ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "nsenter", "unshare", "rsync", "ssh-keygen", "/usr/sbin/sshd")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="throw-away hosts need root"),
    pytest.mark.skipif(bool(missing), reason=f"throw-away hosts need {', '.join(missing)}"),
]


@dataclass(frozen=True)
class Lab:
    """Hosts h1 (the head) and h2, and the machine `driver` in whose folder commands are given."""

    folder: Path

    def hosts(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run(
            ["bash", str(HOSTS), *arguments],
            env={**own, "LAB": str(self.folder / "lab")},
            text=True,
            timeout=300,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},
        )

    def driver(self, command: str) -> subprocess.CompletedProcess[str]:
        return self.hosts("exec", "driver", "bash", "-c", f"cd {self.folder} && {command}")

    def cu_ray(self, command: str, code: int = 0) -> str:
        """What `cu-ray` prints on the driver."""
        done = self.driver(f"cu-ray {command}")
        assert done.returncode == code, done.stdout
        return done.stdout


def shipped_for(lab: Path) -> str:
    """The cluster.yaml of this repository with its EDIT places filled in; cu-ray is installed on the hosts already."""
    value = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    value["provider"] |= {"head_ip": "10.77.0.11", "worker_ips": ["10.77.0.12"]}
    value["auth"] = {"ssh_user": "root", "ssh_private_key": f"{lab}/key"}
    value["min_workers"] = value["max_workers"] = 1
    del value["file_mounts"]["/tmp/cu-ray-source"]
    value["setup_commands"] = [each for each in value["setup_commands"] if "pip install" not in each]
    assert len(value["setup_commands"]) == 1
    return yaml.safe_dump(value)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    lab = Lab(folder)
    (folder / "cluster.yaml").write_text(shipped_for(folder / "lab"))
    up = lab.hosts("up", "2", str(Path(sys.executable).parent), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert up.returncode == 0, "the hosts do not come up"
        assert lab.driver("ray get-auth-token --generate > token").returncode == 0
        (folder / "token").unlink()
        yield lab
        lab.driver("ray down -y cluster.yaml")
    finally:
        lab.hosts("down", stdout=subprocess.DEVNULL)


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return value


def test_before_ray_up_the_cluster_is_not_found_and_asked_for_it_is_one_message(lab):
    sweeps.small(lab.folder, storage=lab.folder / "store")
    said = lab.cu_ray("sweep small.yaml --cluster cluster.yaml", code=1)
    assert "cluster.yaml) is not up as far as this machine knows. `ray up " in said
    assert len(said.strip().splitlines()) == 1
    said = lab.cu_ray("sweep small.yaml --cluster there-is-none.yaml", code=2)
    assert "there-is-none.yaml: --cluster needs the file that `ray up` was given" in said


def test_ray_up_then_the_same_command_uses_all_nodes_and_gives_the_tables_of_one_machine(lab):
    done = lab.driver("ray up -y cluster.yaml")
    assert done.returncode == 0, done.stdout
    until(lambda: "of 2 nodes" not in lab.driver(f"cu-ray doctor --cluster cluster.yaml --storage {lab.folder}/store").stdout)
    said = lab.driver(f"cu-ray doctor --cluster cluster.yaml --storage {lab.folder}/store").stdout
    assert re.search(r"h1 +│ 10\.77\.0\.11 ", said)
    assert re.search(r"h2 +│ 10\.77\.0\.12 ", said)
    assert all("make room" in line for line in said.splitlines() if line.startswith("Fault: ")), said
    said = lab.cu_ray("doctor --cluster cluster.yaml --storage ~/of-each-its-own", code=1)
    assert "h2 (10.77.0.12) does not see what another node wrote to /root/of-each-its-own: mount the same" in said
    said = lab.cu_ray("sweep small.yaml")
    assert "`ray up` has started cu-ray (cluster.yaml) from this machine: the sweep goes there." in said
    assert "Best of each study" in said
    assert "Results are in results/small." in said
    trials = pd.read_parquet(lab.folder / "results/small/tables/trials.parquet")
    assert set(trials["host"]) == {"h1", "h2"}

    alone = lab.folder / "alone"
    alone.mkdir()
    done = sweeps.command(alone, "sweep", str(sweeps.small(alone)))
    assert done.returncode == 0, done.stderr
    sweeps.assert_same_tables(alone / "results" / "small", lab.folder / "results" / "small")


def test_a_user_s_own_plugin_goes_along(lab):
    package = lab.folder / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rates.py").write_text("RATE = 0.01\n")
    (package / "methods.py").write_text(
        "from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting\n"
        "from dataclasses import dataclass\n"
        "from mine.rates import RATE\n\n"
        "@dataclass(frozen=True)\n"
        "class Mine(CatastrophicForgetting):\n"
        '    """Catastrophic forgetting at a rate of its own."""\n\n'
        "    lr: float = RATE\n"
    )
    sweeps.small(lab.folder, name="own.yaml", storage=lab.folder / "store", more="mine.methods:Mine: {steps: 4}")
    text = (lab.folder / "own.yaml").read_text().replace("name: small", "name: own")
    (lab.folder / "own.yaml").write_text(text)
    said = lab.cu_ray("sweep own.yaml --only method=mine.methods:Mine")
    assert "Sending 4 files" in said
    trials = pd.read_parquet(lab.folder / "results/own/tables/trials.parquet")
    mine = trials[trials["method"] == "mine.methods:Mine"]
    assert len(mine) == 4
    assert set(mine["status"]) == {"ok"}


def test_a_sweep_survives_its_follower_and_a_node_and_comes_home(lab):
    sweeps.small(lab.folder, name="long.yaml", storage=lab.folder / "other-store", seeds="[2, 3, 4]", trials=12)
    text = (lab.folder / "long.yaml").read_text().replace("name: small", "name: long")
    (lab.folder / "long.yaml").write_text(text)
    said = lab.cu_ray("sweep long.yaml --detach")
    assert "cu-ray attach results/long follows it" in said
    assert "runs on cu-ray already" in lab.cu_ray("sweep long.yaml --detach")

    def done():
        lab.cu_ray("fetch results/long")
        status = lab.folder / "results/long/status.json"
        return status.exists() and json.loads(status.read_text())["trials_done"]

    before = until(done)
    lab.hosts("kill", "h2")
    said = lab.cu_ray("attach results/long")
    assert "Results are in results/long." in said
    counts = json.loads((lab.folder / "results/long/status.json").read_text())
    assert counts["trials_done"] == counts["trials"] > before
    assert counts["trials_failed"] == 0


def test_stop_ends_it_with_tables_and_the_same_command_goes_on(lab):
    sweeps.small(lab.folder, name="stopped.yaml", storage=lab.folder / "store", seeds="[5, 6]", trials=12)
    text = (lab.folder / "stopped.yaml").read_text().replace("name: small", "name: stopped")
    (lab.folder / "stopped.yaml").write_text(text)
    lab.cu_ray("sweep stopped.yaml --detach")
    until(lambda: "Joining Ray" in lab.driver("ray exec cluster.yaml 'cat cu-ray/stopped/run.log'").stdout)
    assert "Stopping on cu-ray" in lab.cu_ray("stop results/stopped")
    said = lab.cu_ray("attach results/stopped", code=130)
    assert "The same command goes on from there." in said
    assert (lab.folder / "results/stopped/tables/trials.parquet").exists()
    assert "it does not run on cu-ray" in lab.cu_ray("stop results/stopped", code=2)
    lab.cu_ray("sweep stopped.yaml")
    counts = json.loads((lab.folder / "results/stopped/status.json").read_text())
    assert counts["trials_done"] == counts["trials"]


def test_after_ray_down_the_sweep_runs_here(lab):
    lab.driver("ray down -y cluster.yaml")
    said = lab.driver("cu-ray sweep small.yaml").stdout
    assert "Nothing to do" in said
    assert "the sweep goes there" not in said
