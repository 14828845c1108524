"""The processes of a Ray that this process started, to be ended when Ray itself no longer does."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import psutil

FAILED = (psutil.Error, OSError)  # a process that has ended; no file left here to look at it
REAPED_IN = 2.0  # seconds


def of_this_process() -> Remains:
    """Those of a session that this process began and whose name it does not know yet: Ray ends the name with its number."""
    return Remains(f"_{os.getpid()}")


class Remains:
    """The servers of one session among the children of this process, and what they started; nothing of another session.

    session: its name, or the end of that.
    """

    def __init__(self, session: str) -> None:
        self._named = re.compile(rf"/(session_[^/]*)?{re.escape(session)}(/|$)")
        self._known: set[psutil.Process] = set()
        self.look()

    def look(self) -> None:
        """Take in what is there now: the children of a server that has ended are no longer known as such."""
        with suppress(*FAILED):
            for child in psutil.Process().children():
                with suppress(*FAILED):
                    if any(self._named.search(argument) for argument in child.cmdline()):  # a new set: threads look through it
                        self._known = self._known | {child, *child.children(recursive=True)}

    def end_autoscaler(self) -> None:
        """Kill Ray's autoscaler, which scales nothing here: it looks for the gcs server for a second, and Ray waits for it."""
        for process in self._known:
            with suppress(*FAILED):
                if any(argument.endswith("/monitor.py") for argument in process.cmdline()):
                    process.kill()

    def end(self) -> None:
        """Kill them all."""
        self.look()
        for process in self._known:
            with suppress(*FAILED):
                process.kill()
        with suppress(*FAILED):
            psutil.wait_procs(self._known, timeout=REAPED_IN)
