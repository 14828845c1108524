"""A real `ray up` over ssh on throw-away hosts of this machine, and sweeps that are sent there from another one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cu_ray.sweep import ledger
from tests import sweeps
from tests.cluster.lab import lab_needed, made_in

ROOT = Path(__file__).parents[2]
pytestmark = lab_needed


def shipped_for(lab: Path) -> str:
    """The cluster.yaml of this repository with its EDIT places filled in; cu-ray is installed on the hosts already."""
    value = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    value["provider"] |= {"head_ip": "10.77.0.11", "worker_ips": ["10.77.0.12"]}
    value["auth"] = {"ssh_user": "root", "ssh_private_key": f"{lab}/key"}
    value["file_mounts"]["~/cu-ray-source"] = str(ROOT / "clusters")  # for the whole of it
    installed = [re.sub("python3 .*(?=')", "cp ~/cu-ray-source/Dockerfile ~/installed", each) for each in value["setup_commands"]]
    value["setup_commands"] = [each.replace("/shared/cu-ray", str(lab.parent / "store")) for each in installed]
    assert ["pip" in each for each in installed] == [False] * 3
    value["rsync_exclude"] += ["*.log", "*.yaml", "ledger"]  # what a user leaves out there is not left out of a sweep
    return yaml.safe_dump(value)


def talkative(home: Path) -> None:
    """Let the shells of a host say something as they begin and end."""
    for name in (".bash_profile", ".bash_logout"):
        with open(home / name, "a") as file:
            file.write("echo Welcome to this host\n")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.yaml").write_text(shipped_for(folder / "lab"))
    with made_in(folder, num_hosts=3) as lab:
        talkative(folder / "lab/h1/root")
        assert lab.driver("(umask 077; ray get-auth-token --generate) > token").returncode == 0
        (folder / "token").unlink()
        yield lab
        lab.driver("ray down -y cluster.yaml")


@pytest.fixture
def launched(lab):
    """The lab with its cluster up, also where the tests before are left out."""
    if lab.driver("test -e /tmp/ray/cluster-cu-ray.state").returncode != 0:
        done = lab.driver("ray up -y cluster.yaml")
        assert done.returncode == 0, done.stdout
        until(lambda: "of 2 nodes" not in lab.driver("cu-ray doctor --cluster cluster.yaml").stdout)
    return lab


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
    until(lambda: "of 2 nodes" not in lab.driver("cu-ray doctor --cluster cluster.yaml").stdout)
    stat = ("stat", "-c", "%n %a", "/root/.ray/auth_token", "/root/installed")
    facts = [lab.hosts("exec", host, *stat).stdout.splitlines()[-2:] for host in ("h1", "h2")]  # after what its shell says
    assert facts == [["/root/.ray/auth_token 600", "/root/installed 644"]] * 2
    said = lab.driver("cu-ray doctor --cluster cluster.yaml").stdout
    assert re.search(r"h1 +│ 10\.77\.0\.11 ", said)
    assert re.search(r"h2 +│ 10\.77\.0\.12 ", said)
    assert all("make room" in line for line in said.splitlines() if line.startswith("Fault: ")), said
    said = lab.cu_ray("doctor --cluster cluster.yaml --storage ~/of-each-its-own", code=1)
    assert "h2 (10.77.0.12) does not see what another node wrote to /root/of-each-its-own: mount the same" in said
    sweeps.small(lab.folder, name="apart.yaml", storage="~/of-each-its-own")
    said = lab.cu_ray("sweep apart.yaml --output apart", code=2)
    assert "the nodes of this Ray cannot do one sweep" in said
    assert "h2 (10.77.0.12) does not see what another node wrote to /root/of-each-its-own" in said
    assert "Traceback" not in said
    path = sweeps.small(lab.folder)
    path.write_text(path.read_text().replace("runtime: {storage: store}", ""))  # so that it is where cluster.yaml says
    said = lab.cu_ray("sweep small.yaml")
    assert list((lab.folder / "store" / "originals").glob("*.safetensors"))
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
    named(lab, "own", more="mine.methods:Mine: {steps: 4}")
    said = lab.cu_ray("sweep own.yaml --only method=mine.methods:Mine")
    assert "Sending 4 files" in said
    trials = pd.read_parquet(lab.folder / "results/own/tables/trials.parquet")
    mine = trials[trials["method"] == "mine.methods:Mine"]
    assert len(mine) == 4
    assert set(mine["status"]) == {"ok"}

    (package / "rates.py").rename(package / "speeds.py")
    methods = (package / "methods.py").read_text()
    (package / "methods.py").write_text(methods.replace("mine.rates", "mine.speeds"))
    assert "Nothing to do" in lab.cu_ray("sweep own.yaml --only method=mine.methods:Mine")
    there = lab.driver("ray exec cluster.yaml 'cd cu-ray/own/files && echo mine/*.py results/*'").stdout
    assert "mine/__init__.py mine/methods.py mine/speeds.py results/own" in there


def named(lab, name, **settings):
    """A sweep file of that name in the driver's folder."""
    path = sweeps.small(lab.folder, name=f"{name}.yaml", storage=lab.folder / "store", **settings)
    path.write_text(path.read_text().replace("name: small", f"name: {name}"))


def counts_of(lab, name):
    return json.loads((lab.folder / f"results/{name}/status.json").read_text())


def hosts_of(lab, name):
    """The host of each trial at home, by its key."""
    known = ledger.read(lab.folder / f"results/{name}/ledger")
    return {key: record.facts["host"] for key, record in known.trials.items()}


def test_what_was_done_here_is_taken_along_and_comes_back_and_nothing_is_run_twice(lab):
    named(lab, "both")
    lab.cu_ray("sweep both.yaml --local --only method=no_unlearning")
    here = hosts_of(lab, "both")
    assert set(here.values()) == {"driver"}
    lab.cu_ray("sweep both.yaml")
    after = hosts_of(lab, "both")
    assert {key: after[key] for key in here} == here
    assert "driver" not in {host for key, host in after.items() if key not in here}
    assert counts_of(lab, "both")["trials_done"] == counts_of(lab, "both")["trials"]
    said = lab.cu_ray("sweep both.yaml --local")
    assert "Nothing to do" in said


def test_a_terminal_shows_it_live_and_ctrl_c_leaves_the_sweep_and_its_follower_comes_back(lab):
    named(lab, "left", seeds="[7, 8]", trials=12)
    terminal, end = pty.openpty()
    command = ["exec", "driver", "bash", "-c", f"cd {lab.folder} && TERM=xterm cu-ray sweep left.yaml"]
    follower = lab.hosts_process(*command, stdin=end, stdout=end, stderr=end)
    os.close(end)
    said = read_until(terminal, "Joining Ray at auto")
    frames = [read_until(terminal, "0 known before, 0 failed") for _ in range(4)]
    assert all("\x1b[2K" in frame for frame in frames[1:])  # each drawn over the one before
    os.write(terminal, b"\x03")
    said += read_until(terminal, "cu-ray stop results/left")
    assert follower.wait(timeout=30) == 130, said
    assert "No longer followed; the sweep goes on on cu-ray" in said
    assert re.search(r"On cu-ray: (It starts|left: running; \d+ of \d+ trials done)", lab.cu_ray("status results/left"))
    assert "Results are in results/left." in lab.cu_ray("attach results/left")
    assert counts_of(lab, "left")["trials_done"] == counts_of(lab, "left")["trials"]
    assert "left: not running" in lab.cu_ray("status results/left")


def read_until(terminal, text, seconds=90.0):
    """What a terminal shows until a text is there."""
    shown, deadline = "", time.monotonic() + seconds
    while text not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [10, 60])
def test_a_node_that_loses_its_network_for_a_while_costs_nothing_but_what_it_was_at(launched, seconds):
    """Whether Ray has given the node up by then or not."""
    lab = launched
    name = f"cut{seconds}"
    named(lab, name, seeds=f"[{seconds}, {seconds + 1}]", trials=12)
    lab.cu_ray(f"sweep {name}.yaml --detach")

    def both_work():
        lab.cu_ray(f"fetch results/{name}")
        return set(hosts_of(lab, name).values()) == {"h1", "h2"}

    until(both_work)
    lab.hosts("cut", "h2")
    time.sleep(seconds)
    lab.hosts("heal", "h2")
    assert f"Results are in results/{name}." in lab.cu_ray(f"attach results/{name}")
    counts = counts_of(lab, name)
    assert counts["trials_done"] == counts["trials"]
    assert counts["trials_failed"] == 0


def test_a_detached_sweep_survives_a_node_uses_one_that_joins_and_comes_home(lab):
    named(lab, "long", seeds="[2, 3]", trials=12)
    file = lab.folder / "long.yaml"  # trials of a second or two: a node that joins needs some to be used
    file.write_text(file.read_text().replace("scrub: {steps: 6", "scrub: {steps: 200"))
    said = lab.cu_ray("sweep long.yaml --detach")
    assert "cu-ray attach results/long follows it" in said
    assert "still runs on cu-ray" in lab.cu_ray("fetch results/long")
    assert "runs on cu-ray already" in lab.cu_ray("sweep long.yaml --detach")
    refused = lab.cu_ray("sweep long.yaml --detach --retry-failed", code=2)
    assert "long runs on cu-ray with other files or options than these. cu-ray stop results/long ends it" in refused

    def done():
        lab.cu_ray("fetch results/long")
        return len(hosts_of(lab, "long"))

    before = until(done)
    shutil.copytree(lab.folder / "lab/driver/root/.ray", lab.folder / "lab/h3/root/.ray")
    join = "RAY_AUTH_MODE=token ray start --address=10.77.0.11:6379 --num-cpus=1 --disable-usage-stats > /dev/null 2>&1"
    assert lab.hosts("exec", "h3", "bash", "-c", join, stdout=subprocess.DEVNULL).returncode == 0
    lab.hosts("kill", "h2")
    lab.driver("rm /tmp/ray/cluster-cu-ray.state")  # as after a restart of the driver's machine
    said = lab.cu_ray("attach results/long")
    assert "Results are in results/long." in said
    counts = counts_of(lab, "long")
    assert counts["trials_done"] == counts["trials"] > before
    assert counts["trials_failed"] == 0
    assert "h3" in hosts_of(lab, "long").values()


def test_stop_ends_it_with_tables_and_the_same_command_goes_on(lab):
    named(lab, "stopped", seeds="[5, 6]", trials=12)
    lab.cu_ray("sweep stopped.yaml --detach")
    until(lambda: "Joining Ray" in lab.driver("ray exec cluster.yaml 'cat cu-ray/stopped/run.log'").stdout)
    assert "Stopping on cu-ray" in lab.cu_ray("stop results/stopped")
    said = lab.cu_ray("attach results/stopped", code=130)
    assert "The same command goes on from there." in said
    assert (lab.folder / "results/stopped/tables/trials.parquet").exists()
    assert "it does not run on cu-ray" in lab.cu_ray("stop results/stopped", code=2)
    lab.cu_ray("sweep stopped.yaml")
    counts = counts_of(lab, "stopped")
    assert counts["trials_done"] == counts["trials"]


def test_after_ray_down_the_sweep_runs_here(lab):
    lab.driver("ray down -y cluster.yaml")
    said = lab.driver("cu-ray sweep small.yaml").stdout
    assert "Nothing to do" in said
    assert "the sweep goes there" not in said
