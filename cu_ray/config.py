"""A sweep file as a `Sweep`: every complaint names file, YAML path, line, what was given, what is allowed, the nearest name.

All faults of a file are reported at once, before any worker starts. Fields and bounds come from the plug-ins' dataclasses;
pydantic checks the types.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from cu_ray import plugins, yaml_file
from cu_ray.errors import ContractBroken, Faults, FieldFault, UserError, did_you_mean
from cu_ray.identity import key_of
from cu_ray.learning.tied_dropout import share_of
from cu_ray.places import Folder, Place, at
from cu_ray.plugins import Bound, Choices, FieldFact
from cu_ray.selection import RULES
from cu_ray.types import CONTROLS, DatasetFacts, TrainRecipe
from cu_ray.yaml_file import YamlFile

SAMPLERS = ("tpe", "random", "qmc", "gp", "nsga2", "grid")
INDEPENDENT_SAMPLERS = ("random", "qmc", "grid")  # a point does not depend on the results of others
MOST_COMBINATIONS = 10_000  # of the values that lists in one mapping give, and of the points of a grid
MOST_INTEGERS_CHECKED = 64  # of a range, when hyperparameters are held against the model
SECTIONS = (
    *("name", "dataset", "model", "manipulation", "train", "original", "detection", "deletion_fractions", "seeds"),
    *("methods", "search", "controls", "evidence", "runtime"),
)
REQUIRED = ("name", "dataset", "model", "manipulation", "methods")
DEFAULTS: dict[str, Any] = {"detection": "uniform", "deletion_fractions": [number / 10 for number in range(1, 11)], "seeds": [0]}
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
TRACKERS = ("mlflow", "tensorboard", "wandb")
MERGED = {"train": 1, "search": 1, "controls": 1, "runtime": 1, "methods": 2}  # in a file that extends another
SCRATCH = "~/.cache/cu-ray/scratch"
OWN = ("name",)  # what a file does not take from one that it extends
EVIDENCE = FieldFact("evidence", bool, False, None, None, None)
RESERVED = ("trials", "points", "sampler", "keep")

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
    def holds_out(self) -> bool:
        """Whether each point is also run with a part of the deletion set held out."""
        return self.defender or self.objective == "defender"


@dataclass(frozen=True)
class RuntimeSection:
    """Where and with what a sweep runs: never part of a key."""

    gpus_per_trial: Annotated[float | str, Choices(("auto",)), Bound(low=0, open_low=True)] = "auto"
    device: Annotated[str, Choices(("auto", "cpu", "cuda"))] = "auto"
    workers: Annotated[int | None, Bound(low=1)] = None
    output: str = "results"
    storage: str = "~/.cache/cu-ray"
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
        for name in ("output", "storage"):
            try:
                at(getattr(self, name))
            except UserError as error:
                raise FieldFault(name, str(error)) from error

    @property
    def trial_seconds(self) -> float:
        """The time limit of one trial."""
        return seconds_of(self.trial_time_limit)


@dataclass(frozen=True)
class ControlsSection:
    """What is run beside the methods, to compare with: originals that are manipulated less, repetitions of a trial."""

    never_manipulated: bool = False  # the original trained on the same data, not manipulated: the ceiling
    trigger_only: bool = False  # the original trained on images with the trigger and their true labels
    unlearning_seeds: Annotated[int, Bound(low=1)] = 1  # each study's best trial is run under so many: the noise floor

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
    def import_path(self) -> list[Path]:
        """Where plug-ins that are not installed are looked for: beside the sweep file, and in the working directory."""
        return [Path(self.source).resolve().parent, Path.cwd()]


def scratch_of(folder: Place) -> Path:
    """Where logs and the Optuna journal of a sweep lie: with its results, but on this machine where these are at a URI."""
    if isinstance(folder, Folder):
        return folder.path
    return Path(SCRATCH).expanduser() / key_of(str(folder))[:16] / folder.name


def load(path: Path | str, *, only: Sequence[str] = (), seeds: Iterable[int] = ()) -> Sweep:
    """The sweep of a YAML file; plug-ins beside it can be imported from now on. Raises UserError (Faults: all in the file).

    only: restrictions like `method=ssd` or `fraction=0.1`; seeds: further seeds besides the file's.
    """
    beside = str(Path(path).resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    return _restricted(_Reader(yaml_file.read(path, merged=MERGED, own=OWN)).sweep(), only, seeds)


def parse(text: str, source: str = "sweep", *, only: Sequence[str] = (), seeds: Iterable[int] = ()) -> Sweep:
    """The sweep of a YAML text, which may extend a file by its path from the current folder. Otherwise as `load`."""
    file = yaml_file.extended(yaml_file.parse(text, source), Path(), merged=MERGED, own=OWN)
    return _restricted(_Reader(file).sweep(), only, seeds)


def with_runtime(sweep: Sweep, **settings: Any) -> Sweep:
    """The sweep with these settings of its runtime, where they are not None, instead of the file's. Raises Faults."""
    given = {name: value for name, value in settings.items() if value is not None}
    reader = _Reader(YamlFile(sweep.source, {"runtime": asdict(sweep.runtime) | given}))
    runtime = reader.section(RuntimeSection, "runtime")
    if reader.faults:
        raise Faults(sweep.source, reader.faults)
    return replace(sweep, runtime=runtime)


def seconds_of(time_limit: str | None, called: str = "--time-limit") -> float:
    """The seconds of a time like 8h, 90m, 1h30m or 45s; infinitely many for None. Raises UserError for anything else."""
    if time_limit is None:
        return math.inf
    found = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", str(time_limit))
    if not time_limit or found is None:
        raise UserError(f"{called} {time_limit}: hours, minutes and seconds are needed, like 8h, 90m, 1h30m or 45s")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def sharded(sweep: Sweep, given: str) -> Sweep:
    """A part of the sweep, like `3/16`, with results in an output folder of its own. Raises UserError for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", given)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard {given}: which part and of how many are needed, like 3/16 (1/16 to 16/16)")
    part = f"shard-{number}-of-{count}"
    uri = "://" in sweep.runtime.output  # in which a '?' may follow the path
    output = str(at(sweep.runtime.output) / part) if uri else f"{sweep.runtime.output.rstrip('/')}/{part}"
    return replace(with_runtime(sweep, output=output), shard=(number, count))


def parse_methods(text: str, source: str, sweep: Sweep) -> MethodPlan:
    """The one method of a YAML text, checked for the models of a sweep."""
    reader = _Reader(yaml_file.parse(text, source))
    reader.file.value = {"methods": reader.file.value}
    plans = reader.methods(reader.file.value["methods"], sweep.search, list(sweep.models))
    if reader.faults or len(plans) != 1:
        raise Faults(source, reader.faults or ["a mapping is needed: one method with its hyperparameters"])
    return plans[0]


class _Reader:
    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.faults: dict[str, None] = {}  # in the order of the complaints
        self.num_complaints = 0  # the same one again counts: what it is about could not be read again

    def fault(self, path: str, message: str) -> Any:
        """Complain, of the same only once; None stands for what could not be read."""
        self.num_complaints += 1
        self.faults[f"{self.file.where(path)}: {message}" if path else message] = None

    def sweep(self) -> Sweep:
        top = self.file.value
        if not isinstance(top, dict):
            raise Faults(self.file.source, ["a sweep file is a mapping: name, dataset, model, manipulation, methods, ..."])
        for key in top:
            if key not in SECTIONS:
                self.fault(key, f"unknown section. {did_you_mean(key, (*SECTIONS, 'extends'))}")
        for key in REQUIRED:
            if key not in top:
                self.fault("", f"the section {key!r} is missing")
        for key in ("dataset", "model", "manipulation", "methods", "detection"):
            if key in top and top[key] is None:
                self.fault(key, "this section is empty")
        train = {} if top.get("train") is None else top["train"]
        name = top.get("name", "sweep")
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            self.fault("name", f"{name!r} is not allowed. Allowed: up to 100 letters, digits, '_', '-' and '.', no path")
        datasets = self.plugins("datasets", "dataset", top.get("dataset"))
        models = self.plugins("models", "model", top.get("model"))
        manipulations = self.plugins("manipulations", "manipulation", top.get("manipulation"))
        detections = self.plugins("detections", "detection", top.get("detection", DEFAULTS["detection"]))
        trains = [
            (path, recipe)
            for path, given in self.fan_out(train, lambda _: plugins.facts(TrainRecipe), "train")
            if (recipe := self.instance(TrainRecipe, given, path)) is not None
        ]
        fractions = self.numbers("deletion_fractions", top.get("deletion_fractions", DEFAULTS["deletion_fractions"]), float)
        for index, fraction in fractions.items():
            if not 0 < fraction <= 1:
                self.fault(f"deletion_fractions[{index}]", f"{fraction!r} is not allowed. Allowed: above 0, at most 1.")
        seeds = self.numbers("seeds", top.get("seeds", DEFAULTS["seeds"]), int)
        search = self.section(SearchSection, "search")
        controls = self.section(ControlsSection, "controls")
        original = self.section(OriginalSection, "original")
        runtime = self.section(RuntimeSection, "runtime")
        evidence = self.value(EVIDENCE, top.get("evidence", EVIDENCE.default), "evidence", EVIDENCE.default)
        methods = self.methods(top.get("methods"), search, [model for _, model in models])
        fitting = {index: each for index, each in fractions.items() if 0 < each <= 1}
        settled, detected = self.settled(datasets, models, manipulations, detections, fitting)
        self.check_controls(controls, [each for _, each in settled])
        self.check_original(original, {"dataset": datasets, "model": models, "manipulation": settled, "train": trains})
        if self.faults:
            raise Faults(self.file.source, self.faults)
        return Sweep(
            name,
            self.file.source,
            tuple(each for _, each in datasets),
            tuple(each for _, each in models),
            tuple(settled),
            tuple(each for _, each in trains),
            tuple(detected),
            tuple(float(f"{each:.12g}") for each in fractions.values()),
            tuple(seeds.values()),
            tuple(methods),
            search,
            controls,
            original,
            runtime,
            yaml.safe_dump(top, sort_keys=False, allow_unicode=True),
            evidence,
        )

    # ------------------------------------------------------------------------------------------------------- sections

    def section(self, cls: type[Any], name: str) -> Any:
        """The dataclass of a section, with its defaults where the file has none."""
        given = self.file.value.get(name)
        return self.instance(cls, {} if given is None else given, name) or cls()

    def plugins(self, kind: str, section: str, given: Any) -> list[tuple[str, Any]]:
        """The plug-ins of a section with their YAML paths: a name, a mapping with a name, or a list of these."""
        if given is None:
            return []
        found = []
        for path, mapping in self.fan_out(given, lambda name: self.plugin_facts(kind, name), section):
            cls = self.plugin_class(kind, mapping.get("name"), path)
            settings = {key: value for key, value in mapping.items() if key != "name"}
            instance = cls and self.instance(cls, settings, path)
            if instance is not None:
                found.append((path, instance))
        return found

    def plugin_class(self, kind: str, name: Any, path: str) -> type[Any] | None:
        try:
            if name is not None:
                return plugins.find(kind, str(name))
            self.fault(path, "the name is missing")
        except UserError as error:
            self.fault(f"{path}.name" if f"{path}.name" in self.file.lines else path, str(error))
        return None

    def plugin_facts(self, kind: str, name: Any) -> dict[str, FieldFact]:
        try:
            return plugins.facts(plugins.find(kind, str(name)))
        except UserError:
            return {}

    def methods(self, given: Any, search: SearchSection, models: list[Any]) -> list[MethodPlan]:
        if given is None:
            return []
        if not isinstance(given, dict) or not given:
            self.fault("methods", "a mapping is needed: method names, each with its hyperparameters ({} for the defaults)")
            return []
        found = []
        for name, settings in given.items():
            path = f"methods.{name}"
            cls = self.plugin_class("methods", name, path)
            if cls is None:
                continue
            if settings is not None and not isinstance(settings, dict):
                self.fault(path, f"{settings!r} is not allowed. A mapping is needed: hyperparameters, {{}} for the defaults.")
                continue
            before = self.num_complaints
            self.check_variant(cls, path)
            plan = self.method(cls, settings or {}, path, search)
            if self.num_complaints == before:
                self.check_combinations(plan, path, models)
                found.append(plan)
        return found

    def method(self, cls: type[Any], given: dict[str, Any], path: str, search: SearchSection) -> MethodPlan:
        facts = plugins.facts(cls)
        options = {key: given[key] for key in RESERVED if key in given}
        settings = {key: value for key, value in given.items() if key not in RESERVED}
        for key in settings:
            if key not in facts:
                self.fault(f"{path}.{key}", f"unknown hyperparameter. {did_you_mean(key, [*facts, *RESERVED])}")
        sampler = self.option(options, "sampler", search.sampler, plugins.facts(SearchSection)["sampler"], path)
        trials = self.option(options, "trials", search.trials, plugins.facts(SearchSection)["trials"], path)
        keep = self.option(options, "keep", "last", plugins.facts(TrainRecipe)["keep"], path)
        fixed: dict[str, Any] = {}
        space: dict[str, Space] = {}
        silenced = _silenced(cls, settings)
        for name, fact in facts.items():
            if name in silenced:
                fixed[name] = None
            elif name in settings:
                entry = self.hyperparameter(fact, settings[name], f"{path}.{name}")
                (space if isinstance(entry, (Span, Options)) else fixed)[name] = entry
            elif fact.search is not None and "points" not in given:
                space[name] = _span_of(fact, fact.search.low, fact.search.high, fact.search.log)
            elif fact.required:
                self.fault(path, f"the hyperparameter {name!r} is missing: {fact.describe()}")
            else:
                fixed[name] = fact.default
        points = self.points(cls, given["points"], fixed, space, path) if "points" in given else None
        if points is None and sampler == "grid":
            for name, each in space.items():
                if isinstance(each, Span):
                    self.fault(f"{path}.{name}", "a grid needs values: give a list, or `num` beside low and high")
            if math.prod(len(each.values) for each in space.values() if isinstance(each, Options)) > MOST_COMBINATIONS:
                self.fault(path, f"a grid of more than {MOST_COMBINATIONS} points")
        if "trials" in given and (points is not None or not space or sampler == "grid"):
            self.fault(f"{path}.trials", "there is nothing to sample here: the points are given, fixed or a whole grid")
        return MethodPlan(cls, fixed, space, points, sampler, trials, keep)

    def option(self, options: dict[str, Any], name: str, default: Any, fact: FieldFact, path: str) -> Any:
        return self.value(fact, options[name], f"{path}.{name}", default) if name in options else default

    def points(
        self, cls: type[Any], given: Any, fixed: dict[str, Any], space: dict[str, Space], path: str
    ) -> tuple[dict[str, Any], ...]:
        if not isinstance(given, list) or not given or not all(isinstance(point, dict) for point in given):
            self.fault(f"{path}.points", "a list of mappings is needed, each a set of hyperparameters")
            return ()
        for name in space:
            self.fault(f"{path}.{name}", "a range beside explicit points: give a value here, or none")
        facts, points = plugins.facts(cls), []
        for index, point in enumerate(given):
            place = f"{path}.points[{index}]"
            values = dict(fixed) | dict.fromkeys(_silenced(cls, point))
            for name, value in point.items():
                if name not in facts:
                    self.fault(f"{place}.{name}", f"unknown hyperparameter. {did_you_mean(name, facts)}")
                else:
                    values[name] = self.value(facts[name], value, f"{place}.{name}", None)
            points.append(values)
        return tuple(points)

    def hyperparameter(self, fact: FieldFact, given: Any, path: str) -> Any:
        """A fixed value, or an Options or a Span."""
        if isinstance(given, dict):
            return self.span(fact, given, path)
        if isinstance(given, list) and not (_is_list(fact) and not any(isinstance(item, list) for item in given)):
            if not given:
                return self.fault(path, "an empty list: give at least one value")
            values = [self.value(fact, item, f"{path}[{index}]", None) for index, item in enumerate(given)]
            different = tuple(dict.fromkeys(values))
            return different[0] if len(different) == 1 else Options(different)
        return self.value(fact, given, path, None)

    def span(self, fact: FieldFact, given: dict[str, Any], path: str) -> Any:
        for key in given:
            if key not in ("low", "high", "log", "num"):
                self.fault(f"{path}.{key}", f"unknown part of a range. {did_you_mean(key, ['low', 'high', 'log', 'num'])}")
        if "low" not in given or "high" not in given:
            return self.fault(path, "a range needs `low` and `high` (and perhaps `log: true`, `num: 10`)")
        ends = [self.value(fact, given[end], f"{path}.{end}", None) for end in ("low", "high")]
        log, num = given.get("log", False), given.get("num")
        if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
            return None
        low, high = ends
        if not isinstance(log, bool):
            return self.fault(f"{path}.log", f"{log!r} is not allowed. Allowed: true or false.")
        if low >= high:
            return self.fault(path, f"low ({low}) must be below high ({high})")
        if log and low <= 0:
            return self.fault(path, f"a logarithmic range must start above 0, not at {low}")
        if not _is_finite(high / low if log else high - low):
            return self.fault(path, f"from {low} to {high} is more than a number can hold")
        if num is None:
            return _span_of(fact, low, high, log)
        if isinstance(num, bool) or not isinstance(num, int) or not 2 <= num <= MOST_COMBINATIONS:
            allowed = f"Allowed: an integer, at least 2 and at most {MOST_COMBINATIONS}."
            return self.fault(f"{path}.num", f"{num!r} is not allowed. {allowed}")
        return Options(tuple(spaced(low, high, num, log=log, integer=_is_integer(fact))))

    # --------------------------------------------------------------------------------------------------------- values

    def fan_out(self, given: Any, facts_of: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Mappings of scalar settings: a list of mappings one by one, a list given to a scalar setting value by value."""
        if isinstance(given, list):
            if not given:
                self.fault(path, "an empty list: give at least one")
            for index, item in enumerate(given):
                yield from self.fan_out(item, facts_of, f"{path}[{index}]")
            return
        mapping = {"name": given} if isinstance(given, str) else given
        if not isinstance(mapping, dict):
            self.fault(path, f"{given!r} is not allowed. A name or a mapping is needed.")
            return
        facts = facts_of(mapping.get("name"))
        alternatives: list[list[Any]] = []
        for key, value in mapping.items():
            many = isinstance(value, list) and not (
                key in facts and _is_list(facts[key]) and not any(isinstance(item, list) for item in value)
            )
            if many and not value:
                self.fault(f"{path}.{key}", "an empty list: give at least one value")
            alternatives.append(value if many else [value])
        if math.prod(map(len, alternatives)) > MOST_COMBINATIONS:
            self.fault(path, f"its lists come to more than {MOST_COMBINATIONS} combinations")
            return
        for combination in itertools.product(*alternatives):
            yield path, dict(zip(mapping, combination, strict=True))

    def instance(self, cls: type[Any], given: Any, path: str) -> Any:
        """The dataclass of these settings, or None after complaining."""
        if not isinstance(given, dict):
            return self.fault(path, f"{given!r} is not allowed. A mapping is needed.")
        facts, values, before = plugins.facts(cls), {}, self.num_complaints
        for key, value in given.items():
            if key in facts:
                values[key] = self.value(facts[key], value, f"{path}.{key}", None)
            else:
                self.fault(f"{path}.{key}", f"unknown setting. {did_you_mean(key, facts)}")
        for name, fact in facts.items():
            if fact.required and name not in given:
                self.fault(path, f"the setting {name!r} is missing: {fact.describe()}")
        if self.num_complaints > before:
            return None
        try:
            return cls(**values)
        except FieldFault as error:
            return self.fault(f"{path}.{error.field}", str(error))

    def value(self, fact: FieldFact, given: Any, path: str, otherwise: Any) -> Any:
        """The value in its declared type, or `otherwise` after complaining."""
        value = _typed(fact.hint, given)
        if value is MISSING:
            self.fault(path, f"{given!r} is not allowed. Allowed: {fact.describe()}.")
            return otherwise
        if fact.choices and isinstance(value, str) and value not in fact.choices.values:
            allowed = [*map(str, fact.choices.values), *([f"a number {fact.bound}"] if fact.bound else [])]
            self.fault(path, f"{given!r} is not allowed. {did_you_mean(value, allowed)}")
            return otherwise
        if isinstance(value, str) and value.startswith("~") and not _has_home(value):
            self.fault(path, f"{given!r} is not allowed: there is no such home folder")
            return otherwise
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not (_is_finite(value) and (fact.bound is None or fact.bound.admits(value))):
            self.fault(path, f"{given!r} is not allowed. Allowed: {fact.describe()}.")
            return otherwise
        return value

    def numbers(self, path: str, given: Any, kind: type[Any]) -> dict[int, Any]:
        """The numbers of a list, or a single one, by their place in it."""
        items = given if isinstance(given, list) else [given]
        if not items:
            self.fault(path, "an empty list: give at least one value")
        values: dict[int, Any] = {}
        for index, item in enumerate(items):
            place = f"{path}[{index}]" if isinstance(given, list) else path
            value = _typed(kind, item)
            if value is MISSING or not _is_finite(value) or value < 0:
                self.fault(place, f"{item!r} is not allowed. Allowed: a number of type {kind.__name__}, not negative.")
            elif value in values.values():
                self.fault(place, f"{item!r} is given twice")
            else:
                values[index] = value
        return values

    # --------------------------------------------------------------------------------------- what must fit one another

    def check_variant(self, cls: type[Any], path: str) -> None:
        """Complain of a method that asks for an original which training cannot make, or is not to make."""
        if cls.original_variant:
            try:
                share_of(cls.original_variant)
            except ContractBroken as problem:
                self.fault(path, str(problem))
        given = self.file.value.get("original")
        if cls.original_variant and isinstance(given, dict) and given.get("weights") is not None:
            asked = ", ".join(cls.original_variant)
            self.fault(path, f"its original is trained otherwise ({asked}), so it cannot be original.weights: leave one out")

    def check_combinations(self, plan: MethodPlan, path: str, models: list[Any]) -> None:
        """Complain of hyperparameters that do not fit one another or a model."""
        for values in plan.points if plan.points is not None else _corners(plan):
            try:
                method = plan.cls(**values)
                for model in models:
                    method.check(model.layers_per_block())
            except FieldFault as error:
                self.fault(f"{path}.{error.field}", str(error))

    def settled(
        self,
        datasets: list[tuple[str, Any]],
        models: list[tuple[str, Any]],
        manipulations: list[tuple[str, Any]],
        detections: list[tuple[str, Any]],
        fractions: dict[int, float],
    ) -> tuple[list[tuple[Any, Any]], list[Any]]:
        """Each manipulation for each data set, class names resolved, and the detections, their files read.

        Complains of what does not fit the images.
        """
        pairs, detected = [], [each for _, each in detections]
        for place, dataset in datasets:
            try:
                facts: DatasetFacts = dataset.facts()
            except UserError as error:
                self.fault(place, str(error))
                continue
            for path, model in models:
                try:
                    model.check(facts.image_shape)
                except UserError as error:
                    self.fault(path, str(error))
            for path, manipulation in manipulations:
                size = manipulation.size
                try:
                    pairs.append((dataset, manipulation.settle(facts)))
                    size = pairs[-1][1].size
                except FieldFault as error:
                    self.fault(f"{path}.{error.field}", str(error))
                if size:
                    self.check_sizes(size, fractions, facts.num_train)
            for index, (path, detection) in enumerate(detections):
                try:
                    detected[index] = detection.settle(facts)  # the same for all data sets that it fits
                except FieldFault as error:
                    self.fault(f"{path}.{error.field}", str(error))
        return pairs, detected

    def check_controls(self, controls: ControlsSection, manipulations: list[Any]) -> None:
        """Complain of controls that none of the manipulations has."""
        if not manipulations:  # these were complained of
            return
        if controls.trigger_only and not any(each.has_trigger for each in manipulations):
            self.fault("controls.trigger_only", "none of the manipulations has a trigger. Allowed: false.")
        if controls.never_manipulated and not any(each.truth_known for each in manipulations):
            self.fault("controls.never_manipulated", "the true labels are not known, so nothing can be trained on them")

    def check_original(self, original: OriginalSection, parts: dict[str, list[Any]]) -> None:
        """Complain of weights that are not there or would have to stand for several originals."""
        if original.path is None:
            return
        if not yaml_file.is_file(original.path):
            self.fault("original.weights", f"there is no file {str(original.path)!r}")
        for name, several in parts.items():
            if len(several) > 1:
                self.fault(
                    "original.weights", f"these are one original's weights, but the file gives {len(several)} under {name!r}"
                )

    def check_sizes(self, size: int, fractions: dict[int, float], num_train: int) -> None:
        """Complain of fractions whose deletion sets are empty, are all there is, or are another fraction's."""
        sizes: dict[int, float] = {}
        for index, fraction in fractions.items():
            found = round(fraction * size)
            problem = None
            if found < 1:
                problem = "an empty deletion set"
            elif found == size == num_train:
                problem = "a deletion set that leaves no training samples"
            elif found in sizes:
                problem = f"the same {found} samples as {sizes[found]!r}"
            if problem is not None:
                self.fault(f"deletion_fractions[{index}]", f"{fraction!r} of {size} manipulated samples rounds to {problem}")
            sizes[found] = fraction


def spaced(low: float, high: float, num: int, *, log: bool, integer: bool) -> list[float]:
    """`num` values from low to high, both included, evenly or logarithmically spaced, to six digits."""
    shares = [index / (num - 1) for index in range(num)]
    values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    return list(dict.fromkeys(round(value) if integer else float(f"{value:.6g}") for value in values))


def _span_of(fact: FieldFact, low: float, high: float, log: bool) -> Span:
    return Span(low, high, log, True) if _is_integer(fact) else Span(float(low), float(high), log, False)


def _is_integer(fact: FieldFact) -> bool:
    """Whether a setting is an integer and not a number with a fraction."""
    return _typed(fact.hint, 0.5) is MISSING


def _is_list(fact: FieldFact) -> bool:
    """Whether a setting is itself a list."""
    return "tuple" in str(fact.hint)


def _typed(hint: Any, given: Any) -> Any:
    frozen = tuple(given) if isinstance(given, list) else given
    try:
        return _adapter(hint).validate_python(frozen)
    except ValidationError:
        return MISSING


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True))


def _has_home(path: str) -> bool:
    """Whether the home folder that a path begins with is known: `~` or `~user`."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def _is_finite(value: float) -> bool:
    """Whether the value is a number that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _silenced(cls: type[Any], given: Mapping[str, Any]) -> set[str]:
    """The alternatives of hyperparameters that are given: these are null."""
    return {name for group in cls.alternatives if any(other in given for other in group) for name in group if name not in given}


def _named(space: Space) -> tuple[Value, ...]:
    """All values of a space, or its two ends where these are too many."""
    if isinstance(space, Options):
        return space.values
    few = space.integer and space.high - space.low <= MOST_INTEGERS_CHECKED
    return tuple(range(int(space.low), int(space.high) + 1)) if few else (space.low, space.high)


def _corners(plan: MethodPlan) -> Iterator[dict[str, Any]]:
    """Sets of hyperparameters in which every value that the plan can name appears at least once."""
    ends = {name: _named(space) for name, space in plan.space.items()}
    first = {name: values[0] for name, values in ends.items()}
    yield {**plan.fixed, **first}
    for name, values in ends.items():
        for value in values[1:]:
            yield {**plan.fixed, **first, name: value}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _seed(given: Any) -> int:
    try:
        seed = operator.index(given)
    except TypeError:
        seed = -1
    if seed < 0:
        raise UserError(f"--seeds {given}: whole numbers, not negative, are needed, like --seeds +3,4")
    return seed


def _restricted(sweep: Sweep, only: Sequence[str], seeds: Iterable[int]) -> Sweep:
    """The sweep with only the named methods, fractions and seeds, and with further seeds."""
    named: dict[str, dict[str, Any]] = {
        "method": {plugins.name_of(plan.cls): plan for plan in sweep.methods},
        "fraction": {f"{fraction:g}": fraction for fraction in sweep.fractions},
        "seed": {str(seed): seed for seed in sweep.seeds},
    }
    chosen: dict[str, list[Any]] = {}
    for wish in (part for each in only for part in each.split(",")):
        what, _, given = wish.partition("=")
        if what not in named:
            raise UserError(f"--only {wish}: {what!r} cannot be restricted. {did_you_mean(what, named)}")
        given = f"{float(given):g}" if what == "fraction" and _is_number(given) else given
        if given not in named[what]:
            raise UserError(f"--only {wish}: {given!r} is no {what} of {sweep.source}. {did_you_mean(given, named[what])}")
        chosen.setdefault(what, []).append(named[what][given])
    search = sweep.search
    if "fraction" in chosen and (search.scope == "across_fractions" or search.warm_start == "neighbour"):
        setting = "scope: across_fractions" if search.scope == "across_fractions" else "warm_start: neighbour"
        raise UserError(f"--only fraction: with search.{setting} a fraction's search depends on the others")
    if "seed" in chosen and search.seeds == "first" and sweep.seeds[0] not in chosen["seed"]:
        raise UserError(f"--only seed: with search.seeds: first the search is on seed {sweep.seeds[0]}, which must be among them")
    asked = replace(
        sweep,
        controls=replace(sweep.controls, never_manipulated=False, trigger_only=False) if "method" in chosen else sweep.controls,
        methods=tuple(chosen.get("method", sweep.methods)),
        fractions=tuple(dict.fromkeys(chosen.get("fraction", sweep.fractions))),
        seeds=tuple(dict.fromkeys([*chosen.get("seed", sweep.seeds), *map(_seed, seeds)])),
    )
    return replace(asked, text=_text_of(asked, sweep)) if asked != sweep else sweep


def _text_of(asked: Sweep, whole: Sweep) -> str:
    """The text of the sweep that was asked for, part of a whole one and perhaps with further seeds."""
    top = yaml.safe_load(whole.text)
    if asked.methods != whole.methods:
        given = list(zip(whole.methods, top["methods"].items(), strict=True))
        top["methods"] = dict(item for plan in asked.methods for each, item in given if each is plan)
    if asked.controls != whole.controls:
        top["controls"] = {name: value for name, value in top["controls"].items() if name not in CONTROLS}
    for name, numbers, before in (("deletion_fractions", asked.fractions, whole.fractions), ("seeds", asked.seeds, whole.seeds)):
        if numbers != before:
            top[name] = list(numbers)
    return yaml.safe_dump(top, sort_keys=False, allow_unicode=True)
