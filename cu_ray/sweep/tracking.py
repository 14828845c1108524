"""Trials told to an experiment tracker as they end, aside: the sweep never waits for it nor ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from cu_ray.errors import in_one_line
from cu_ray.sweep.aside import Aside
from cu_ray.sweep.trackers import Tracker, entry_of
from cu_ray.types import Record


class Tracking:
    """Tells the tracker, if there is one. Its first failure is its last: one warning, and it is told no more.

    make: gives the tracker, in the thread; None where none is wanted. say: prints a line for the user.
    """

    def __init__(self, sweep: str, make: Callable[[], Tracker] | None, say: Callable[[str], object]) -> None:
        self._sweep, self._make, self._say = sweep, make, say
        self._telling = None if make is None else Aside[Record]("experiment tracker", self._tell, self._failed)

    def __enter__(self) -> Self:
        if self._telling is not None:
            self._telling.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._telling is None:
            return
        self._telling.__exit__(kind, error, trace)
        if (left := self._telling.num_left) is not None:
            self._say(f"Warning: the tracker was not told of {left} trials: it does not answer. The tables have all.")

    def heard(self, record: Record) -> None:
        """A job ended; originals are not told."""
        if self._telling is not None and record.kind == "trial":
            self._telling.put(record)

    def _tell(self, records: Iterable[Record]) -> None:
        assert self._make is not None
        tracker = self._make()
        for record in records:
            tracker.take(entry_of(self._sweep, record))

    def _failed(self, problem: Exception) -> None:
        said = in_one_line(problem)
        self._say(f"Warning: the tracker failed and is told no more: {said}. The tables have all.")
