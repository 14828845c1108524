"""Python's garbage collector, which looks through all objects that live: half a million once torch and Ray are imported."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def at_rest() -> Iterator[None]:
    """A context in which it does not run, for imports: what a module makes, stays."""
    ran = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if ran:
            gc.enable()


def as_command() -> None:
    """Spare it the last look, when the system takes all memory back. The process must be our own.

    It comes after whatever is registered later to be done at the end, Ray's among it. What lies in cycles is not finalised then.
    """
    atexit.register(gc.freeze)
