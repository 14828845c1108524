"""The methods of a sweep file: hyperparameters that are fixed, searched, or listed point by point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from cu_ray import checks, plugins
from cu_ray.config.declared import RESERVED, typed
from cu_ray.config.sweep import MethodPlan, Options, SearchSection, Space, Span, Value
from cu_ray.config.values import MOST_COMBINATIONS, Values, is_finite, is_list
from cu_ray.errors import ContractBroken, FieldFault, UserError, did_you_mean
from cu_ray.learning.tied_dropout import share_of
from cu_ray.plugins import FieldFact
from cu_ray.types import TrainRecipe

MOST_INTEGERS_CHECKED = 64  # of a range, when hyperparameters are held against the model


class Methods(Values):
    """Reads the methods."""

    def plans(self, given: Any, search: SearchSection, models: list[Any]) -> list[MethodPlan]:
        """The plans of the methods that are right, whose hyperparameters fit the models."""
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
            self._check_variant(cls, path)
            plan = self._method(cls, settings or {}, path, search)
            if self.num_complaints == before:
                self._check_combinations(plan, path, models)
                found.append(plan)
        return found

    def _method(self, cls: type[Any], given: dict[str, Any], path: str, search: SearchSection) -> MethodPlan:
        facts, before = plugins.facts(cls), self.num_complaints
        options = {key: given[key] for key in RESERVED if key in given}
        settings = {key: value for key, value in given.items() if key not in RESERVED}
        for key in settings:
            if key not in facts:
                self.fault(f"{path}.{key}", f"unknown hyperparameter. {did_you_mean(key, [*facts, *RESERVED])}")
        sampler = self._option(options, "sampler", search.sampler, plugins.facts(SearchSection)["sampler"], path)
        trials = self._option(options, "trials", search.trials, plugins.facts(SearchSection)["trials"], path)
        keep = self._option(options, "keep", "last", plugins.facts(TrainRecipe)["keep"], path)
        fixed: dict[str, Any] = {}
        space: dict[str, Space] = {}
        silenced = _silenced(cls, settings)
        for name, fact in facts.items():
            if name in silenced:
                fixed[name] = None
            elif name in settings:
                entry = self._hyperparameter(fact, settings[name], f"{path}.{name}")
                (space if isinstance(entry, (Span, Options)) else fixed)[name] = entry
            elif fact.search is not None and "points" not in given:
                space[name] = _span_of(fact, fact.search.low, fact.search.high, fact.search.log)
            elif fact.required:
                self.fault(path, f"the hyperparameter {name!r} is missing: {fact.describe()}")
            else:
                fixed[name] = fact.default
        points = self._points(cls, given["points"], fixed, space, path) if "points" in given else None
        if points is None and sampler == "grid":
            for name, each in space.items():
                if isinstance(each, Span):
                    self.fault(f"{path}.{name}", "a grid needs values: give a list, or `num` beside low and high")
            if math.prod(len(each.values) for each in space.values() if isinstance(each, Options)) > MOST_COMBINATIONS:
                self.fault(path, f"a grid of more than {MOST_COMBINATIONS} points")
        nothing_to_sample = points is not None or not space or sampler == "grid"
        if "trials" in given and nothing_to_sample and self.num_complaints == before:  # what is wrong may be a range
            self.fault(f"{path}.trials", "there is nothing to sample here: the points are given, fixed or a whole grid")
        return MethodPlan(cls, fixed, space, points, sampler, trials, keep)

    def _option(self, options: dict[str, Any], name: str, default: Any, fact: FieldFact, path: str) -> Any:
        return self.value(fact, options[name], f"{path}.{name}", default) if name in options else default

    def _points(
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

    def _hyperparameter(self, fact: FieldFact, given: Any, path: str) -> Any:
        """A fixed value, or an Options or a Span."""
        if isinstance(given, dict):
            return self._span(fact, given, path)
        if isinstance(given, list) and not (is_list(fact) and not any(isinstance(item, list) for item in given)):
            if not given:
                return self.fault(path, "an empty list: give at least one value")
            values = [self.value(fact, item, f"{path}[{index}]", None) for index, item in enumerate(given)]
            different = tuple(dict.fromkeys(values))
            return different[0] if len(different) == 1 else Options(different)
        return self.value(fact, given, path, None)

    def _span(self, fact: FieldFact, given: dict[str, Any], path: str) -> Any:
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
        if not is_finite(high / low if log else high - low):
            return self.fault(path, f"from {low} to {high} is more than a number can hold")
        if num is None:
            return _span_of(fact, low, high, log)
        if isinstance(num, bool) or not isinstance(num, int) or not 2 <= num <= MOST_COMBINATIONS:
            allowed = f"Allowed: an integer, at least 2 and at most {MOST_COMBINATIONS}."
            return self.fault(f"{path}.num", f"{num!r} is not allowed. {allowed}")
        return Options(tuple(spaced(low, high, num, log=log, integer=_is_integer(fact))))

    def _check_variant(self, cls: type[Any], path: str) -> None:
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

    def _check_combinations(self, plan: MethodPlan, path: str, models: list[Any]) -> None:
        """Complain of hyperparameters that do not fit one another or a model."""
        for values in plan.points if plan.points is not None else _corners(plan):
            try:
                with plugins.users_fault(plan.cls):
                    method = plan.cls(**values)
                    checks.require(checks.of_cost(method))
                    for model in models:
                        method.check(model.layers_per_block())
            except FieldFault as error:
                self.fault(f"{path}.{error.field}", str(error))
            except UserError as error:
                self.fault(path, str(error))


def spaced(low: float, high: float, num: int, *, log: bool, integer: bool) -> list[float]:
    """`num` values from low to high, both included, evenly or logarithmically spaced, to six digits."""
    shares = [index / (num - 1) for index in range(num)]
    values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    return list(dict.fromkeys(round(value) if integer else float(f"{value:.6g}") for value in values))


def _span_of(fact: FieldFact, low: float, high: float, log: bool) -> Span:
    return Span(low, high, log, True) if _is_integer(fact) else Span(float(low), float(high), log, False)


def _is_integer(fact: FieldFact) -> bool:
    """Whether a setting is an integer and not a number with a fraction."""
    return typed(fact.hint, 0.5) is MISSING


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
