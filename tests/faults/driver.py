"""A sweep as a user runs it, watched from outside: how far it is, and its processes."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from cu_ray.sweep import ledger
from tests import sweeps


class Driver:
    """`cu-ray sweep` with these arguments in a folder, running."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.ledger = folder, folder / "results" / "small" / "ledger"
        self._said_before = len(self._log())
        self.process = sweeps.start(folder, "sweep", *arguments)

    @property
    def runs(self) -> bool:
        """Whether it still does."""
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """What it has said."""
        return self._log()[self._said_before :]

    @property
    def last_line(self) -> str:
        """The last line of it."""
        return self.said.rstrip().rpartition("\n")[2]

    def num_trials(self) -> int:
        """How many trials are in the ledger."""
        return len(ledger.read(self.ledger).trials) if self.ledger.exists() else 0

    def wait_for_trials(self, number: int, seconds: float = 120) -> None:
        """Wait until so many more are."""
        goal, deadline = self.num_trials() + number, time.monotonic() + seconds
        while self.num_trials() < goal:
            assert self.runs, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """All processes that it started; none where it has ended."""
        with suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def member(self, name: str) -> psutil.Process | None:
        """One of them whose name begins so, if there is one."""
        with suppress(psutil.Error):
            return member(psutil.Process(self.process.pid), name)
        return None

    def _log(self) -> str:
        path = self.folder / "driver.log"
        return path.read_text() if path.exists() else ""


def member(ancestor: psutil.Process, name: str) -> psutil.Process | None:
    """A process that it started, whose name begins so."""
    for process in ancestor.children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith(name):
                return process
    return None


def left_of(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are still there after so long. psutil's own wait fails where a number has become that of a thread."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in family if _lives(each)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
