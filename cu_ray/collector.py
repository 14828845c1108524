"""Python's garbage collector, which looks through all objects that live: half a million once torch and Ray are imported."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator

SELDOM = 100_000  # objects more than before, after which it looks through the youngest; 700 as Python comes


@contextlib.contextmanager
def at_rest() -> Iterator[None]:
    """A context in which it does not run, for imports: what a module makes, stays."""
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


def as_command() -> None:
    """Let it run seldom from now on, and not at the end, when the system takes all memory back. The process must be our own."""
    gc.set_threshold(SELDOM)
    atexit.register(gc.freeze)  # the first to be registered is the last to be called
