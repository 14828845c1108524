"""What a ledger knows: records of originals and trials, points of studies, code of plug-ins; each as JSON and back."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from cu_ray.errors import UserError
from cu_ray.types import Record

SCHEMA = 2  # 1: no batches
LARGEST = 1 << 63  # no integer of a table is as large


@dataclass(frozen=True)
class PointRecord:
    """One point of a study: its index, its hyperparameters and the trials that score it."""

    study_key: str
    index: int
    hyperparameters: dict[str, Any]
    trial_keys: tuple[str, ...]

    @property
    def values(self) -> dict[str, Any]:
        """The hyperparameters as a method takes them: lists, as JSON has them, are tuples."""
        return {name: _frozen(value) for name, value in self.hyperparameters.items()}


@dataclass
class Known:
    """What a ledger holds: originals and trials by key, points by study key and index, code fingerprints by plug-in.

    `made_by`: the code that was in use when a record came in, by the record's key.
    """

    originals: dict[str, Record] = field(default_factory=dict)
    trials: dict[str, Record] = field(default_factory=dict)
    points: dict[str, dict[int, PointRecord]] = field(default_factory=dict)
    code: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_by: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, compare=False)

    def points_of(self, study_key: str, budget: int) -> list[dict[str, Any]]:
        """The hyperparameters of a study's points in order, as far as the budget goes."""
        written = self.points.get(study_key, {})
        return [written[index].values for index in sorted(written) if index < budget]

    def add(self, record: Record | PointRecord) -> None:
        """Take a record in; a later record of the same key replaces an earlier one."""
        if isinstance(record, PointRecord):
            self.points.setdefault(record.study_key, {})[record.index] = record
        else:
            (self.originals if record.kind == "original" else self.trials)[record.key] = record
            self.made_by[record.key] = self.code

    def use(self, code: dict[str, dict[str, Any]]) -> None:
        """Take in the code of plug-ins that makes the records from now on."""
        self.code = self.code | code

    def take_in(self, payload: bytes, source: str) -> bool:
        """Take in what a line holds; False where it is nothing known. Raises UserError where it is of a newer schema."""
        values = _parsed(payload)
        schema, kind = values.pop("schema", None), values.pop("is", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise UserError(
                f"{source} was written by a newer version of cu-ray (schema {schema}; this one knows up to {SCHEMA}): "
                "update cu-ray, or give another place for the results (--output)"
            )
        if kind == "batches":
            return True
        if kind == "code" and _is_code(values.get("code")):
            self.use(values["code"])
            return True
        cls: Any = {"point": PointRecord, "trial": Record, "original": Record}.get(kind if isinstance(kind, str) else "")
        if cls is None or not _is_one(cls, values) or values.get("kind", kind) != kind:
            return False
        self.add(cls(**{**values, "trial_keys": tuple(values["trial_keys"])} if cls is PointRecord else values))
        return True


def to_json(record: Record | PointRecord) -> bytes:
    """A record as a payload."""
    if isinstance(record, PointRecord):
        return payload("point", dataclasses.asdict(record))
    return payload(record.kind, record.to_json())


def payload(what: str, values: dict[str, Any]) -> bytes:
    """Values as JSON, with what they are."""
    return json.dumps({"schema": SCHEMA, "is": what, **values}, sort_keys=True, allow_nan=False).encode()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _parsed(payload: bytes) -> dict[str, Any]:
    """The values of a payload; none where it is no JSON, or has numbers or characters that no table holds."""
    try:
        values = json.loads(payload, parse_constant=_refuse)
        if b"\\ud" in payload:
            json.dumps(values, ensure_ascii=False).encode()  # not possible for halves of characters
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is never written")


def _is_code(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(facts, dict) for facts in value.values())


def _is_one(cls: Any, values: dict[str, Any]) -> bool:
    """Whether the values are the fields of such a record, of the types that they have in JSON."""
    required, types = _fields(cls)
    return required <= values.keys() <= types.keys() and all(_fits(value, *types[name]) for name, value in values.items())


def _fits(value: Any, types: set[Any], types_inside: set[Any]) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    sound = type(value) in types and (not types_inside or types_inside.issuperset(map(type, inside)))
    if sound and (int in types or int in types_inside):
        return all(-LARGEST <= each < LARGEST for each in (value, *inside) if type(each) is int)
    return sound


@functools.cache
def _fields(cls: Any) -> tuple[set[str], dict[str, tuple[set[Any], set[Any]]]]:
    """The names of a record's fields that have no default; of each field the types in JSON, and those inside it, if not any."""
    required = {each.name for each in dataclasses.fields(cls) if each.default is each.default_factory is dataclasses.MISSING}
    return required, {name: (_json_types(hint), _json_types(_inner(hint))) for name, hint in get_type_hints(cls).items()}


def _inner(hint: Any) -> Any:
    """What is in a container of this type; None for any, and for what is no container."""
    inner = {dict: get_args(hint)[-1:], tuple: get_args(hint)[:1]}.get(get_origin(hint), ())
    return None if inner in ((), (Any,)) else inner[0]


def _json_types(hint: Any) -> set[Any]:
    if hint is None:
        return set()
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = {get_origin(each) or each for each in hints}
    return {list if kind is tuple else kind for kind in kinds} | ({int} if float in kinds else set())
