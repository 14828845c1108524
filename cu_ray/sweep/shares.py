"""One share of a GPU for all trials of a run, from what canaries measured. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cu_ray.identity import key_of
from cu_ray.plugins import name_of
from cu_ray.stages.canary import Measure
from cu_ray.stages.warm import KEPT, MOST_DATASETS
from cu_ray.sweep.canaries import Spec, setting_of
from cu_ray.sweep.plan import Plan
from cu_ray.types import OriginalSpec

Measured = Sequence[tuple[Spec, Measure]]

MOST_TRIALS = 8  # on one GPU, where they take turns: more of them do not make it do more
MOST_WITH_MPS = 14  # where their kernels run at the same time: docs/speed.md
CONTEXT_BYTES = 512 << 20  # what CUDA takes for each process, outside any tensor
RESERVE = 0.1  # of a GPU's memory, left free: fragments, and what a canary did not see
UNITS = 10_000  # of a GPU: Ray counts in these


@dataclass(frozen=True)
class Share:
    """The GPUs of one trial, for a whole run, and the trial that decided it: what one such worker needs of which memory."""

    gpus: float
    hungriest: str
    need_bytes: int
    gpu_bytes: int

    @property
    def fits(self) -> bool:
        """Whether one trial has room at all."""
        return self.need_bytes <= usable_bytes(self.gpu_bytes)

    def __str__(self) -> str:
        doubt = "" if self.fits else ", which may be too little"
        memory = f"{self.need_bytes / 2**30:.1f} GiB of {self.gpu_bytes / 2**30:.1f} GiB"
        return f"gpus_per_trial: {self.gpus:g} (the hungriest, {self.hungriest}: {memory}{doubt})"


def share_of(plan: Plan, measured: Measured, *, mps: bool = False) -> Share:
    """The share by which as many of the hungriest trials fit into the smallest GPU as there is room for.

    At least 1, at most 8, or 14 where NVIDIA's Multi-Process Service is on. measured: at least one canary.
    """
    kept = kept_bytes(plan, measured)
    spec, most = max(measured, key=lambda each: _work_bytes(each[1]))
    need = CONTEXT_BYTES + kept + _work_bytes(most)
    gpu_bytes = min(measure.device_bytes for _, measure in measured)
    trials = min(MOST_WITH_MPS if mps else MOST_TRIALS, max(1, usable_bytes(gpu_bytes) // need))
    return Share(share_for(trials), _told(spec), need, gpu_bytes)


def kept_bytes(plan: Plan, measured: Measured) -> int:
    """What a warm worker may come to hold on the device between trials: data, originals and memos of the largest data sets."""
    data, originals = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for study in plan.studies:
        for setting in study.settings:
            data[setting.content_hash].add(key_of(setting.poison_identity))
            originals[setting.content_hash].add(study.original(setting).key)
    totals = []
    for content_hash in data:
        there = [measure for spec, measure in measured if setting_of(spec).content_hash == content_hash]
        total = min(KEPT["data"], len(data[content_hash])) * max((each.data_bytes for each in there), default=0)
        total += min(KEPT["originals"], len(originals[content_hash])) * max((each.original_bytes for each in there), default=0)
        totals.append(total + KEPT["memos"] * max((each.memo_bytes for each in there), default=0))
    return sum(sorted(totals)[-MOST_DATASETS:])


def usable_bytes(gpu_bytes: int) -> int:
    """What trials may take of a GPU's memory."""
    return int(gpu_bytes * (1 - RESERVE))


def share_for(trials: int) -> float:
    """The share of a GPU by which so many trials fit, and no more: 1 / trials, rounded down to what Ray counts in."""
    return UNITS // trials / UNITS


def trials_in(share: float) -> int:
    """How many trials of such a share fit on one GPU."""
    return UNITS // round(share * UNITS)


def next_share(share: float) -> float | None:
    """The share to try again with what ran out of memory: half as many trials on a GPU; None where one had it alone."""
    return share_for(trials_in(share) // 2) if trials_in(share) > 1 else None


def _work_bytes(measure: Measure) -> int:
    """What a job takes beside what a worker keeps; a memo is made while all those kept are still there."""
    return max(0, measure.peak_bytes - measure.data_bytes - measure.original_bytes)


def _told(spec: Spec) -> str:
    what = "training" if isinstance(spec, OriginalSpec) else name_of(spec.method)
    return f"{what} on {name_of(setting_of(spec).model)}"
