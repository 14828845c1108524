"""The scripts of clusters/ for Slurm, run by a real controller and a real node on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import sweeps

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "clusters").glob("*.sbatch"))
TOOLS = ("/usr/sbin/munged", "slurmctld", "slurmd", "sbatch", "scontrol")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]

CONFIGURATION = """
ClusterName=throw-away
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """What to give sbatch as its environment."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for part in (folder, *folder.parents):
        part.chmod(part.stat().st_mode | 0o055)  # munge asks for folders that all may enter
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    facts = {"host": socket.gethostname(), "folder": folder, "ports": free_ports(2), "cpus": max(2, os.cpu_count() or 2)}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**facts))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    environment["CU_RAY_VENV"] = str(Path(sys.executable).parent.parent)
    own = [f"--{name}={folder}/munge.{name}" for name in ("socket",)]
    own += [f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"]
    munged = ["/usr/sbin/munged", "--foreground", "--force", *own, f"--log-file={folder}/munged.log"]
    daemons = []
    with open(folder / "output", "wb") as output:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            time.sleep(1)
    try:
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=60)


def submitted(script: str, folder: Path, environment: dict[str, str], *options: str) -> str:
    """What the job says, or the tasks of its array, after its end."""
    command = ["sbatch", "--wait", *options, "--cpus-per-task=1", "--mem=0", f"clusters/{script}", "small.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    said = "\n".join(path.read_text() for path in sorted(folder.glob("slurm-*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + said
    return said


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons need root")
@pytest.mark.skipif(bool(missing), reason=f"Slurm is needed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
def test_a_job_array_and_a_job_of_several_workers_give_the_tables_of_one_machine(tmp_path, slurm):
    folders = {name: tmp_path / name for name in ("alone", "array", "job")}
    for folder in folders.values():
        folder.mkdir()
        sweeps.small(folder, seeds="[0]", storage=folder / "store")
        shutil.copytree(ROOT / "clusters", folder / "clusters")
    assert sweeps.command(folders["alone"], "sweep", "small.yaml").returncode == 0

    said = submitted("slurm-array.sbatch", folders["array"], slurm, "--array=1-2", "--gpus-per-task=0")
    assert said.count("Best of each study") == 2
    shards = sorted(str(path.relative_to(folders["array"])) for path in folders["array"].glob("results/shard-*/small"))
    assert len(shards) == 2
    assert sweeps.command(folders["array"], "merge", "results/small", *shards).returncode == 0
    assert "Nothing to do" in sweeps.command(folders["array"], "sweep", "small.yaml").stdout
    sweeps.assert_same_tables(folders["alone"] / "results/small", folders["array"] / "results/small")

    said = submitted("slurm.sbatch", folders["job"], slurm, "--nodes=1", "--gpus-per-node=0")
    assert "Joining Ray at " in said
    sweeps.assert_same_tables(folders["alone"] / "results/small", folders["job"] / "results/small")
    logs = "".join(path.read_text() for path in folders["job"].glob("logs-*/head.log"))
    assert "Token authentication is disabled" not in logs


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is needed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_installs_what_is_pinned_and_has_a_secret(script):
    text = script.read_text()
    assert "pip install -q -c constraints.txt ." in text
    assert re.search(r"^export (.* )?RAY_AUTH_MODE=token", text, re.MULTILINE)
    assert "runtime: {storage: ..., device: cuda}" in text
