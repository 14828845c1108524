"""Which trainings and trials of a plan are measured before a run, so that all others are known by them. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from cu_ray.config import Options, Space
from cu_ray.errors import FieldFault
from cu_ray.identity import canonical_json, key_of, mapping_of
from cu_ray.plugins import describe, name_of
from cu_ray.sweep.plan import Plan, StudySpec, typical_point
from cu_ray.types import LEARNING_VERSION, OriginalSpec, Setting, TrialSpec

MEMORY_VERSION = 2  # of this code, raised where trials come to take more or less of a device's memory than before
Spec = OriginalSpec | TrialSpec


def canaries(plan: Plan) -> list[Spec]:
    """The originals and trials to measure, each once: of each kind those whose hyperparameters may take memory of their own.

    Each has the largest deletion set that the sweep has for it.
    """
    found: dict[str, Spec] = {}
    for spec in _candidates(plan):
        same = key_of([kind_of(spec), shape_of(spec)])
        if same not in found or _deletion_size(found[same]) < _deletion_size(spec):
            found[same] = spec
    return list(found.values())


def kind_of(spec: Spec) -> str:
    """What trials (or originals) have in common that take the same time for an image, and the same memory at the same point.

    Seeds, steps, learning rates and the number of manipulated samples are no part of it.
    """
    original, setting = spec if isinstance(spec, OriginalSpec) else spec.original, setting_of(spec)
    recipe = {name: value for name, value in mapping_of(setting.train).items() if name not in ("steps", "lr")}
    identity: dict[str, Any] = {
        "dataset": setting.content_hash,
        "model": describe(setting.model, locations=False),
        "manipulation": name_of(setting.manipulation),
        "train": recipe,
        "variant": dict(original.variant),
        "learning": LEARNING_VERSION,
    }
    if isinstance(spec, TrialSpec):
        identity |= {"method": [name_of(spec.method), spec.method.version], "keep": spec.keep}
    return key_of(identity)


def canary_key(spec: Spec, device: str) -> str:
    """The key under which the measure of a canary on such a device can be kept."""
    return key_of([MEMORY_VERSION, kind_of(spec), shape_of(spec), _deletion_size(spec), device, metadata.version("torch")])


def setting_of(spec: Spec) -> Setting:
    """The setting of an original or a trial."""
    return spec.setting if isinstance(spec, OriginalSpec) else spec.original.setting


def _candidates(plan: Plan) -> Iterator[Spec]:
    for study in plan.studies:
        if study.settings[0].weights is None:
            yield study.original(study.settings[0])
        yield from demanding_trials(study)


def demanding_trials(study: StudySpec) -> list[TrialSpec]:
    """Trials of a study in which each hyperparameter that may shape the computation is once at each of its ends.

    A rate or a weight, a number that need not be whole, changes the size of no tensor; a number of layers, a batch size or
    a switch may.
    """
    specs = list(_trials_to_weigh(study))
    ends = {name: _ends([shape_of(spec)[name] for spec in specs]) for name in shape_of(specs[0])}
    chosen, seen = list[TrialSpec](), set[str]()
    for spec in specs:
        at_ends = {canonical_json([name, value]) for name, value in shape_of(spec).items() if value in ends[name]}
        if at_ends - seen or not chosen:
            chosen.append(spec)
            seen |= at_ends
    return chosen


def _trials_to_weigh(study: StudySpec) -> Iterator[TrialSpec]:
    """A trial at each given point; or at those where one hyperparameter has another value than the typical one, then there."""
    method, typical = study.method, typical_point(study)
    others = ({**typical, name: each} for name in method.space for each in _values(method.space[name]))
    for point in method.points or [*others, typical]:
        with contextlib.suppress(FieldFault):  # values that do not fit one another: no trial has both
            yield study.trial(point, study.settings[0], max(study.fractions, default=None))


def _values(space: Space) -> tuple[Any, ...]:
    if isinstance(space, Options):
        return space.values
    return (int(space.low), int(space.high)) if space.integer else ()


def _ends(values: list[Any]) -> list[Any]:
    """The smallest and the largest number, and all that is no number."""
    numbers = [each for each in values if _is_whole(each)]
    return [each for each in values if not _is_whole(each) or each in (min(numbers), max(numbers))]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shape_of(spec: Spec) -> dict[str, Any]:
    """The hyperparameters of a trial as far as they may shape its computation."""
    if isinstance(spec, OriginalSpec):
        return {}
    mapping = mapping_of(spec.method, locations=False)
    return {name: "a number" if isinstance(value, float) else value for name, value in mapping.items()}


def _deletion_size(spec: Spec) -> int:
    return spec.deletion_size if isinstance(spec, TrialSpec) else 0
