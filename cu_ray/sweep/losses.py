"""Jobs whose GPU does nothing more for their process: whether the job is to blame, its neighbours on the GPU, or the GPU.

Under MPS all processes that share a GPU go down with one of them: what goes down together is one loss of each kind of job.
"""

from __future__ import annotations

import enum
import math
import time
from collections import Counter
from dataclasses import dataclass, field

from cu_ray.plugins import name_of
from cu_ray.sweep.canaries import kind_of
from cu_ray.sweep.ready import Job
from cu_ray.sweep.shortages import Shortages
from cu_ray.types import TrialSpec

MOST_LOSSES = 3  # of its device by a kind of job, one after another, before it is tried with fewer neighbours
MOST_LOSERS = 3  # methods (or originals) that lost their device, one after another, before the device is to blame


class Verdict(enum.Enum):
    """What becomes of a job that lost its device."""

    AGAIN = "by another worker"
    ASIDE = "later, with fewer neighbours"
    FAILED = "its own fault"


@dataclass
class Health:
    """What a run has seen of its GPUs, and of the memory of its nodes."""

    works: bool = False  # a job has ended well
    losses: Counter[str] = field(default_factory=Counter)  # of its GPU by each kind, since one of it ended well
    shortages: Shortages = field(default_factory=Shortages)


class Losses:
    """Losses of GPUs at one share of them. alone: whether no other worker is on a worker's GPU."""

    def __init__(self, health: Health, *, alone: bool) -> None:
        self._health, self._alone = health, alone
        self._lost_once: set[str] = set()  # jobs, by key, that another worker does once more
        self._last = -math.inf  # when a device was lost by a job that began after the loss before it
        self._fallen: set[str] = set()  # kinds that were part of it
        self._number = 0  # since a job ended well
        self._losers: set[str] = set()  # methods of the first jobs that reported them

    @property
    def everywhere(self) -> bool:
        """Whether workers lose their GPU whatever they do."""
        most = 0 if self._alone else MOST_LOSSES * MOST_LOSERS  # who reports a loss first need not be to blame
        return len(self._losers) >= MOST_LOSERS and self._number > most

    def is_known_for_it(self, job: Job) -> bool:
        """Whether its kind keeps losing its device."""
        return self._health.losses[kind_of(job.spec)] >= MOST_LOSSES

    def ended_well(self, job: Job) -> None:
        """A job ended well: its kind, and the GPUs, are not to blame for what was."""
        self._losers.clear()
        self._number, self._health.works = 0, True
        del self._health.losses[kind_of(job.spec)]

    def is_first(self, job: Job, began: float) -> bool:
        """Note a loss by a job that began then; whether it is the first that is heard of a device that went down."""
        first = began > self._last  # else it went down with the last
        if first:
            self._last, self._fallen = time.monotonic(), set()
            self._number += 1
            if not self.is_known_for_it(job) or not self._health.works:  # else it is the kind
                self._losers.add(name_of(job.spec.method) if isinstance(job.spec, TrialSpec) else "an original")
        if (kind := kind_of(job.spec)) not in self._fallen:
            self._fallen.add(kind)
            self._health.losses[kind] += 1
        return first

    def verdict(self, job: Job) -> Verdict:
        """What becomes of the job that just lost its device."""
        known = self.is_known_for_it(job)
        if known and not self._alone:
            return Verdict.ASIDE
        if self._alone and (known or job.key in self._lost_once):
            return Verdict.FAILED
        self._lost_once.add(job.key)
        return Verdict.AGAIN
