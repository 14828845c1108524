"""The scripts of clusters/ for Slurm, run by a real controller and real nodes on throw-away hosts of this machine."""

from __future__ import annotations

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

from cu_ray.sweep import ledger
from tests import sweeps
from tests.cluster.lab import Lab, lab_needed, made_in

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "clusters").glob("*.sbatch"))
TOOLS = ("/usr/sbin/munged", "slurmctld", "slurmd", "sbatch", "scontrol")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
slurm_needed = [
    *lab_needed,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"Slurm is needed: {', '.join(missing)} (Debian: slurm-wlm, munge)"),
]

CONFIGURATION = """
ClusterName=throw-away
SlurmctldHost=driver(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName=h1 NodeAddr=10.77.0.11 CPUs={cpus}
NodeName=h2 NodeAddr=10.77.0.12 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES
"""


@dataclass(frozen=True)
class Slurm:
    """A controller on the host `driver`, and nodes h1 and h2."""

    lab: Lab
    variables: str

    def on(self, host: str, command: str) -> subprocess.Popen:
        with open(self.lab.folder / "output", "ab") as output:
            return self.lab.hosts_process("exec", host, "bash", "-c", f"{self.variables} {command}", stdout=output, stderr=output)

    def submitted(self, script: str, folder: Path, *options: str) -> str:
        """What the job says, or the tasks of its array, after its end."""
        given = " ".join([*options, "--mem=0", f"clusters/{script}", "small.yaml"])
        done = self.lab.driver(f"cd {folder} && {self.variables} sbatch --wait {given}")
        said = "\n".join(path.read_text() for path in sorted([*folder.glob("slurm-*.log"), *folder.glob("logs-*/*.log")]))
        assert done.returncode == 0, done.stdout + said
        return said


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool-h1", "spool-h2"):
        (folder / name).mkdir()
    for part in (folder, *folder.parents):
        part.chmod(part.stat().st_mode | 0o055)  # munge asks for folders that all may enter
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, cpus=os.cpu_count()))
    own = [f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"]
    munged = ["/usr/sbin/munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *own]
    variables = (
        f"SLURM_CONF={folder}/slurm.conf CU_RAY_VENV={Path(sys.executable).parent.parent} TMPDIR=/tmp/ray"  # of each its own
    )
    with made_in(folder, num_hosts=2) as lab:  # with them the daemons end
        slurm = Slurm(lab, variables)
        for host, daemon in (
            ("driver", " ".join([*munged, f"--log-file={folder}/munged.log"])),
            ("driver", "slurmctld -D"),
            ("h1", "slurmd -D -N h1"),
            ("h2", "slurmd -D -N h2"),
        ):
            slurm.on(host, f"exec {daemon}")
            time.sleep(1)
        until(lambda: "idle 2" in lab.driver(f"{variables} sinfo --noheader --format '%T %D'").stdout)
        yield slurm


class TestOnTwoNodes:
    """An array, and a job of both nodes."""

    pytestmark = slurm_needed

    def test_a_job_array_and_a_job_of_several_nodes_give_the_tables_of_one_machine(self, tmp_path, slurm):
        folders = {name: tmp_path / name for name in ("alone", "array", "job")}
        for folder in folders.values():
            folder.mkdir()
            sweeps.small(folder, seeds="[0]", trials=40, storage=folder / "store")
            shutil.copytree(ROOT / "clusters", folder / "clusters")
        assert sweeps.command(folders["alone"], "sweep", "small.yaml").returncode == 0

        said = slurm.submitted("slurm-array.sbatch", folders["array"], "--array=1-2", "--gpus-per-task=0", "--cpus-per-task=1")
        assert said.count("Best of each study") == 2
        shards = sorted(str(path.relative_to(folders["array"])) for path in folders["array"].glob("results/shard-*/small"))
        assert len(shards) == 2
        assert sweeps.command(folders["array"], "merge", "results/small", *shards).returncode == 0
        assert "Nothing to do" in sweeps.command(folders["array"], "sweep", "small.yaml").stdout
        sweeps.assert_same_tables(folders["alone"] / "results/small", folders["array"] / "results/small")

        said = slurm.submitted("slurm.sbatch", folders["job"], "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2")
        assert "Joining Ray at 10.77.0.11:" in said
        sweeps.assert_same_tables(folders["alone"] / "results/small", folders["job"] / "results/small")
        trials = pd.read_parquet(folders["job"] / "results/small/tables/trials.parquet")
        assert set(trials["host"]) == {"h1", "h2"}
        assert "Token authentication is disabled" not in said
        assert "srun: error" not in said
        for host in ("h1", "h2"):  # nothing runs any more, and no folder is left
            rest = slurm.lab.hosts("exec", host, "bash", "-c", "pgrep raylet; ls -d /tmp/ray/ray-*").stdout
            assert rest.splitlines() == ["ls: cannot access '/tmp/ray/ray-*': No such file or directory"]

    def test_the_signal_before_the_time_is_up_ends_the_sweep_and_the_same_job_does_the_rest(self, tmp_path, slurm):
        sweeps.small(tmp_path, seeds="[0, 1]", trials=30, storage=tmp_path / "store")
        shutil.copytree(ROOT / "clusters", tmp_path / "clusters")
        options = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")
        given = " ".join([*options, "--mem=0", "clusters/slurm.sbatch", "small.yaml"])
        number = slurm.lab.driver(f"cd {tmp_path} && {slurm.variables} sbatch --parsable {given}").stdout.strip()
        until(lambda: ledger.read(tmp_path / "results/small/ledger").trials)
        assert slurm.lab.driver(f"{slurm.variables} scancel --batch --signal=TERM {number}").returncode == 0
        until(lambda: not slurm.lab.driver(f"{slurm.variables} squeue --noheader").stdout)
        said = (tmp_path / f"slurm-{number}.log").read_text()
        assert re.search(r"Interrupted: \d+ of \d+ trials are done\. The same command goes on from there\.", said)
        assert "srun: error" not in said
        said = slurm.submitted("slurm.sbatch", tmp_path, *options)
        assert "Best of each study" in said
        assert "Nothing to do" not in said


def until(condition, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is needed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_installs_what_is_pinned_and_has_a_secret(script):
    text = script.read_text()
    assert "pip install -q -c constraints.txt ." in text
    assert re.search(r"^export (.* )?RAY_AUTH_MODE=token", text, re.MULTILINE)
    assert "\nexport CU_RAY_STORAGE=${CU_RAY_STORAGE:-$PWD/storage} " in text, "in a folder that all nodes see"
