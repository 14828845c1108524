"""How long jobs take, from those that are done and from canaries: for a pass of one image, and for each job besides. Pure.

A job for which there is nothing goes by those most like it: first those of the same method whose whole-numbered hyperparameters
are the same (a number of layers, a batch size), then those of the method, then all of the same model and data, then all.
"""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from cu_ray.plugins import name_of
from cu_ray.stages.canary import Measure
from cu_ray.sweep.canaries import Spec, kind_of, shape_of
from cu_ray.types import OriginalSpec, Record

ORIGINAL = "original"
Likeness = tuple[Hashable, ...]  # what a job has in common with others, from the closest of them to all


@dataclass(frozen=True)
class Load:
    """So many jobs, and the passes of one image that they take together; a backward pass counts as two."""

    jobs: int = 0
    passes: float = 0.0


Work = dict[Likeness, Load]


@dataclass
class _Seen:
    """What jobs took, in seconds of a worker."""

    jobs: int = 0
    passes: float = 0.0
    learning: float = 0.0  # of those that had passes
    besides: float = 0.0
    seconds: float = 0.0
    gpu_seconds: float = 0.0  # each job's seconds times the share of a GPU that it had; without GPUs all of them


@dataclass(frozen=True)
class Took:
    """What work takes: seconds of a worker, and of them those of a GPU, by the worker's share of it (on CPUs: the same)."""

    seconds: float
    gpu_seconds: float


class Pace:
    """What jobs of each likeness took: first what is done of it, then what was measured, then what another pace has of it."""

    def __init__(self, behind: Pace | None = None) -> None:
        self._done: dict[Hashable, _Seen] = {}
        self._measured: dict[Hashable, _Seen] = {}
        self._tables: list[dict[Hashable, _Seen]] = [self._done, self._measured, *(behind._tables if behind is not None else [])]
        self._kinds: dict[str, str] = {}  # of originals, by key

    def likeness(self, spec: Spec) -> Likeness:
        """Of an original or a trial."""
        original = spec if isinstance(spec, OriginalSpec) else spec.original
        if original.key not in self._kinds:
            self._kinds[original.key] = kind_of(original)
        setting = self._kinds[original.key]
        if isinstance(spec, OriginalSpec):
            return (setting, ORIGINAL), setting, None
        method = (setting, name_of(spec.method), spec.method.version, spec.keep)
        return (method, repr(shape_of(spec))), method, setting, None

    def hear(self, spec: Spec, record: Record) -> None:
        """Take in what is done; what failed says nothing, nor what was recorded without times."""
        facts, seconds = record.facts, _seconds_of(record)
        learning = facts.get("train_seconds" if isinstance(spec, OriginalSpec) else "unlearn_seconds_spent")
        if not record.ok or seconds is None:
            return
        if isinstance(spec, OriginalSpec):  # without a time of learning where it was there already
            passes = 0 if learning is None else 3 * spec.images
        elif learning is None:
            return
        else:
            passes = facts["images_forward_spent"] + 2 * facts["images_backward_spent"]
        _add(self._done, self.likeness(spec), passes, learning or 0.0, seconds, facts.get("gpu_share") or 1.0)

    def measured(self, spec: Spec, measure: Measure) -> None:
        """Take in what a canary, which has a GPU for itself, came to, where it came to its end."""
        if measure.stopped is None and measure.besides_seconds is not None:
            learning = measure.seconds_per_pass or 0.0
            passes = 0.0 if measure.seconds_per_pass is None else 1.0
            _add(self._measured, self.likeness(spec), passes, learning, learning + measure.besides_seconds, 1.0)

    def knows(self, spec: Spec) -> bool:
        """Whether something is known of jobs whose hyperparameters shape their computation as those of this one do."""
        return any(self.likeness(spec)[0] in table for table in self._tables)

    def took(self, work: Mapping[Likeness, Load]) -> Took | None:
        """What the work takes; None where nothing is known of any job."""
        parts = [part for likeness, load in work.items() if (part := self._of(likeness, load)) is not None]
        if len(parts) < len(work):
            return None
        return Took(sum(part.seconds for part in parts), sum(part.gpu_seconds for part in parts))

    def longest(self, work: Mapping[Likeness, Load]) -> float:
        """About the seconds of its longest job: that of the likeness whose mean is the largest."""
        means = [self._of(likeness, Load(1, load.passes / load.jobs)) for likeness, load in work.items() if load.jobs]
        return max((each.seconds for each in means if each is not None), default=0.0)

    def wall_seconds(self, work: Mapping[Likeness, Load], lanes: float, chain: float = 0.0) -> float | None:
        """From the first job to the last on so many GPUs, or with so many workers on CPUs; None where nothing is known.

        No trial begins before its original is there: where there are fewer originals than lanes, the others wait that long.
        chain: seconds of trials that must follow one another.
        """
        originals = {like: load for like, load in work.items() if _is_original(like) and load.passes}
        trials = {like: load for like, load in work.items() if like not in originals}
        all_of_it, first = self.took(work), self.took(originals)
        if all_of_it is None or first is None:
            return None
        training, share = self.longest(originals), first.gpu_seconds / first.seconds if first.seconds else 1.0
        waited = max(0.0, lanes - share * sum(load.jobs for load in originals.values())) * training
        return max((all_of_it.gpu_seconds + waited) / lanes, training + max(chain, self.longest(trials)))

    def _of(self, likeness: Likeness, load: Load) -> Took | None:
        """What jobs of one likeness take; None where nothing is known of any job."""
        known = [seen for like in likeness for table in self._tables if (seen := table.get(like)) is not None]
        learned = next((seen.learning / seen.passes for seen in known if seen.passes), None)
        if not known or (load.passes and learned is None):
            return None
        closest = known[0]
        seconds = load.passes * (learned or 0.0) + load.jobs * closest.besides / closest.jobs
        return Took(seconds, seconds * (closest.gpu_seconds / closest.seconds if closest.seconds else 1.0))


def work_of(loads: Iterable[tuple[Likeness, Load]]) -> Work:
    """These together."""
    work: Work = {}
    for likeness, load in loads:
        before = work.get(likeness, Load())
        work[likeness] = Load(before.jobs + load.jobs, before.passes + load.passes)
    return work


def _seconds_of(record: Record) -> float | None:
    """From its beginning to its end; None where these are not told."""
    try:
        began, ended = (datetime.datetime.fromisoformat(record.facts[name]) for name in ("started_at", "finished_at"))
        return (ended - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _is_original(likeness: Likeness) -> bool:
    return isinstance(likeness[0], tuple) and likeness[0][1:] == (ORIGINAL,)


def _add(table: dict[Hashable, _Seen], likeness: Likeness, passes: float, learning: float, seconds: float, share: float) -> None:
    for like in likeness:
        seen = table.setdefault(like, _Seen())
        seen.jobs += 1
        seen.passes += passes
        seen.learning += learning if passes else 0.0
        seen.besides += max(0.0, seconds - learning) if passes else seconds
        seen.seconds += seconds
        seen.gpu_seconds += seconds * share
