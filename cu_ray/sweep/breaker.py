"""Which methods are set aside: those that keep failing in the same way, so that the others can finish."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cu_ray.types import Record

PLACE = re.compile(r" \([^()]*:\d+\)$")  # where in the code an error came from, at the end of its text

ORIGINAL_FAILED = "original_failed"  # a fact of trials that were not run, as there is no original

OLD_MARK = "its original model "  # how ledgers from before 2026-11-27 say it


class Breaker:
    """Sets a method aside after `limit` failures of one kind, unless more of its trials succeeded than failed so."""

    def __init__(self, limit: int, trials: Iterable[Record] = ()) -> None:
        self._limit = limit
        self._succeeded, self._failed = Counter[str](), Counter[tuple[str, str]]()
        self.reasons: dict[str, str] = {}  # of the methods that are set aside
        for record in trials:
            self.hear(record)

    def hear(self, record: Record) -> bool:
        """Count a trial; True where its method is set aside just now. A diverged trial or a failed original is no fault of it."""
        method, error = record.spec["method"]["name"], record.error or ""
        if record.ok:
            self._succeeded[method] += 1
        if record.status != "failed" or ORIGINAL_FAILED in record.facts or error.startswith(OLD_MARK):
            return False
        kind = kind_of(error)
        self._failed[method, kind] += 1
        count = self._failed[method, kind]
        if method in self.reasons or count < self._limit or self._succeeded[method] > count:
            return False
        self.reasons[method] = f"{count} failures like: {error}"
        return True


def kind_of(error: str) -> str:
    """What an error has in common with others of its kind: its type and where in the code it was raised."""
    place = PLACE.search(error)
    return error.split(":")[0] + (place[0] if place else "")


def without_place(error: str | None) -> str | None:
    """The error without where in the code it was raised, which changes with every line above it."""
    return error and PLACE.sub("", error)
