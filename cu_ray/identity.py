"""Canonical JSON, keys and seeds: what makes two runs the same run.

A key is the SHA-256 of the canonical JSON of everything that determines a result. A seed is derived from the identity of
what it serves, so that no result depends on order, on the number of workers or on what happened to be cached.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted names, no spaces, no NaN; dataclasses as their `mapping_of`."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def key_of(value: Any) -> str:
    """The SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def seed_for(purpose: str, *identity: Any) -> int:
    """A seed of 63 bits for one random choice, a function of its purpose and of the identity that it serves."""
    return int(key_of([purpose, *identity])[:16], 16) >> 1


def generator_for(purpose: str, *identity: Any) -> np.random.Generator:
    """A NumPy generator seeded by `seed_for`."""
    return np.random.default_rng(seed_for(purpose, *identity))


def added(default: Any) -> Any:
    """A dataclass field that came after keys were in use: left out of keys while it has its default."""
    return dataclasses.field(default=default, metadata={"added": True})


def located() -> Any:
    """A dataclass field that says where something lies and not what it is: no part of keys. Given by keyword."""
    return dataclasses.field(kw_only=True, metadata={"location": True})


def derived() -> Any:
    """A dataclass field that the plug-in fills in itself (None before): part of keys, no setting of a sweep file."""
    return dataclasses.field(default=None, metadata={"derived": True})


def carried() -> Any:
    """A derived field that only carries what another stands for in keys: no part of them."""
    return dataclasses.field(default=None, metadata={"derived": True, "location": True})


def mapping_of(instance: Any, *, locations: bool = True) -> dict[str, Any]:
    """The fields of a dataclass by name, coerced to their declared types (1 and 1.0 are one key), plain JSON values.

    Fields made by `added` are left out while they have their default; so keys from before them stay valid. Those made by
    `located` are left out unless `locations`.
    """
    cls: Any = type(instance)
    hints = _hints(cls)
    return {
        field.name: _plain(coerce(getattr(instance, field.name), hints[field.name]))
        for field in dataclasses.fields(instance)
        if not (field.metadata.get("added") and getattr(instance, field.name) == field.default)
        and (locations or not field.metadata.get("location"))
    }


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def coerce(value: Any, declared: Any) -> Any:
    """The value as its declared type where the two differ only in number type (int given, float declared), in lists too."""
    kinds = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    if isinstance(value, (list, tuple)):
        items = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), ())
        inner = items[:1] * len(value) if items[1:] == (...,) else items
        return tuple(map(coerce, value, inner)) if len(inner) == len(value) else tuple(value)
    return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return mapping_of(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
