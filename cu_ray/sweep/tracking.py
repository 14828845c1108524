"""Trials told to an experiment tracker as they end, in a thread of its own: the sweep never waits for it nor ends with it."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cu_ray.errors import in_one_line
from cu_ray.sweep.trackers import Tracker, entry_of
from cu_ray.types import Record

PATIENCE = 60.0  # seconds for what is still to be told when the sweep has ended


class Tracking:
    """Tells the tracker, if there is one. Its first failure is its last: one warning, and it is told no more.

    make: gives the tracker, in the thread; None where none is wanted. say: prints a line for the user.
    """

    def __init__(self, sweep: str, make: Callable[[], Tracker] | None, say: Callable[[str], object]) -> None:
        self._sweep, self._make, self._say = sweep, make, say
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="experiment tracker", daemon=True)

    def __enter__(self) -> Self:
        if self._make is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._make is None:
            return
        self._queue.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._say(
                f"Warning: the tracker was not told of {self._queue.qsize()} trials: it does not answer. The tables have all."
            )

    def heard(self, record: Record) -> None:
        """A job ended; originals are not told."""
        if self._make is not None and record.kind == "trial":
            self._queue.put(record)

    def _work(self) -> None:
        assert self._make is not None
        try:
            tracker = self._make()
            while (record := self._queue.get()) is not None:
                tracker.take(entry_of(self._sweep, record))
        except Exception as problem:  # whatever a tracker, or the network, comes up with
            traceback.print_exc()  # into the log
            self._say(
                f"Warning: the tracker failed and is told no more: {in_one_line(problem).rstrip('.')}. The tables have all."
            )
