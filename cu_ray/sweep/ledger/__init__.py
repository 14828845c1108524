"""Finished trials and points, append-only and crash-safe: the one truth about what is done.

A folder of files of lines `<length> <crc32> <payload>`. The driver is the only writer. What a crash or a broken disk leaves
between intact lines is passed over, and set aside when the ledger is next opened for writing.
"""

from __future__ import annotations

import contextlib
import warnings
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cu_ray.errors import LedgerDamaged
from cu_ray.lease import Lease
from cu_ray.places import Folder, Place, at
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.ledger.folder import Appender, Lock
from cu_ray.sweep.ledger.folder import finished as finished
from cu_ray.sweep.ledger.objects import Batcher
from cu_ray.sweep.ledger.records import SCHEMA as SCHEMA
from cu_ray.sweep.ledger.records import Known as Known
from cu_ray.sweep.ledger.records import PointRecord as PointRecord
from cu_ray.sweep.ledger.records import payload, to_json
from cu_ray.sweep.ledger.segments import Segment, load
from cu_ray.types import Record


def read(where: Place | Path | str) -> Known:
    """What a ledger holds; also while another process writes to it. Empty where there is none. Warns of damaged files."""
    place = at(where)
    known, segments = load(place)
    for segment in segments:
        is_written = isinstance(place, Folder) and segment is segments[-1] and segment.found.is_begun
        _warn(place, segment, "are passed over", 0 if is_written else len(segment.garbage))
    return known


class Ledger:
    """A ledger open for writing: one process at a time. Use it as a context manager."""

    def __init__(self, where: Place | Path | str) -> None:
        self.place = at(where)
        self._lock = Lock(self.place) if isinstance(self.place, Folder) else Lease(self.place)
        with contextlib.ExitStack() as until_open:
            until_open.callback(self._lock.close)
            self.known, segments = load(self.place)
            self._writer = _writer(self.place, segments, self._lock)
            until_open.callback(self._writer.close)
            for segment in segments:
                aside = f"were set aside in {segment.set_aside_in}"
                fate = aside if isinstance(self.place, Folder) else "are passed over"
                _warn(self.place, segment, fate, len(segment.garbage))
            until_open.pop_all()

    def append(self, record: Record | PointRecord, file: evidence.File | None = None) -> None:
        """Write a record, then take it in. In a folder it lasts when this returns.

        At a URI it is on its way then, behind all earlier ones: enough for a point, which follows from those. What a worker
        made goes through `write` and is heard of when that is done.
        """
        self.write(record, file)
        self.known.add(record)

    def write(self, record: Record | PointRecord, file: evidence.File | None = None) -> Future[None]:
        """Write a record, which is not taken in yet; the future is done when it will last, and its evidence with it."""
        return self._writer.write(to_json(record), file)

    def take_over(self, where: Place | Path | str) -> int:
        """How many records of another ledger came in: those that this one lacks, has as failures only or without evidence."""
        place, in_use = at(where), self.known.code
        other, theirs, ours = read(place), evidence.keys(place), evidence.keys(self.place)
        mine = {**self.known.originals, **self.known.trials}
        new = [
            record
            for record in (*other.originals.values(), *other.trials.values())
            if record.key not in mine or (record.ok and not mine[record.key].ok) or (record.ok and record.key in theirs - ours)
        ]
        for record in new:
            file = evidence.File(record.key, evidence.read(place, record.key)) if record.ok and record.key in theirs else None
            unsaid: dict[str, dict[str, Any]] = {name: {} for name in self.known.code}
            self.note_code(unsaid | other.made_by[record.key])
            self.append(record, file)
        points = [
            point
            for study_key, written in other.points.items()
            for index, point in written.items()
            if index not in self.known.points.get(study_key, {})
        ]
        for point in points:
            self.append(point)
        self.note_code(other.code | in_use)
        return len(new) + len(points)

    def note_code(self, code: dict[str, dict[str, Any]]) -> None:
        """Remember the versions and fingerprints of the plug-ins that make the records from now on, where they are others."""
        if any(self.known.code.get(name) != facts for name, facts in code.items()):
            self.known.use(code)
            self._writer.write(payload("code", {"code": self.known.code}))

    def close(self) -> None:
        """Give the ledger free for other processes."""
        try:
            self._writer.close()
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _writer(place: Place, segments: list[Segment], lock: Lock | Lease) -> Appender | Batcher:
    if isinstance(place, Folder):
        return Appender(place, segments)
    assert isinstance(lock, Lease)
    return Batcher(place, segments, lock)


def _warn(place: Place, segment: Segment, fate: str, num_bytes: int) -> None:
    """One line of warning for a damaged segment, of which so many bytes are no line."""
    faults = [f"{num_bytes} bytes are no whole record and {fate}"] if num_bytes else []
    if segment.num_unknown:
        faults.append(f"{segment.num_unknown} lines are no records that this version knows and are passed over")
    if faults:
        warnings.warn(f"{place / segment.name}: {'; '.join(faults)}", LedgerDamaged, stacklevel=3)
