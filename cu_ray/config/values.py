"""Settings of a file as values of their declared types, with a complaint for each that is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from cu_ray import plugins
from cu_ray.config.declared import faults_of, typed
from cu_ray.errors import FieldFault, UserError, did_you_mean
from cu_ray.plugins import FieldFact
from cu_ray.yaml_file import YamlFile

MOST_COMBINATIONS = 10_000  # of the values that lists in one mapping give, and of the points of a grid


class Values:
    """Reads the settings of a file. What is wrong is in `faults`, and reading goes on: a user is told all of it at once."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.faults: dict[str, None] = {}  # in the order of the complaints
        self.num_complaints = 0  # the same one again counts: what it is about could not be read again

    def fault(self, path: str, message: str) -> Any:
        """Complain, of the same only once; None stands for what could not be read."""
        self.num_complaints += 1
        self.faults[f"{self.file.where(path)}: {message}" if path else message] = None

    def section(self, cls: type[Any], name: str) -> Any:
        """The dataclass of a section, with its defaults where the file has none."""
        given = self.file.value.get(name)
        return self.instance(cls, {} if given is None else given, name) or cls()

    def plugin_class(self, kind: str, name: Any, path: str) -> type[Any] | None:
        """The plug-in of that name, which declares what it has to, or None after complaining."""
        if name is None:
            self.fault(path, "the name is missing")
            return None
        place = f"{path}.name" if f"{path}.name" in self.file.lines else path
        try:
            cls = plugins.find(kind, str(name))
            with plugins.users_fault(cls):
                faults = faults_of(kind, cls) if plugins.is_own(cls) else []
        except UserError as error:
            self.fault(place, str(error))
            return None
        for fault in faults:
            self.fault(place, f"{plugins.with_file(cls)} {fault}")
        return None if faults else cls

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
                key in facts and is_list(facts[key]) and not any(isinstance(item, list) for item in value)
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
            with plugins.users_fault(cls):
                return cls(**values)
        except FieldFault as error:
            return self.fault(f"{path}.{error.field}", str(error))
        except UserError as error:
            return self.fault(path, str(error))

    def value(self, fact: FieldFact, given: Any, path: str, otherwise: Any) -> Any:
        """The value in its declared type, or `otherwise` after complaining."""
        value = typed(fact.hint, given)
        if value is MISSING:
            has_example = isinstance(fact.default, str) and fact.default and not fact.choices
            example = f", like {fact.default!r}" if has_example else ""
            self.fault(path, f"{given!r} is not allowed. Allowed: {fact.describe()}{example}.")
            return otherwise
        if fact.choices and isinstance(value, str) and value not in fact.choices.values:
            allowed = [*map(str, fact.choices.values), *([f"a number {fact.bound}"] if fact.bound else [])]
            self.fault(path, f"{given!r} is not allowed. {did_you_mean(value, allowed)}")
            return otherwise
        if isinstance(value, str) and value.startswith("~") and not _has_home(value):
            self.fault(path, f"{given!r} is not allowed: there is no such home folder")
            return otherwise
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not (is_finite(value) and (fact.bound is None or fact.bound.admits(value))):
            self.fault(path, f"{given!r} is not allowed. Allowed: {fact.describe()}.")
            return otherwise
        return value

    def numbers(self, path: str, given: Any, kind: type[Any], allowed: str, most: float = math.inf) -> dict[int, Any]:
        """The numbers of a list, or a single one, by their place in it, from 0 to the most. `allowed`: for messages."""
        items = given if isinstance(given, list) else [given]
        if not items:
            self.fault(path, "an empty list: give at least one value")
        values: dict[int, Any] = {}
        for index, item in enumerate(items):
            place = f"{path}[{index}]" if isinstance(given, list) else path
            value = typed(kind, item)
            if value is MISSING or not is_finite(value) or not 0 <= value <= most:
                self.fault(place, f"{item!r} is not allowed. Allowed: {allowed}.")
            elif value in values.values():
                self.fault(place, f"{item!r} is given twice")
            else:
                values[index] = value
        return values


def is_list(fact: FieldFact) -> bool:
    """Whether a setting is itself a list."""
    return "tuple" in str(fact.hint)


def _has_home(path: str) -> bool:
    """Whether the home folder that a path begins with is known: `~` or `~user`."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def is_finite(value: float) -> bool:
    """Whether the value is a number that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
