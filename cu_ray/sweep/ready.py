"""The jobs that can run now, and which of them a worker takes.

1. Originals and trials that compute a memo come first: all else waits for them.
2. Then trials that need no training, given a memo that the worker holds: they are over soon.
3. Then the job with the most work still to follow it, one after the other, to the end of its study.
4. But a worker prefers a job whose original or memo it holds, if at least half as much work follows that one.
5. Otherwise studies take turns.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cu_ray.sweep.plan import memo_group
from cu_ray.types import OriginalSpec, TrialSpec

URGENCIES = ORIGINAL, COMPUTES_MEMO, OTHER = range(3)  # how much waits for a job


@dataclass(frozen=True)
class Job:
    """One original model or one trial to be made."""

    kind: str  # "original" or "trial"
    spec: OriginalSpec | TrialSpec
    images: int = 0  # what it takes: forward passes and twice the backward passes
    length: int = 0  # the same with evaluations, of the longest chain of jobs from this one to the end of its study
    turn: int = 0  # how many jobs its study wanted before it

    @property
    def key(self) -> str:
        """The key of what it makes."""
        return self.spec.key

    def uses(self) -> tuple[str | None, str]:
        """What a worker holds after it: the memo group, if any, and the key of the original."""
        if isinstance(self.spec, OriginalSpec):
            return None, self.spec.key
        return memo_group(self.spec), self.spec.original.key


Rank = tuple[int, int, int]  # length (negative), turn, order of arrival


class Ready:
    """Jobs in order of choice. `live` says whether a job may still be taken: others are passed over."""

    def __init__(self, live: Callable[[Job], bool]) -> None:
        self._live, self._order = live, itertools.count()
        self._queues: dict[tuple[int, str | None], list[tuple[Rank, Job]]] = {}  # by urgency and by what a job uses

    def push(self, job: Job, urgency: int) -> None:
        """Take a job in, also one that was there before."""
        rank = (-job.length, job.turn, next(self._order))
        for used in (None, *filter(None, job.uses())):
            heapq.heappush(self._queues.setdefault((urgency, used), []), (rank, job))

    def choose(self, held: Collection[str] = ()) -> Job | None:
        """The job for a worker that holds these memo groups and originals, the last used first; None where there is none.

        It stays here until it is no longer live.
        """
        for urgency in URGENCIES:
            first = self._first(urgency, None)
            if first is not None:
                return self._fitting(urgency, first, held)
        return None

    def _fitting(self, urgency: int, first: Job, held: Collection[str]) -> Job:
        """That of this urgency for who holds this. first: the one for who holds nothing."""
        own = [(key, job) for key in held if (job := self._first(urgency, key)) is not None]
        for key, job in own:
            if key == job.uses()[0] and not job.images:
                return job
        least = first.length if first.uses()[1] in held else first.length / 2
        return max((job for _, job in own if job.length >= least), key=lambda job: job.length, default=first)

    def _first(self, urgency: int, used: str | None) -> Job | None:
        queue = self._queues.get((urgency, used), [])
        while queue and not self._live(queue[0][1]):
            heapq.heappop(queue)
        if not queue:
            self._queues.pop((urgency, used), None)
            return None
        return queue[0][1]
