"""Throw-away hosts on this machine, each with an address, processes and a home of its own (hosts.sh)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOSTS = Path(__file__).parent / "hosts.sh"
TOOLS = ("ip", "nsenter", "unshare", "rsync", "ssh-keygen", "/usr/sbin/sshd")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
lab_needed = [
    pytest.mark.skipif(os.geteuid() != 0, reason="throw-away hosts need root"),
    pytest.mark.skipif(bool(missing), reason=f"throw-away hosts need {', '.join(missing)}"),
]


@dataclass(frozen=True)
class Lab:
    """Hosts h1, h2, ... and the machine `driver`, in whose folder commands are given."""

    folder: Path

    def hosts(self, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        process = self.hosts_process(*arguments, stdout=stdout, stderr=subprocess.STDOUT, text=True)
        said, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, said)

    def hosts_process(self, *arguments: str, **options) -> subprocess.Popen:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        variables = {**own, "LAB": str(self.folder / "lab")}
        return subprocess.Popen(["bash", str(HOSTS), *arguments], env=variables, start_new_session=True, **options)

    def driver(self, command: str) -> subprocess.CompletedProcess[str]:
        return self.hosts("exec", "driver", "bash", "-c", f"cd {self.folder} && {command}")

    def cu_ray(self, command: str, code: int = 0) -> str:
        """What `cu-ray` prints on the driver."""
        done = self.driver(f"cu-ray {command}")
        assert done.returncode == code, done.stdout
        return done.stdout


@contextlib.contextmanager
def made_in(folder: Path, num_hosts: int) -> Iterator[Lab]:
    """So many hosts until the end of the context."""
    lab = Lab(folder)
    up = lab.hosts("up", str(num_hosts), str(Path(sys.executable).parent), stdout=subprocess.DEVNULL)
    try:
        assert up.returncode == 0, "the hosts do not come up"
        yield lab
    finally:
        lab.hosts("down", stdout=subprocess.DEVNULL)
