"""Work that a sweep does not wait for, by a thread of its own, which stops for good at its first failure."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

PATIENCE = 60.0  # seconds that the end of a sweep waits for it
PATIENCE_THEN = 5.0  # seconds, where the end came by a signal or a fault: who sends it kills half a minute later

Item = TypeVar("Item")


class Aside(Generic[Item]):
    """While the context lasts, does the work on what is put in.

    work: is called in the thread with all that comes, until the context ends; failed: is told what it raised.
    """

    def __init__(
        self, name: str, work: Callable[[Iterable[Item]], object], failed: Callable[[Exception], object] = lambda problem: None
    ) -> None:
        self._work, self._failed = work, failed
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join(PATIENCE if kind is None else PATIENCE_THEN)

    def put(self, item: Item) -> None:
        """Have the work done on it, unless it has failed before."""
        if self._thread.is_alive():
            self._queue.put(item)

    @property
    def num_left(self) -> int | None:
        """After the context, how much was not done of what was put in; None where the work came to an end."""
        return self._queue.qsize() if self._thread.is_alive() else None  # for what it is at, the mark of the end is in there

    def _run(self) -> None:
        try:
            self._work(iter(self._queue.get, None))  # None is no item: it ends
        except Exception as problem:  # whatever other libraries, a disk or the network come up with: the sweep goes on
            traceback.print_exc()  # into the log
            self._failed(problem)
