"""What a plug-in's class has to declare: rules for the check of a user's own ones and for the conformance suites.

A rule is a pair of whether it holds and what is said where it does not.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import MISSING
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from cu_ray import plugins
from cu_ray.checks import Rules
from cu_ray.identity import canonical_json
from cu_ray.plugins import FieldFact

RESERVED = ("trials", "points", "sampler", "keep")  # names of their own under a method in a sweep file
NEEDED = {  # what a class of each kind must define itself
    "methods": ("unlearn", "cost"),
    "manipulations": ("corrupt", "test_domains"),
    "detections": ("find",),
    "datasets": ("facts", "load"),
    "models": ("build", "blocks", "layers_per_block"),
    "metrics": ("measure",),
}
SETTINGS = "int, float, str, bool, None, and tuples and unions of these"


def faults_of(kind: str, cls: type[Any]) -> list[str]:
    """What is wrong with how a class of a kind declares itself. Raises UserError where an annotation cannot be read."""
    plugins.facts(cls)
    rules = (of_class(cls), of_functions(kind, cls), of_version(cls), of_defaults(cls), of_ranges(cls), of_names(kind, cls))
    return [message for each in rules for holds, message in each if not holds]


def of_class(cls: type[Any]) -> Rules:
    """How the class is made."""
    own = vars(cls).get("__dataclass_params__")
    fields = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
    lost = "" if own or not fields else f"is no dataclass itself, so {fields[0]} is no setting of it"
    yield not lost, f"{lost}: @dataclass(frozen=True) is needed above the class"
    yield own is None or own.frozen, "is not frozen: @dataclass(frozen=True) is needed above the class"


def of_functions(kind: str, cls: type[Any]) -> Rules:
    """What it does itself."""
    base = plugins.contract(kind)
    for name in NEEDED[kind]:
        contract = getattr(base, name)
        signature = f"def {name}({', '.join(inspect.signature(contract).parameters)})"
        yield getattr(cls, name) is not contract, f"has no `{name}`: {signature} is needed"


def of_version(cls: type[Any]) -> Rules:
    """Its version, which tells trials of other code apart."""
    needed = "`version: ClassVar[int] = 1` is needed, to be raised when results change"
    declared = any("version" in vars(each) for each in cls.__mro__ if each is not plugins.Plugin)
    yield declared, f"has no version: {needed}"
    yield type(cls.version) is int and cls.version >= 1, f"has the version {cls.version!r}: {needed}"


def of_defaults(cls: type[Any]) -> Rules:
    """The defaults of its settings."""
    for name, fact in plugins.facts(cls).items():
        factory = cls.__dataclass_fields__[name].default_factory
        yield factory is MISSING, f"{name}: sweep files see no default_factory: a plain default is needed"
        readable = _is_readable(fact.hint)
        yield readable, f"{name}: its type {fact.hint} cannot stand in a sweep file. Allowed: {SETTINGS}."
        if readable and not fact.required:
            allowed = _admits(fact, fact.default)
            yield allowed, f"{name}: the default {fact.default!r} is not allowed. Allowed: {fact.describe()}."


def of_ranges(cls: type[Any]) -> Rules:
    """The ranges in which its settings are searched."""
    for name, fact in plugins.facts(cls).items():
        if fact.search is None or not _is_readable(fact.hint):
            continue
        low, high = fact.search.low, fact.search.high
        what = f"{name}: the search range from {low!r} to {high!r}"
        numbers = all(type(end) in (int, float) for end in (low, high))
        yield numbers, f"{what} is not of numbers"
        if numbers:
            yield low < high, f"{what} is empty: the lower end comes first"
            yield low > 0 or not fact.search.log, f"{what} is a logarithmic range, which must start above 0"
            yield all(_admits(fact, end) for end in (low, high)), f"{what} leaves what is allowed: {fact.describe()}"


def of_names(kind: str, cls: type[Any]) -> Rules:
    """The names of its settings."""
    for name in ("name", "version", *(RESERVED if kind == "methods" else ())):
        yield name not in plugins.facts(cls), f"{name}: the name has a meaning of its own in sweep files. Give the field another."


def typed(hint: Any, given: Any) -> Any:
    """The value as one of the declared type, a list as a tuple; MISSING where it is none."""
    frozen = tuple(given) if isinstance(given, list) else given
    try:
        return _adapter(hint).validate_python(frozen)
    except ValidationError:
        return MISSING


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True))


def _is_readable(hint: Any) -> bool:
    """Whether a value of this type can be read from a file."""
    try:
        _adapter(hint)
    except (PydanticUserError, TypeError):
        return False
    return True


def _admits(fact: FieldFact, value: Any) -> bool:
    """Whether a setting may have the value, which is plain JSON."""
    if typed(fact.hint, value) is MISSING or not _is_plain(value):
        return False
    if value is None or isinstance(value, tuple):  # bounds and choices are of single values
        return True
    chosen = fact.choices is not None and value in fact.choices.values
    return chosen or (fact.bound.admits(value) if fact.bound and not isinstance(value, str) else fact.choices is None)


def _is_plain(value: Any) -> bool:
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return False
    return True
