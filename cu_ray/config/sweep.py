"""A sweep, checked: what its file says, section by section, and where its results and its scratch files lie."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cu_ray.errors import FieldFault, UserError
from cu_ray.identity import key_of
from cu_ray.places import Folder, Place, at
from cu_ray.plugins import Bound, Choices
from cu_ray.selection import RULES, Rule
from cu_ray.types import CONTROLS, TrainRecipe

SAMPLERS = ("tpe", "random", "qmc", "gp", "nsga2", "grid")
INDEPENDENT_SAMPLERS = ("random", "qmc", "grid")  # a point does not depend on the results of others
TRACKERS = ("mlflow", "tensorboard", "wandb")
STORAGE_VARIABLE = "CU_RAY_STORAGE"
SCRATCH = "~/.cache/cu-ray/scratch"
MOST_SEED = 2**63 - 1  # what tables can hold
SEEDS = "integers, not negative, below 2^63"

Value = Any


@dataclass(frozen=True)
class Span:
    """A range to search: from low to high, both included."""

    low: float
    high: float
    log: bool
    integer: bool

    def describe(self) -> list[Any]:
        """For keys: its kind and its ends."""
        return ["int" if self.integer else "float", self.low, self.high, self.log]


@dataclass(frozen=True)
class Options:
    """Values to choose from."""

    values: tuple[Value, ...]

    def describe(self) -> list[Any]:
        """For keys: its kind and its values."""
        return ["options", *self.values]


Space = Span | Options


@dataclass(frozen=True)
class MethodPlan:
    """One method of a sweep: what is fixed, what is searched and how; or an explicit list of points."""

    cls: type[Any]
    fixed: Mapping[str, Value]
    space: Mapping[str, Space]
    points: tuple[Mapping[str, Value], ...] | None
    sampler: str
    trials: int
    keep: str

    @property
    def has_choice(self) -> bool:
        """Whether there are points to choose among, whatever the budget."""
        return bool(self.space) if self.points is None else len(self.points) > 1

    @functools.cached_property
    def budget(self) -> int:
        """How many points its study has."""
        if self.points is not None:
            return len(self.points)
        if not self.space:
            return 1
        return len(self.grid) if self.sampler == "grid" else self.trials

    @functools.cached_property
    def grid(self) -> list[dict[str, Value]]:
        """All combinations of the options, the last hyperparameter changing fastest."""
        values = [space.values for space in self.space.values() if isinstance(space, Options)]
        return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*values)]


@dataclass(frozen=True)
class SearchSection:
    """How hyperparameters are searched."""

    sampler: Annotated[str, Choices(SAMPLERS)] = "tpe"
    trials: Annotated[int, Bound(low=1)] = 50
    objective: Annotated[str, Choices(tuple(RULES))] = "oracle_validation"
    scope: Annotated[str, Choices(("per_fraction", "across_fractions"))] = "per_fraction"
    aggregate: Annotated[str, Choices(("mean", "min"))] = "mean"
    seeds: Annotated[str, Choices(("first", "all", "each"))] = "first"
    lag: Annotated[int, Bound(low=1)] = 4
    warm_start: Annotated[str, Choices(("none", "neighbour"))] = "none"
    defender: bool = False  # also run each point with a part of the deletion set held out, so that this rule can choose

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that are asked for: that of the objective first."""
        return tuple(RULES[name] for name in dict.fromkeys([self.objective, *(["defender"] if self.defender else [])]))

    @property
    def holds_out(self) -> bool:
        """Whether each point is also run with a part of the deletion set held out."""
        return self.defender or self.objective == "defender"


@dataclass(frozen=True)
class RuntimeSection:
    """Where and with what a sweep runs: never part of a key."""

    gpus_per_trial: Annotated[float | str, Choices(("auto",)), Bound(low=0.001, high=1)] = "auto"  # a trial is on one device
    device: Annotated[str, Choices(("auto", "cpu", "cuda"))] = "auto"
    workers: Annotated[int | None, Bound(low=1)] = None
    output: str = "results"
    storage: str = "~/.cache/cu-ray"  # where neither the file nor the environment names one: see `default_storage`
    address: str | None = None
    max_failures: Annotated[int, Bound(low=1)] = 10  # of one kind, after which a method is set aside
    trial_time_limit: str | None = "24h"  # of one trial or original: what takes longer hangs, and has failed
    tracker: Annotated[str | None, Choices(TRACKERS)] = None  # is told of each trial as it ends

    def __post_init__(self) -> None:
        """Raise FieldFault where the time limit is none, or a place cannot be one."""
        try:
            seconds_of(self.trial_time_limit, "a time limit")
        except UserError as error:
            raise FieldFault("trial_time_limit", f"{error}, or null for none") from error
        if self.address == "":
            raise FieldFault("address", "'' is not allowed. Allowed: the address of a Ray, like auto or 10.0.0.1:6379")
        for name in ("output", "storage"):
            if not getattr(self, name):
                raise FieldFault(name, "'' is not allowed. Allowed: a folder or a URI")
            try:
                at(getattr(self, name))
            except UserError as error:
                raise FieldFault(name, str(error)) from error

    @property
    def trial_seconds(self) -> float:
        """The time limit of one trial."""
        return seconds_of(self.trial_time_limit)


def default_storage() -> str:
    """Where originals and memos lie where a sweep file does not say it: what machines share is no matter of a sweep."""
    return os.environ.get(STORAGE_VARIABLE) or RuntimeSection.storage


@dataclass(frozen=True)
class ControlsSection:
    """What is run beside the methods, to compare with: originals that are manipulated less, repetitions of a trial."""

    never_manipulated: bool = False  # the original trained on the same data, not manipulated: the ceiling
    trigger_only: bool = False  # the original trained on images with the trigger and their true labels
    unlearning_seeds: Annotated[int, Bound(low=1, high=1000)] = 1  # each study's best trial is run under so many: the noise floor

    @property
    def originals(self) -> tuple[str, ...]:
        """The controls that train originals of their own."""
        return tuple(name for name in CONTROLS if getattr(self, name))


@dataclass(frozen=True)
class OriginalSection:
    """An original model that was trained elsewhere."""

    weights: str | None = None  # a safetensors file of its state dict

    @property
    def path(self) -> Path | None:
        """Where the weights lie; None where originals are trained here."""
        return None if self.weights is None else Path(self.weights).expanduser()


@dataclass(frozen=True)
class Sweep:
    """A whole sweep file, checked."""

    name: str
    source: str
    datasets: tuple[Any, ...]
    models: tuple[Any, ...]
    manipulations: tuple[tuple[Any, Any], ...]  # (data set, manipulation settled for it)
    trains: tuple[TrainRecipe, ...]
    detections: tuple[Any, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[MethodPlan, ...]
    search: SearchSection
    controls: ControlsSection
    original: OriginalSection
    runtime: RuntimeSection
    text: str = ""  # the file with what it extends, restricted to what was asked for, further seeds included
    evidence: bool = False  # whether the predictions on the test images are kept
    shard: tuple[int, int] = (1, 1)  # which part of it, and of how many

    @property
    def folder(self) -> Place:
        """Where its ledger and tables are."""
        return at(self.runtime.output) / self.name

    @property
    def scratch(self) -> Path:
        """Where what stays on this machine lies."""
        return scratch_of(self.folder)

    @property
    def plugin_classes(self) -> list[type[Any]]:
        """The classes of its plug-ins."""
        plugins = (*self.datasets, *self.models, *(each for _, each in self.manipulations), *self.detections)
        return [*map(type, plugins), *(method.cls for method in self.methods)]

    @functools.cached_property  # a working directory may go while the sweep runs
    def import_path(self) -> list[Path]:
        """Where plug-ins that are not installed are looked for: in the working directory, then beside the sweep file."""
        return [Path.cwd(), Path(self.source).resolve().parent]


def scratch_of(folder: Place) -> Path:
    """Where logs and the Optuna journal of a sweep lie: with its results, but on this machine where these are at a URI."""
    if isinstance(folder, Folder):
        return folder.path
    return Path(SCRATCH).expanduser() / key_of(str(folder))[:16] / folder.name


def seconds_of(time_limit: str | None, called: str = "--time-limit") -> float:
    """The seconds of a time like 8h, 90m, 1h30m or 45s; infinitely many for None. Raises UserError for anything else."""
    if time_limit is None:
        return math.inf
    found = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", str(time_limit))
    if not time_limit or found is None:
        raise UserError(f"{called} {time_limit}: hours, minutes and seconds are needed, like 8h, 90m, 1h30m or 45s")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds
