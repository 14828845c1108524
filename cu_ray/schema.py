"""The JSON Schema (draft 7) of a sweep file, for editors: what `config` allows, from the same fields, bounds and names.

It knows no more than a single value at a time; whether values fit one another, the data or the model, `cu-ray plan` says.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from cu_ray import plugins
from cu_ray.config import (
    EVIDENCE,
    MOST_COMBINATIONS,
    MOST_SEED,
    NAME,
    REQUIRED,
    ControlsSection,
    OriginalSection,
    RuntimeSection,
    SearchSection,
)
from cu_ray.plugins import FieldFact
from cu_ray.types import TrainRecipe

Schema = dict[str, Any]

OF_PLUGINS = {"dataset": "datasets", "model": "models", "manipulation": "manipulations", "detection": "detections"}
OF_SETTINGS = {"search": SearchSection, "controls": ControlsSection, "original": OriginalSection, "runtime": RuntimeSection}
OWN = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "your own plug-in: file:Class"}
TYPES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}


def schema() -> Schema:
    """The schema of a sweep file, as plain JSON values."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "cu-ray sweep file",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME}$", "description": "the folder of its results"},
            "extends": {"type": "string", "description": "another sweep file that this one starts from"},
            **{section: _one_or_list({"$ref": f"#/definitions/{section}"}) for section in OF_PLUGINS},
            "train": _one_or_list(_mapping(_fanned(plugins.facts(TrainRecipe)), TrainRecipe), nothing=True),
            "deletion_fractions": _one_or_list({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
            "seeds": _one_or_list({"type": "integer", "minimum": 0, "maximum": MOST_SEED}),
            "methods": _methods(),
            **{section: _settings(cls) for section, cls in OF_SETTINGS.items()},
            "evidence": _value(EVIDENCE) | {"description": "keep each model's predictions on the test images"},
        },
        "additionalProperties": False,
        "required": ["name"],
        "anyOf": [{"required": ["extends"]}, {"required": list(REQUIRED)}],
        "definitions": {section: _plugin_of(kind) for section, kind in OF_PLUGINS.items()},
    }


# --------------------------------------------------------------------------------------------------------------- sections


def _settings(cls: type[Any]) -> Schema:
    """A section of settings: each has one value."""
    return _any(_mapping({name: _value(fact) for name, fact in plugins.facts(cls).items()}, cls), {"type": "null"})


def _plugin_of(kind: str) -> Schema:
    """A plug-in of a kind: a name, or a mapping with a name, perhaps several, and settings."""
    classes = {name: plugins.find(kind, name) for name in plugins.names(kind)}
    complete = [name for name, cls in classes.items() if not any(fact.required for fact in plugins.facts(cls).values())]
    several = {"type": "array", "items": _any({"enum": list(classes)}, OWN), "minItems": 1}
    of_others = {"type": "object", "properties": {"name": _any(OWN, several)}, "required": ["name"]}
    return _any({"enum": complete}, *(_plugin(name, cls) for name, cls in classes.items()), OWN, of_others)


def _plugin(name: str, cls: type[Any]) -> Schema:
    facts = plugins.facts(cls)
    required = [name for name, fact in facts.items() if fact.required]
    named = {"name": {"const": name, "description": cls.summary}}
    return _mapping(named | _fanned(facts), cls) | {"required": ["name", *required]}


def _fanned(facts: Mapping[str, FieldFact]) -> Schema:
    """Settings to which a list of values may be given."""
    return {name: _one_or_list(_value(fact)) for name, fact in facts.items()}


def _methods() -> Schema:
    known = {name: _method(plugins.find("methods", name)) for name in plugins.names("methods")}
    own = {"type": ["object", "null"]}
    return {
        "type": "object",
        "properties": known,
        "patternProperties": {OWN["pattern"]: own},
        "additionalProperties": False,
        "minProperties": 1,
    }


def _method(cls: type[Any]) -> Schema:
    """What may stand under a method: its hyperparameters, fixed or searched, and how it is searched."""
    facts, search = plugins.facts(cls), plugins.facts(SearchSection)
    point = {"type": "object", "properties": {name: _value(fact) for name, fact in facts.items()}, "additionalProperties": False}
    settings = {name: _hyperparameter(fact) for name, fact in facts.items()} | {
        "trials": _value(search["trials"]),
        "sampler": _value(search["sampler"]),
        "keep": _value(plugins.facts(TrainRecipe)["keep"]),
        "points": {"type": "array", "items": point, "minItems": 1, "description": "exactly these sets"},
    }
    return _any(_mapping(settings, cls), {"type": "null"}) | {"description": cls.summary}


def _mapping(properties: Schema, cls: type[Any]) -> Schema:
    summary = getattr(cls, "summary", "") or (cls.__doc__ or "").strip().splitlines()[0]
    return {"type": "object", "properties": properties, "additionalProperties": False, "description": summary}


# ----------------------------------------------------------------------------------------------------------------- values


def _hyperparameter(fact: FieldFact) -> Schema:
    """A value, a list of values to choose from, or a range."""
    value = _value(fact)
    numbers = [each for each in _alternatives(fact) if each.get("type") in ("integer", "number")]
    ranges = [_range(numbers)] if numbers else []
    return _any(value, {"type": "array", "items": value, "minItems": 1}, *ranges) | {"description": value["description"]}


def _range(numbers: list[Schema]) -> Schema:
    end = _any(*numbers)
    num = {"type": "integer", "minimum": 2, "maximum": MOST_COMBINATIONS}
    properties = {"low": end, "high": end, "log": {"type": "boolean", "default": False}, "num": num}
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": ["low", "high"]}


def _one_or_list(one: Schema, *, nothing: bool = False) -> Schema:
    """Such a value, or a list of them; with `nothing`, the section may also be empty."""
    return _any(one, {"type": "array", "items": one, "minItems": 1}, *([{"type": "null"}] if nothing else []))


def _any(*kinds: Schema) -> Schema:
    """What one of these allows."""
    return dict(kinds[0]) if len(kinds) == 1 else {"anyOf": list(kinds)}


def _value(fact: FieldFact) -> Schema:
    """One value of a setting, with its default and what is allowed in words."""
    said = [fact.describe()]
    if fact.search is not None:
        said.append(f"searched by default: {fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}")
    default = {} if fact.required else {"default": list(fact.default) if isinstance(fact.default, tuple) else fact.default}
    return _any(*_alternatives(fact)) | {"description": "; ".join(said), **default}


def _alternatives(fact: FieldFact) -> list[Schema]:
    """A schema for each of the types that a setting takes."""
    return [_of_type(hint, fact) for hint in _parts(fact.hint)]


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _of_type(hint: Any, fact: FieldFact) -> Schema:
    if get_origin(hint) is tuple:
        return _list_of(get_args(hint), fact)
    if hint is str and fact.choices:
        return {"enum": list(fact.choices.values)}
    return {"type": TYPES[hint], **(_bounds(fact) if hint in (int, float) else {})}


def _list_of(kinds: tuple[Any, ...], fact: FieldFact) -> Schema:
    """A list of any length of one type, or one of as many values as there are types."""
    if kinds[1:] == (...,):
        return {"type": "array", "items": _of_item(kinds[0], fact)}
    items = [_of_item(kind, fact) for kind in kinds]
    return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}


def _of_item(hint: Any, fact: FieldFact) -> Schema:
    return _any(*(_of_type(kind, fact) for kind in _parts(hint)))


def _bounds(fact: FieldFact) -> Schema:
    bound = fact.bound
    if bound is None:
        return {}
    low = {} if bound.low is None else {"exclusiveMinimum" if bound.open_low else "minimum": bound.low}
    return low | ({} if bound.high is None else {"maximum": bound.high})
