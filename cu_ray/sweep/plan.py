"""What a sweep consists of: original models, studies, points, trials. Pure: nothing is read or started here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cu_ray.config import INDEPENDENT_SAMPLERS, MethodPlan, Options, SearchSection, Space, Sweep
from cu_ray.identity import key_of
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.plugins import describe, name_of
from cu_ray.stages.poison import num_held_out_of
from cu_ray.types import Cost, Dataset, OriginalSpec, Setting, Sizes, TrialSpec

Hyperparameters = Mapping[str, Any]

SEARCH_IDENTITY = ("objective", "scope", "aggregate", "seeds", "lag", "holds_out")


@dataclass(frozen=True)
class StudySpec:
    """One hyperparameter search: a method on settings that differ in their seed only, on one deletion fraction or on several.

    A method that does not look at the deletion set has no fractions: one trial a seed stands for all. With a neighbour,
    the study on the next higher fraction, its first point is the best of that one.
    """

    settings: tuple[Setting, ...]  # by seed, the sweep's first seed first
    detection: Any
    fractions: tuple[float, ...]
    method: MethodPlan
    search: SearchSection
    unlearning_seeds: int = 1
    neighbour: StudySpec | None = None
    also: tuple[float, ...] = ()  # further fractions at which the deletion set is the same, and so the study

    @functools.cached_property
    def key(self) -> str:
        """The study key: everything but the budget that determines its points and what they are scored by."""
        # the neighbour's budget too: with another one its best point may be another
        after = {"neighbour": [self.neighbour.key, self.neighbour.method.budget]} if self.neighbour else {}
        return key_of({**self._identity, **after, "seeds": [setting.seed for setting in self.search_settings]})

    @functools.cached_property
    def sampling_key(self) -> str:
        """What its sampler is seeded by: not the seeds, so that points which no result has shaped stay when seeds are added."""
        after = {"neighbour": [self.neighbour.sampling_key, self.neighbour.method.budget]} if self.neighbour else {}
        return key_of({**self._identity, **after})

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        setting = self.settings[0].identity
        return {
            **{name: setting[name] for name in setting if name != "seed"},
            "detection": describe(self.detection, locations=False),
            "deletion_sizes": [self.size(fraction) for fraction in self.fractions],
            "method": [name_of(self.method.cls), self.method.cls.version],
            "fixed": dict(self.method.fixed),
            "space": {name: space.describe() for name, space in self.method.space.items()},
            "points": None if self.method.points is None else [dict(point) for point in self.method.points],
            "keep": self.method.keep,
            "sampler": self.method.sampler if self.searched else None,
            "search": {name: getattr(self.search, name) for name in SEARCH_IDENTITY},
        }

    @property
    def searched(self) -> bool:
        """Whether there is anything to sample."""
        return bool(self.method.space) and self.method.points is None

    @property
    def adaptive(self) -> bool:
        """Whether later points depend on the results of earlier ones."""
        return self.searched and self.method.sampler not in INDEPENDENT_SAMPLERS

    @property
    def flattered(self) -> bool:
        """Whether its objective had a say in which points were drawn, so that a comparison with other rules is biased."""
        return self.adaptive or self.neighbour is not None

    @property
    def num_objectives(self) -> int:
        """How many numbers a point is judged by while searching: nsga2 weighs a rule's two parts against one another."""
        return 2 if self.searched and self.method.sampler == "nsga2" else 1

    @property
    def search_settings(self) -> tuple[Setting, ...]:
        """The settings whose seeds score a point."""
        return self.settings[:1] if self.search.seeds == "first" and self.method.has_choice else self.settings

    @property
    def confirm_settings(self) -> tuple[Setting, ...]:
        """The settings on which the best points are confirmed, and which alone are then reported."""
        return self.settings[len(self.search_settings) :]

    @property
    def report_settings(self) -> tuple[Setting, ...]:
        """The settings whose trials are reported: those that had no part in the choice, where there are any."""
        return self.confirm_settings or self.settings

    def size(self, fraction: float) -> int:
        """How many samples the deletion set has at a fraction."""
        found: int = self.detection.num_found(fraction, self.settings[0].manipulation.size)
        return found

    @property
    def repeatable(self) -> bool:
        """Whether its trials have random choices of their own."""
        return bool(self.method.cls.uses_deletion_set)

    @property
    def kept_by_test_labels(self) -> bool:
        """Whether its models, or the originals that they come from, are those that did best on the test set as they learned."""
        return any(keep != "last" for keep in (self.method.keep, self.settings[0].train.keep))

    def repetitions(self, hyperparameters: Hyperparameters) -> list[TrialSpec]:
        """A point's trials on the first reported setting under the further unlearning seeds."""
        setting = self.report_settings[0]
        return [
            replace(self.trial(hyperparameters, setting, fraction), unlearning_seed=seed)
            for seed in range(1, self.unlearning_seeds if self.repeatable else 1)
            for fraction in self.fractions
        ]

    def original(self, setting: Setting) -> OriginalSpec:
        """The original model that a trial on this setting starts from."""
        if setting.seed not in self._originals:
            self._originals[setting.seed] = OriginalSpec.for_method(setting, self.method.cls)
        return self._originals[setting.seed]

    def trial(
        self, hyperparameters: Hyperparameters, setting: Setting, fraction: float | None, *, held_out: bool = False
    ) -> TrialSpec:
        """The trial of a point on one setting and fraction."""
        point = tuple((name, type(value), value) for name, value in hyperparameters.items())
        which = (point, setting.seed, fraction, held_out)
        if which not in self._trials:
            size = 0 if fraction is None else self.size(fraction)
            method = self.method.cls(**hyperparameters)
            self._trials[which] = TrialSpec(self.original(setting), self.detection, size, method, self.method.keep, held_out)
        return self._trials[which]

    # asked for again and again, by the agenda, the estimate and the tables: a spec computes its key once

    @functools.cached_property
    def _originals(self) -> dict[int, OriginalSpec]:
        return {}

    @functools.cached_property
    def _trials(self) -> dict[tuple[Any, ...], TrialSpec]:
        return {}

    def trials(self, hyperparameters: Hyperparameters, settings: Iterable[Setting]) -> list[TrialSpec]:
        """All trials of a point on these settings: one a fraction, and one with a part held out where that is asked for."""
        specs = []
        for setting in settings:
            for fraction in self.fractions or (None,):
                specs.append(self.trial(hyperparameters, setting, fraction))
                if self.holds_out_at(fraction):
                    specs.append(self.trial(hyperparameters, setting, fraction, held_out=True))
        return specs

    def holds_out_at(self, fraction: float | None) -> bool:
        """Whether points are also run with a part of this deletion set held out."""
        return self.search.holds_out and fraction is not None and num_held_out_of(self.size(fraction)) > 0


@dataclass(frozen=True)
class Plan:
    """A sweep's studies, in the order of its file, and how many training and test images each data set has."""

    name: str
    studies: tuple[StudySpec, ...]
    num_images: Mapping[str, tuple[int, int]]  # by content hash
    fractions: tuple[float, ...]
    evidence: bool = False  # whether it is kept

    def originals(self) -> list[OriginalSpec]:
        """The original models, each once."""
        specs = (study.original(setting) for study in self.studies for setting in study.settings)
        return list({spec.key: spec for spec in specs}.values())


@dataclass(frozen=True)
class Source:
    """What a plan must know of a data set: its identity and its sizes."""

    content_hash: str
    num_train: int
    num_test: int

    @classmethod
    def of(cls, dataset: Dataset) -> Source:
        """That of a loaded data set."""
        return cls(dataset.content_hash, len(dataset.train), len(dataset.test))

    @classmethod
    def expected(cls, dataset: Any) -> Source:
        """That of a data set plug-in whose images are not here: its content is not known, so nothing counts as done."""
        facts = dataset.facts()
        return cls(f"{name_of(dataset)}, not loaded", facts.num_train, facts.num_test)


def make(sweep: Sweep, sources: Mapping[Any, Source], weights: str | None = None) -> Plan:
    """The plan of a sweep that says its precisions itself. weights: the checksum of those that it gives."""
    studies: list[StudySpec] = []
    for dataset, model, train in _combinations(sweep):
        for manipulation in [each for owner, each in sweep.manipulations if owner == dataset]:
            settings = tuple(
                Setting(dataset, sources[dataset].content_hash, model, manipulation, train, seed, weights=weights)
                for seed in sweep.seeds
            )
            studies += _controls(sweep, settings)
            for detection in sweep.detections:
                for method in sweep.methods:
                    searches = [
                        _search(sweep, StudySpec(shared, detection, (), method, sweep.search, sweep.controls.unlearning_seeds))
                        for shared in _shared(sweep, method, settings)
                    ]
                    studies += [study for by_fraction in zip(*searches, strict=True) for study in by_fraction]
    sizes = {each.content_hash: (each.num_train, each.num_test) for each in sources.values()}
    return Plan(sweep.name, _each_once(studies), sizes, sweep.fractions, sweep.evidence)


def _each_once(studies: Iterable[StudySpec]) -> tuple[StudySpec, ...]:
    """The studies, those that are one as one: where a detection finds the same, whatever the deletion fraction."""
    unique: dict[str, StudySpec] = {}
    for study in studies:
        first = unique.setdefault(study.key, study)
        if further := set(study.fractions) - {*first.fractions, *first.also}:
            unique[study.key] = replace(first, also=(*first.also, *sorted(further)))
    return tuple(unique.values())


def _controls(sweep: Sweep, settings: tuple[Setting, ...]) -> Iterator[StudySpec]:
    """A study for each control that the settings' manipulation has: its original model as it is."""
    manipulation, nothing_done = settings[0].manipulation, MethodPlan(NoUnlearning, {}, {}, None, "grid", 1, "last")
    for control in sweep.controls.originals:
        if manipulation.truth_known and (control == "never_manipulated" or manipulation.has_trigger):
            less = tuple(replace(setting, control=control, weights=None) for setting in settings)
            yield StudySpec(less, sweep.detections[0], (), nothing_done, sweep.search)


def _combinations(sweep: Sweep) -> Iterator[tuple[Any, Any, Any]]:
    for dataset in sweep.datasets:
        for model in sweep.models:
            for train in sweep.trains:
                yield dataset, model, train


def _shared(sweep: Sweep, method: MethodPlan, settings: tuple[Setting, ...]) -> list[tuple[Setting, ...]]:
    """The settings that a study takes together: one by one where each seed is searched for itself."""
    return [(setting,) for setting in settings] if sweep.search.seeds == "each" and method.has_choice else [settings]


def _search(sweep: Sweep, study: StudySpec) -> list[StudySpec]:
    """The study for each deletion fraction, or one for all of them, in the order of the sweep's fractions."""
    if not study.method.cls.uses_deletion_set:
        return [study]
    if sweep.search.scope == "across_fractions":
        return [replace(study, fractions=sweep.fractions)]
    warm = sweep.search.warm_start == "neighbour" and study.searched and study.method.sampler != "grid"
    by_fraction: dict[float, StudySpec] = {}
    for fraction in sorted(sweep.fractions, reverse=True):
        neighbour = list(by_fraction.values())[-1] if warm and by_fraction else None
        by_fraction[fraction] = replace(study, fractions=(fraction,), neighbour=neighbour)
    return [by_fraction[fraction] for fraction in sweep.fractions]


def typical_point(study: StudySpec) -> Hyperparameters:
    """A point of the study where none is known yet: fixed values and the middle of every range."""
    if study.method.points is not None:
        return study.method.points[0]
    return {**study.method.fixed, **{name: _middle(space) for name, space in study.method.space.items()}}


def trial_cost(spec: TrialSpec, num_train: int) -> Cost:
    """What the trial takes alone, as its method declares it."""
    cost: Cost = spec.method.cost(_sizes(spec, num_train))
    return cost


def memo_cost(spec: TrialSpec, num_train: int) -> Cost:
    """What of that goes into memos, which others of its group need not spend."""
    cost: Cost = spec.method.memo_cost(_sizes(spec, num_train))
    return cost


def _sizes(spec: TrialSpec, num_train: int) -> Sizes:
    held_out = num_held_out_of(spec.deletion_size) if spec.held_out else 0
    recipe = spec.original.setting.train
    return Sizes(spec.deletion_size - held_out, num_train - spec.deletion_size, recipe.batch_size, recipe.steps)


def memo_group(spec: TrialSpec) -> str | None:
    """What the trials that share a method's memos have in common; None for methods that remember nothing."""
    fields = spec.method.memo_fields
    if fields is None:
        return None
    shared = {name: getattr(spec.method, name) for name in fields}
    identity = [spec.original.key, spec.deletion_identity, name_of(spec.method), spec.method.version, shared]
    return key_of([*identity, spec.repetition] if spec.repetition else identity)


def num_memos(method: MethodPlan) -> int:
    """How many memos its points need on one deletion set, at the most: one but where a field that memos depend on is searched."""
    fields = method.cls.memo_fields or ()
    points = method.points or (method.grid if method.sampler == "grid" else None)
    if points is not None:
        return len({tuple(point.get(name) for name in fields) for point in points})
    searched = [space for name, space in method.space.items() if name in fields]
    choices = [len(space.values) if isinstance(space, Options) else method.budget for space in searched]
    return min(math.prod(choices), method.budget)


def _middle(space: Space) -> Any:
    if isinstance(space, Options):
        return space.values[len(space.values) // 2]
    middle = (space.low * space.high) ** 0.5 if space.log else (space.low + space.high) / 2
    return round(middle) if space.integer else middle
