"""What a sweep changes in its process while it runs, each put back at the end: signals, environment, output, logging.

The process may be a notebook's kernel: it lives on, and other threads of it go on meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from cu_ray.errors import UserError

ENDS_IT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_running = threading.Lock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other sweep in this process: Tune cannot run two at once. Raises UserError where one runs."""
    if not _running.acquire(blocking=False):
        raise UserError("another sweep is running in this process: wait for its end, or run this one in a process of its own")
    try:
        yield
    finally:
        _running.release()


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does; a second signal does what it did before.

    What is ignored, as SIGHUP under nohup, stays ignored. Threads other than the main one hear no signals.
    """

    def interrupt(put_back: Callable[[], None], number: int) -> NoReturn:
        put_back()
        raise KeyboardInterrupt

    with _signals_go_to(interrupt):
        yield


@contextlib.contextmanager
def signals_wait() -> Iterator[list[int]]:
    """A context that none of these signals breaks off; gives those that came, which is all that is done with them."""
    came: list[int] = []
    with _signals_go_to(lambda put_back, number: came.append(number)):
        yield came


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """A context after which these signals are handled as before, whatever has been set meanwhile."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in ENDS_IT} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # none of Python's
                signal.signal(number, handler)


@contextlib.contextmanager
def _signals_go_to(handle: Callable[[Callable[[], None], int], object]) -> Iterator[None]:
    """A context in which those signals that are not ignored are handled so; what `handle` is given ends that before."""
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    def handler(number: int, frame: Any) -> None:
        handle(put_back, number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDS_IT:
                if (earlier := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    before[number] = earlier
                    signal.signal(number, handler)
        yield
    finally:
        put_back()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def memory_held() -> dict[str, str]:
    """Variables by which processes that are started from here hold the memory that they free; none that are set already.

    The C library would give each large tensor's memory back to the system and ask for it anew, page by page: up to a tenth of a
    training step on a processor. Before its version 2.35 glibc takes no such sizes, and other libraries have no such variables.
    """
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return {}
    sizes = {"MALLOC_MMAP_THRESHOLD_": 2**30, "MALLOC_TRIM_THRESHOLD_": 2**33}  # bytes: of one piece, of all that is free
    return {name: str(size) for name, size in sizes.items() if name not in os.environ}


@contextlib.contextmanager
def only_errors_of(name: str) -> Iterator[None]:
    """The logger of that name says nothing but errors, and these where error output goes now, not where it went at its import."""
    logger = logging.getLogger(name)
    before = logger.level
    handlers = [each for each in logger.handlers if isinstance(each, logging.StreamHandler)]
    streams = [(each, each.stream) for each in handlers if not isinstance(each, logging.FileHandler)]
    logger.setLevel(logging.ERROR)
    for handler, _ in streams:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler, stream in streams:
            handler.setStream(stream)


@contextlib.contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Send what this thread, and threads started from now on, print into a file; older threads keep their stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = set(threading.enumerate()) - {threading.current_thread()}
    with (
        open(path, "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(cast(TextIO, _Output(log, sys.stdout, earlier))),
        contextlib.redirect_stderr(cast(TextIO, _Output(log, sys.stderr, earlier))),
    ):
        yield


class _Output:
    """A text stream that is the log or the stream before it, by who asks; also for handlers of `logging` that outlive the log."""

    def __init__(self, log: TextIO, before: TextIO, earlier: set[threading.Thread]) -> None:
        self._log, self._before, self._earlier = log, before, earlier

    def __getattr__(self, name: str) -> Any:
        elsewhere = self._log.closed or threading.current_thread() in self._earlier
        return getattr(self._before if elsewhere else self._log, name)
