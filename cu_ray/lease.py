"""The right to write to a place that knows no locks: an object that its holder renews, and that others take when it does not."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from typing import Any

from cu_ray.errors import UserError
from cu_ray.places import Place

FILE = "lease.json"
BEAT = 5.0  # seconds between renewals
STALE = 6  # beats without a renewal, after which the holder is taken for dead
SETTLE = 1.0  # seconds within which two that take the lease at once have written theirs


class Taken(UserError):
    """Another process has it."""


class LeaseLost(OSError):
    """Another process took it over, while this one was stopped for long."""


class Lease:
    """Held from here until `close`, or until the process has not renewed it for a while. Raises Taken where another has it.

    No clocks are compared: a holder lives as long as its lease changes.
    """

    def __init__(self, place: Place) -> None:
        self._place, self.token = place, uuid.uuid4().hex[:12]
        _wait_for_its_end(place)
        self._renew()
        time.sleep(SETTLE)
        if (holder := _read(place)) is not None and holder.get("token") != self.token:
            raise _taken(place, holder)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise LeaseLost where another process has it now. Asks only where the last renewal is some beats ago."""
        if time.time() - self._renewed > 2 * BEAT:  # wall time: it goes on while a machine sleeps
            self._confirm()

    def close(self) -> None:
        """Let others write."""
        self._ended.set()
        self._thread.join()
        holder = _read(self._place)
        if holder is not None and holder.get("token") == self.token:
            self._place.delete(FILE)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._confirm()
            except LeaseLost:
                return  # `require` says so when something is to be written
            except Exception:  # noqa: S112 (tried again at the next beat)
                continue

    def _confirm(self) -> None:
        holder = _read(self._place)
        if holder is None or holder.get("token") != self.token:
            self._renewed = 0.0
            raise LeaseLost(f"{_named(holder)} has taken over {self._place}")
        self._renew()

    def _renew(self) -> None:
        now = time.time()
        facts = {"process": os.getpid(), "host": platform.node(), "token": self.token, "renewed_at": now}
        self._place.write(FILE, json.dumps(facts).encode())
        self._renewed = now


def _wait_for_its_end(place: Place) -> None:
    """Return when nobody holds the lease: it is not there, its process here is dead, or it was not renewed for some beats."""
    first = _read(place)
    deadline = time.monotonic() + STALE * BEAT
    while first is not None and not _is_dead(first) and time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT))
        holder = _read(place)
        if holder is None:
            return
        if holder != first:
            raise _taken(place, holder)


def _read(place: Place) -> dict[str, Any] | None:
    """What the lease says; nothing of it where it is damaged."""
    try:
        facts = json.loads(place.read(FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    process = holder.get("process")
    if holder.get("host") != platform.node() or not isinstance(process, int) or process < 1:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _taken(place: Place, holder: dict[str, Any]) -> Taken:
    return Taken(f"{place} is being written by {_named(holder)}: wait for it or stop it")


def _named(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('host')}"
