"""What a plan comes to and what of it is done: `cu-ray plan` and the display of a running sweep."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from cu_ray.plugins import name_of
from cu_ray.sweep.agenda import Agenda, StudyState
from cu_ray.sweep.canaries import Spec
from cu_ray.sweep.ledger import Known, PointRecord, evidence, finished
from cu_ray.sweep.pace import Load, Pace, Work, work_of
from cu_ray.sweep.plan import Plan, memo_cost, memo_group, num_memos, trial_cost, typical_point
from cu_ray.types import Cost, OriginalSpec, Record, Setting, TrialSpec

POINTS_CHOSEN = 2  # by all rules together, of a study with a choice: 1.5 to 2.3 in the tables of docs/


@dataclass(frozen=True)
class Estimate:
    """Counts of a plan. Images are what is still to be run: training and unlearning; a memo counts once.

    A study that is still to be searched counts with two confirmed points, as its rules choose different ones.
    `seconds` is the work of one worker, evaluation included, from the pace of what is done or was measured; None where nothing is
    known. `hours` are what that takes of GPUs, each worker its share of one; on CPUs of workers. `evidence_bytes` are about what
    the evidence of that takes on the disk, 0 where none is kept.
    """

    originals: int
    originals_done: int
    studies: int
    trials: int
    trials_done: int
    trials_failed: int
    images_forward: int
    images_backward: int
    seconds: float | None
    hours: float | None
    evidence_bytes: int
    by_method: dict[str, int]
    chain_seconds: float  # the longest of the chains of trials that must follow one another; 0 where nothing is known
    work: Work = dataclasses.field(repr=False)  # what is still to be run
    pace: Pace = dataclasses.field(repr=False)  # of what is done

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.repr}


class ReadOnlyJournal:
    """A journal that keeps what it is told to itself."""

    def __init__(self, known: Known) -> None:
        self.known = Known(dict(known.originals), dict(known.trials), {key: dict(points) for key, points in known.points.items()})

    def append(self, record: Record | PointRecord) -> None:
        """Take the record in; write nothing."""
        self.known.add(record)

    def write(self, record: Record | PointRecord, file: evidence.File | None = None) -> Future[None]:
        """Write nothing."""
        return finished()


def estimate(plan: Plan, agenda: Agenda, known: Known, behind: Pace | None = None) -> Estimate:
    """The counts of a plan whose agenda has taken in what is known. behind: a pace for what nothing like it is done of."""
    trials: dict[str, TrialSpec] = {}
    to_come: list[Such] = []
    for study in agenda.studies:
        for spec in _known_trials(study, agenda):
            trials[spec.key] = spec
        to_come += trials_to_come(study)
    originals = plan.originals()
    done = {key for key in trials if key in known.trials and not agenda.wants(key)}
    by_method = dict.fromkeys((name_of(study.method.cls) for study in plan.studies), 0)
    for such in [*map(Such, trials.values()), *to_come]:
        by_method[name_of(such.spec.method)] += such.count
    to_run = [Such(spec) for key, spec in trials.items() if agenda.wants(key)]
    to_run += [such for such in to_come if name_of(such.spec.method) not in agenda.set_aside]
    costs: list[tuple[Spec, int, Cost]] = []
    for original in [each for each in originals if agenda.wants(each.key)]:
        costs.append((original, 1, Cost(original.images, original.images) if agenda.trains(original.key) else Cost()))
    parts = _parts_of_bounds(plan, trials, known)
    costs += unlearning_costs(plan, to_run, agenda.remembered, parts)
    pace = Pace(behind)
    for original in [each for each in originals if each.key in known.originals]:
        pace.hear(original, known.originals[original.key])
    for key, spec in [each for each in trials.items() if each[0] in known.trials]:
        pace.hear(spec, known.trials[key])
    work = work_of((pace.likeness(spec), Load(count, cost.passes)) for spec, count, cost in costs)
    took, total = pace.took(work), sum((cost for _, _, cost in costs), Cost())
    return Estimate(
        originals=len(originals),
        originals_done=sum(spec.key in known.originals for spec in originals),
        studies=len(plan.studies),
        trials=sum(by_method.values()),
        trials_done=len(done),
        trials_failed=sum(not known.trials[key].ok for key in done),
        images_forward=total.forward,
        images_backward=total.backward,
        seconds=None if took is None else took.seconds,
        hours=None if took is None else took.gpu_seconds / 3600,
        evidence_bytes=_evidence_bytes(plan, agenda, to_run, originals) if plan.evidence else 0,
        by_method=by_method,
        chain_seconds=max((_chain_seconds(study, agenda, pace, parts) for study in agenda.studies), default=0.0),
        work=work,
        pace=pace,
    )


def _chain_seconds(study: StudyState, agenda: Agenda, pace: Pace, parts: Mapping[str, float]) -> float:
    """About how long the trials of a study take that must follow one another, with the studies that begin where it ends."""
    method = name_of(study.spec.method.cls)
    if study.confirmed or method in agenda.set_aside:
        return 0.0
    trial = study.spec.trials(typical_point(study.spec), study.spec.search_settings)[0]
    num_train, _ = agenda.plan.num_images[trial.original.setting.content_hash]
    alone = trial_cost(trial, num_train) - memo_cost(trial, num_train)
    load = Load(1, alone.passes * parts.get(method, 1.0))
    return agenda.rounds(study, len(study.results)) * pace.longest({pace.likeness(trial): load})


def _parts_of_bounds(plan: Plan, trials: Mapping[str, TrialSpec], known: Known) -> dict[str, float]:
    """Of methods whose cost is a bound: the part of it that those of these trials took that are done."""
    taken, bounds = Counter[str](), Counter[str]()
    for key, spec in trials.items():
        record = known.trials.get(key)
        if spec.method.cost_is_bound and record is not None and record.ok:
            num_train, _ = plan.num_images[spec.original.setting.content_hash]
            name, memo = name_of(spec.method), memo_cost(spec, num_train).passes
            taken[name] += Cost(record.facts["images_forward"], record.facts["images_backward"]).passes - memo
            bounds[name] += trial_cost(spec, num_train).passes - memo
    return {name: taken[name] / bounds[name] for name in bounds if bounds[name]}


def pace_of_others(agenda: Agenda, known: Known) -> Pace:
    """That of what else a ledger has than what the agenda knows of: of other seeds, or from before a change."""
    pace, own = Pace(), {trial.key for study in agenda.studies for trial in _known_trials(study, agenda)}
    own |= {original.key for original in agenda.plan.originals()}
    for record in [record for key, record in {**known.originals, **known.trials}.items() if key not in own]:
        kind = OriginalSpec if record.kind == "original" else TrialSpec
        with contextlib.suppress(Exception):  # of plug-ins that are not here, or are others by now
            pace.hear(kind.build(record.spec), record)
    return pace


def _known_trials(study: StudyState, agenda: Agenda) -> list[TrialSpec]:
    spec = study.spec
    specs = [trial for point in study.points for trial in spec.trials(point, spec.search_settings)]
    specs += [trial for point in agenda.confirmed_points(study) for trial in spec.trials(point, spec.confirm_settings)]
    return specs + agenda.repetitions(study)


@dataclass(frozen=True)
class Such:
    """So many trials like this one, which need at most so many memos on its deletion set."""

    spec: TrialSpec
    count: int = 1
    memos: int = 1


def trials_to_come(study: StudyState) -> list[Such]:
    """Typical trials of the points that a study has not drawn yet, and how many of each there will be."""
    spec, point = study.spec, typical_point(study.spec)
    to_sample = spec.method.budget - len(study.points)
    memos, chosen = min(num_memos(spec.method), to_sample), min(spec.method.budget, POINTS_CHOSEN)
    searched = [Such(trial, to_sample, memos) for trial in spec.trials(point, spec.search_settings) if to_sample]
    confirming = [] if study.confirmed else spec.trials(point, spec.confirm_settings)
    confirmed = [Such(trial, chosen, min(num_memos(spec.method), chosen)) for trial in confirming]
    repeated = [Such(trial) for trial in spec.repetitions(point) if not study.confirmed]
    return searched + confirmed + repeated


def unlearning_costs(
    plan: Plan, trials: Iterable[Such], remembered: Collection[str] = (), parts: Mapping[str, float] | None = None
) -> Iterator[tuple[TrialSpec, int, Cost]]:
    """The trials and what so many of each take, a memo once where it is not among those remembered; their evaluation apart.

    parts: by method, the part of what follows its memo that is counted, where that is a bound.
    """
    memo_groups = set(remembered)
    for such in trials:
        num_train, _ = plan.num_images[such.spec.original.setting.content_hash]
        group, alone, memo = memo_group(such.spec), trial_cost(such.spec, num_train), memo_cost(such.spec, num_train)
        computed = such.memos if such.memos > 1 else int(group not in memo_groups)
        after = (alone - memo) * such.count
        part = (parts or {}).get(name_of(such.spec.method), 1.0)
        yield such.spec, such.count, Cost(round(after.forward * part), round(after.backward * part)) + memo * computed
        if group is not None:
            memo_groups.add(group)


def _evidence_bytes(plan: Plan, agenda: Agenda, trials: Iterable[Such], originals: Iterable[OriginalSpec]) -> int:
    counted = [(such.spec.original.setting, such.count) for such in trials]
    counted += [(spec.setting, 1) for spec in originals if agenda.wants(spec.key)]
    return sum(count * _bytes_of_one(plan, setting) for setting, count in counted)


def _bytes_of_one(plan: Plan, setting: Setting) -> int:
    num_views = 2 if setting.manipulation.has_trigger else 1
    num_classes = len(setting.dataset.facts().class_names)
    return evidence.num_bytes(plan.num_images[setting.content_hash][1], num_classes, num_views=num_views)
