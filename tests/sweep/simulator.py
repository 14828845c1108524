"""Sweeps without Ray, models or a device: workers that end their jobs in a drawn order, each with a score fixed by its key."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from cu_ray import config
from cu_ray.plugins import name_of
from cu_ray.sweep import plan as plans
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.hardware import Hardware
from cu_ray.sweep.ledger import Known, Ledger, PointRecord, evidence
from cu_ray.sweep.plan import Plan, memo_group
from cu_ray.sweep.ready import Job
from cu_ray.types import Augmentation, Dataset, Images, Normalisation, OriginalSpec, Record, TrialSpec

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 400, 40, 10
TIMES = {"started_at": "2024-01-01T00:00:00.000+00:00", "finished_at": "2024-01-01T00:00:01.000+00:00"}
MACHINE = {"device": "cpu", "host": "here", "cu_ray_version": "0", "torch_version": "0", "peak_memory_bytes": 1 << 20}

SCRUB = {"steps": 6, "msteps": 2, "lr": 0.005}
SSD_GRID = {"selection_share": {"low": 0.002, "high": 0.1, "log": True, "num": 4}, "relative_dampening": 1, "sampler": "grid"}


# ---------------------------------------------------------------------------------------------------------------- sweeps


@functools.cache
def dataset() -> Dataset:
    """A data set of a few tiny images."""
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        return Images(rng.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8), np.arange(count, dtype=np.int64) % NUM_CLASSES)

    names = tuple(f"class {index}" for index in range(NUM_CLASSES))
    return Dataset("tiny", names, Normalisation((0.5,), (0.5,)), Augmentation(), images(NUM_TRAIN), images(NUM_TEST))


def planned_anew(text: str) -> Plan:
    """The plan of a sweep file, on the tiny data set; `precision: auto` is fp32, whatever the processor."""
    parsed = Hardware("cpu", frozenset()).settle(config.parse(text))
    return plans.make(parsed, dict.fromkeys(parsed.datasets, plans.Source.of(dataset())))


_planned = functools.cache(planned_anew)


def sweep_file(methods: dict[str, Any], **sections: Any) -> str:
    """A sweep file; sections left out are small ones."""
    small = {
        "name": "simulated",
        "dataset": "fashion_mnist_small",
        "model": {"name": "resnet9", "width": 2},
        "manipulation": {"name": "backdoor", "size": 100},
        "train": {"steps": 20, "batch_size": 16, "precision": "auto"},
        "deletion_fractions": [0.5],
        "seeds": [0],
    }
    return yaml.safe_dump({**small, **sections, "methods": methods}, sort_keys=False)


def plan(methods: dict[str, Any], **sections: Any) -> Plan:
    """The plan of such a sweep file, on the tiny data set."""
    return _planned(sweep_file(methods, **sections))


# --------------------------------------------------------------------------------------------------------------- records


def noise(*parts: Any) -> float:
    """A number from 0 to 1, a function of the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def quality(spec: TrialSpec) -> float:
    """How good a trial is, from 0 to 1: smooth in the hyperparameters, best at alpha 0.1, selection_share 0.01."""
    distance = sum(
        math.log10(value / best) ** 2
        for name, best in (("alpha", 0.1), ("selection_share", 0.01), ("relative_dampening", 0.5))
        if isinstance(value := getattr(spec.method, name, None), float)
    )
    return math.exp(-distance)


def record_of(job: Job) -> Record:
    """The record of a job that went well, a function of its key."""
    if isinstance(job.spec, OriginalSpec):
        facts = {**TIMES, **MACHINE, "num_classes": NUM_CLASSES, "train_seconds": 1.0, "eval_seconds": 0.1, "effective_size": 90}
        facts["num_affected"] = NUM_TEST // 2
        return Record("original", job.key, job.spec.describe(), "ok", None, _original_scores(job.spec), facts)
    return Record("trial", job.key, job.spec.describe(), "ok", None, _trial_scores(job.spec), _trial_facts(job.spec))


def fails(job: Job, status: str = "failed", error: str = "RuntimeError: no luck") -> Record:
    """The record of a job that did not go well."""
    return Record(job.kind, job.key, job.spec.describe(), status, error, {}, {**TIMES, **MACHINE, "num_classes": NUM_CLASSES})


def _metrics(key: str, level: float, manipulation: Any) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for prefix in ("", "val_", "report_"):
        for name in ("acc_corr", "acc_retain"):
            scores[prefix + name] = 0.5 * level + 0.5 * noise(key, prefix, name)
        scores[f"{prefix}asr"] = 1 - level if name_of(manipulation) == "backdoor" else None
        scores[f"{prefix}confusion_rate"] = 1 - level if name_of(manipulation) == "interclass_confusion" else None
    return scores | {"validation_given": 0.5 * level + 0.5 * noise(key, "validation"), "retain_given": 0.9, "retain_true": 0.8}


def _original_scores(spec: OriginalSpec) -> dict[str, float | None]:
    nothing = dict.fromkeys(("deletion_given", "deletion_true", "held_out_given", "held_out_true"))
    return {**_metrics(spec.key, 0.5, spec.setting.manipulation), **nothing, "unidentified_given": 0.9, "unidentified_true": 0.1}


def _trial_scores(spec: TrialSpec) -> dict[str, float | None]:
    held_out = noise(spec.key, "held out") if spec.held_out else None
    found = noise(spec.key, "deletion") if spec.deletion_size else None
    all_found = spec.deletion_size == spec.original.setting.manipulation.size
    return {
        **_metrics(spec.key, quality(spec), spec.original.setting.manipulation),
        "deletion_given": found,
        "deletion_given_before": None if found is None else 0.9,
        "deletion_true": None if found is None else 1 - found,
        "unidentified_given": None if all_found else 0.7,
        "unidentified_true": None if all_found else 0.2,
        "held_out_given": held_out,
        "held_out_true": None if held_out is None else 1 - held_out,
    }


def _trial_facts(spec: TrialSpec) -> dict[str, Any]:
    cost = plans.trial_cost(spec, NUM_TRAIN)
    return {
        **TIMES,
        **MACHINE,
        "num_classes": NUM_CLASSES,
        "unlearn_seconds": 0.5 + noise(spec.key, "seconds"),
        "unlearn_seconds_spent": 0.5 + noise(spec.key, "seconds"),
        "eval_seconds": 0.1,
        "effective_size": 90,
        "deletion_size": spec.deletion_size,
        "detection_precision": 1.0 if spec.deletion_size else None,
        "detection_recall": spec.deletion_size / 100 if spec.deletion_size else None,
        "images_forward": cost.forward,
        "images_backward": cost.backward,
        "images_forward_spent": cost.forward,
        "images_backward_spent": cost.backward,
        "images_evaluated": 2 * NUM_TEST,
        "changed_share": 0.5,
    }


# --------------------------------------------------------------------------------------------------------------- workers

Outcome = Callable[[Job], Record]


def fails_sometimes(share: float, salt: str = "") -> Outcome:
    """Jobs of which about that share end badly, always the same ones."""

    def outcome(job: Job) -> Record:
        if noise(job.key, salt) < share:
            return fails(job, "failed" if noise(job.key, "how") < 0.5 else "diverged")
        return record_of(job)

    return outcome


@dataclass
class Trace:
    """What happened: jobs in the order in which they were handed out, and in which they ended."""

    agenda: Agenda
    started: list[Job] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The keys of what was handed out, in order."""
        return [job.key for job in self.started]

    @property
    def trials(self) -> list[TrialSpec]:
        """The trials that were handed out, in order."""
        return [job.spec for job in self.started if isinstance(job.spec, TrialSpec)]

    @property
    def in_flight(self) -> set[str]:
        """The keys of what was handed out and did not end."""
        return {job.key for job in self.started} - {job.key for job in self.ended}


class Pool:
    """Workers that complain of a job that comes before its time."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.running: list[Job] = []
        self._memos_tried: set[str] = set()

    def start(self) -> Job | None:
        """A job to run, or None."""
        job = self.agenda.next()
        if job is None:
            return None
        assert job.key not in {other.key for other in self.running}, "handed out while it runs"
        if isinstance(job.spec, TrialSpec):
            assert not self.agenda.wants(job.spec.original.key), "a trial before its original"
            self._check_memo(job.spec)
        self.running.append(job)
        return job

    def end(self, job: Job, record: Record) -> None:
        """The job's record is there."""
        self.running.remove(job)
        if isinstance(job.spec, TrialSpec):
            self._memos_tried.add(memo_group(job.spec) or "none")
        self.agenda.write(record).result()
        self.agenda.complete(record)

    def _check_memo(self, spec: TrialSpec) -> None:
        group = memo_group(spec)
        if group is not None and group not in self._memos_tried:
            groups = {memo_group(job.spec) for job in self.running if isinstance(job.spec, TrialSpec)}
            assert group not in groups, "two trials compute one memo"


def play(
    agenda: Agenda, *, workers: int = 1, seed: int = 0, kill_after: int | None = None, outcome: Outcome = record_of
) -> Trace:
    """Run an agenda to its end, or until so many jobs have ended: what runs then is lost. The seed draws who ends next."""
    rng, pool, trace = random.Random(seed), Pool(agenda), Trace(agenda)
    while not agenda.done:
        while len(pool.running) < workers and (job := pool.start()) is not None:
            trace.started.append(job)
        assert pool.running, f"nothing runs and nothing is handed out, but {agenda.num_open} jobs are open"
        if len(trace.ended) == kill_after:
            return trace
        job = rng.choice(pool.running)
        pool.end(job, outcome(job))
        trace.ended.append(job)
    assert agenda.next() is None
    return trace


def agenda_of(made: Plan, journal: Any, *, cached: bool = True, retry_failed: bool = False, lacking: Any = ()) -> Agenda:
    """The agenda of a plan. cached: whether originals of which there is a record are still in the store."""

    def is_stored(key: str) -> bool:
        record = journal.known.originals.get(key)
        return cached and record is not None and record.ok

    return Agenda(made, journal, original_cached=is_stored, retry_failed=retry_failed, lacking=lacking)


def run(made: Plan, known: Known | None = None, *, cached: bool = True, retry_failed: bool = False, **how: Any):
    """What is known after running a plan in memory, and how it went."""
    journal = ReadOnlyJournal(known or Known())
    trace = play(agenda_of(made, journal, cached=cached, retry_failed=retry_failed), **how)
    return journal.known, trace


class Killed(BaseException):
    """The driver died."""


class MortalJournal:
    """A ledger whose process dies at a record, before that is on the disk or just after."""

    def __init__(self, ledger: Ledger, lives: int, *, written: bool) -> None:
        self._ledger, self._lives, self._written = ledger, lives, written
        self.known = ledger.known

    def append(self, record: Record | PointRecord) -> None:
        """Write the record and take it in, or die."""
        self.write(record)
        self.known.add(record)

    def write(self, record: Record | PointRecord, file: evidence.File | None = None) -> Future[None]:
        """Write the record, or die."""
        if self._lives == 0 and not self._written:
            raise Killed
        written = self._ledger.write(record, file)
        if self._lives == 0:
            raise Killed
        self._lives -= 1
        return written


def points_of(known: Known, made: Plan) -> list[list[dict[str, Any]]]:
    """The hyperparameters of the points of each of the plan's studies, by index."""
    by_study = [known.points.get(study.key, {}) for study in made.studies]
    return [[points[index].hyperparameters for index in range(len(points))] for points in by_study]
