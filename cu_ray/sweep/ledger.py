"""Finished trials and points, append-only and crash-safe: the one truth about what is done.

A folder of segments, each a sequence of lines `<length> <crc32> <JSON>`. The driver is the only writer; an append returns
when the record is on the disk. A last line cut short by a crash is cut off when the ledger is next opened for writing.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cu_ray.errors import UserError
from cu_ray.types import Record

SCHEMA = 1
SEGMENT_BYTES = 16 << 20


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
    """What a ledger holds: originals and trials by key, points by study key and index, code fingerprints by plug-in."""

    originals: dict[str, Record] = field(default_factory=dict)
    trials: dict[str, Record] = field(default_factory=dict)
    points: dict[str, dict[int, PointRecord]] = field(default_factory=dict)
    code: dict[str, dict[str, Any]] = field(default_factory=dict)

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


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


class Ledger:
    """A ledger open for writing: one process at a time. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock")
        try:
            self.known = read(folder)
            _cut_broken_tail(folder)
        except BaseException:
            self._lock.close()
            raise
        self._file = open(_last_segment(folder), "ab")  # noqa: SIM115 (closed by close)

    def append(self, record: Record | PointRecord) -> None:
        """Write a record durably, then take it in."""
        kind = "point" if isinstance(record, PointRecord) else record.kind
        self._write({"schema": SCHEMA, "is": kind, **dataclasses.asdict(record)})
        self.known.add(record)

    def note_code(self, code: dict[str, dict[str, Any]]) -> None:
        """Remember the versions and fingerprints of the plug-ins in use, where they are new."""
        if any(self.known.code.get(name) != facts for name, facts in code.items()):
            self.known.code |= code
            self._write({"schema": SCHEMA, "is": "code", "code": self.known.code})

    def _write(self, values: dict[str, Any]) -> None:
        if self._file.tell() > SEGMENT_BYTES:
            self._file.close()
            self._file = open(_next_segment(self.folder), "ab")  # noqa: SIM115
        self._file.write(_line(values))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the ledger free for other processes."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read(folder: Path) -> Known:
    """What a ledger holds; also while another process writes to it. Empty where there is none."""
    known = Known()
    for segment in sorted(folder.glob("*.log")):
        for values in _records(segment):
            kind = values.pop("is")
            if values.pop("schema") > SCHEMA:
                raise UserError(f"{segment} was written by a newer version of cu-ray")
            if kind == "code":
                known.code |= values["code"]
            elif kind == "point":
                known.add(PointRecord(**{**values, "trial_keys": tuple(values["trial_keys"])}))
            else:
                known.add(Record(**values))
    return known


def _line(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True, allow_nan=False).encode()
    return b"%d %08x %s\n" % (len(text), zlib.crc32(text), text)


def _records(segment: Path) -> Iterator[dict[str, Any]]:
    """The intact records of a segment, up to the first that is not."""
    with open(segment, "rb") as file:
        for line in file:
            values = _intact(line)
            if values is None:
                return
            yield values


def _intact(line: bytes) -> dict[str, Any] | None:
    length, _, rest = line.partition(b" ")
    crc, _, text = rest.partition(b" ")
    text = text.removesuffix(b"\n")
    if not line.endswith(b"\n") or length != b"%d" % len(text) or crc != b"%08x" % zlib.crc32(text):
        return None
    values: dict[str, Any] = json.loads(text)
    return values


def _cut_broken_tail(folder: Path) -> None:
    """Cut off what follows the last intact record of each segment, with one warning."""
    for segment in sorted(folder.glob("*.log")):
        intact = 0
        with open(segment, "rb") as file:
            for line in file:
                if _intact(line) is None:
                    break
                intact += len(line)
        excess = segment.stat().st_size - intact
        if excess:
            with open(segment, "rb") as file, open(segment.with_suffix(".broken"), "ab") as aside:
                file.seek(intact)
                aside.write(file.read())
            os.truncate(segment, intact)
            warnings.warn(f"{segment}: {excess} bytes after the last whole record were set aside", stacklevel=2)


def _last_segment(folder: Path) -> Path:
    return max(folder.glob("*.log"), default=folder / "000001.log")


def _next_segment(folder: Path) -> Path:
    return folder / f"{int(_last_segment(folder).stem) + 1:06d}.log"


def _locked(path: Path) -> Any:
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held until close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{path.parent} is being written by {owner}: wait for it or stop it") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file
