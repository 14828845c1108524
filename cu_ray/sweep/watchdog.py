"""The time limit of a trial, in the worker: an exception in whatever runs, then, where that changes nothing, the process ends."""

from __future__ import annotations

import faulthandler
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cu_ray.errors import TimeIsUp
from cu_ray.plugins import name_of
from cu_ray.types import OriginalSpec, TrialSpec

GRACE = 10.0  # seconds that a trial has to end after the exception, which code that does not return to Python never sees


@contextmanager
def at_most(seconds: float, spec: OriginalSpec | TrialSpec) -> Iterator[None]:
    """A context in which TimeIsUp is raised after so many seconds, and the process ends GRACE seconds later.

    Only in the main thread: there Python runs signal handlers, and there Ray runs what an actor does.
    """
    if math.isinf(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp(took_too_long(spec, seconds))

    before = signal.signal(signal.SIGALRM, ring)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)  # by a thread that needs no interpreter
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def took_too_long(spec: OriginalSpec | TrialSpec, seconds: float) -> str:
    """What is said of a job that went on for more than this."""
    what = "the original" if isinstance(spec, OriginalSpec) else name_of(spec.method)
    return f"{what} took longer than runtime.trial_time_limit ({seconds:g} s)"
