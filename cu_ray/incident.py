"""Incident files: which training samples, and which labels they were given."""

from __future__ import annotations

import base64
import csv
import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cu_ray.errors import FieldFault, did_you_mean, in_one_line
from cu_ray.types import DatasetFacts, Indices

COLUMNS = ("index", "label")
SHOWN = 5  # offending rows named in a message


@dataclass(frozen=True, eq=False)
class Incident:
    """The listed samples (rows of the training set), and the labels they were given, or None where the file has none."""

    indices: Indices
    labels: Indices | None

    def by_row(self) -> Incident:
        """The same by row."""
        order = np.argsort(self.indices, kind="stable")
        return Incident(self.indices[order], None if self.labels is None else self.labels[order])


def read(file: str, facts: DatasetFacts) -> Incident:
    """What the file says, in its order. Raises FieldFault for the setting `file` where it does not fit the data set."""
    path = Path(file).expanduser()
    columns = _columns(path)
    if "index" not in columns:
        raise _fault(path, f"has no column 'index'. It has: {', '.join(columns) or 'none'}.")
    if len({len(columns[name]) for name in COLUMNS if name in columns}) > 1:
        raise _fault(path, f"has {len(columns['index'])} values of 'index' but {len(columns['label'])} of 'label'")
    indices = _integers(path, columns["index"])
    if not len(indices):
        raise _fault(path, "lists no samples")
    outside = np.flatnonzero((indices < 0) | (indices >= facts.num_train))
    if len(outside):
        raise _fault(path, f"{_rows(outside, indices)}: not a row of the training set. Allowed: 0 to {facts.num_train - 1}.")
    order = np.argsort(indices, kind="stable")
    twice = np.sort(order[1:][np.diff(indices[order]) == 0])
    if len(twice):
        raise _fault(path, f"{_rows(twice, indices)}: listed before. Each sample may be listed once.")
    return Incident(indices, _labels(path, columns["label"], facts) if "label" in columns else None)


def packed(incident: Incident) -> str:
    """The incident as a short text."""
    labels = None if incident.labels is None else incident.labels.tolist()
    plain = json.dumps([np.diff(incident.indices, prepend=0).tolist(), labels], separators=(",", ":"))
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


@functools.lru_cache(maxsize=8)
def unpacked(text: str) -> Incident:
    """The incident that `packed` packed."""
    steps, labels = json.loads(zlib.decompress(base64.b64decode(text)))
    return Incident(np.cumsum(steps, dtype=np.int64), None if labels is None else np.asarray(labels, np.int64))


def _columns(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of a CSV (with a header line), Parquet, npz or npy file by name; of others than `COLUMNS` the names alone.

    An npy file is one array: the column `index`.
    """
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as array:
                return {"index": np.atleast_1d(np.lib.format.read_array(array, allow_pickle=False)).tolist()}
        if path.suffix == ".npz":
            with open(path, "rb") as archive, np.lib.npyio.NpzFile(archive, allow_pickle=False) as arrays:
                return {name: np.atleast_1d(arrays[name]).tolist() if name in COLUMNS else [] for name in arrays.files}
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            return {name: table[name].to_pylist() if name in COLUMNS else [] for name in table.column_names}
        if path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, skipinitialspace=True)
                header, lines = next(reader, []), []
                for line in filter(None, reader):  # empty lines say nothing
                    if len(line) != len(header):
                        raise _fault(path, f"has {len(line)} fields in line {reader.line_num}, {len(header)} in its header")
                    lines.append(line)
            return {name.strip(): [line[place] for line in lines] for place, name in enumerate(header)}
    except FieldFault:
        raise
    except Exception as error:  # there is no end of what NumPy, zipfile and Arrow raise for damaged files
        raise _fault(path, f"cannot be read: {in_one_line(error)}") from error
    raise _fault(path, f"has the ending {path.suffix!r}. Allowed: .csv, .parquet, .npz, .npy.")


def _integers(path: Path, given: Sequence[Any]) -> Indices:
    values, wrong = [], []
    for row, item in enumerate(given):
        try:
            if isinstance(item, (float, bool)):
                raise ValueError
            values.append(np.int64(int(item)))
        except (TypeError, ValueError, OverflowError):
            wrong.append(row)
    if wrong:
        raise _fault(path, f"{_rows(wrong, given)}: not a whole number")
    return np.asarray(values, dtype=np.int64)


def _labels(path: Path, given: Sequence[Any], facts: DatasetFacts) -> Indices:
    """Class names or their indices; a name that is a number is a name."""
    by_text = {str(index): index for index in range(len(facts.class_names))} | {
        name: index for index, name in enumerate(facts.class_names)
    }
    unknown = [row for row, item in enumerate(given) if str(item).strip() not in by_text]
    if unknown:
        allowed = did_you_mean(str(given[unknown[0]]), facts.class_names)
        raise _fault(path, f"{_rows(unknown, given)}: no class of this data set. {allowed} Or an index from 0.")
    return np.asarray([by_text[str(item).strip()] for item in given], dtype=np.int64)


def _rows(rows: Sequence[int] | Indices, values: Sequence[Any] | Indices) -> str:
    """'sample 3 (70000), sample 9 (-1) and 4 more': rows of the file, counted from 1 without the header."""
    named = ", ".join(f"sample {row + 1} ({values[row]})" for row in rows[:SHOWN])
    return named + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def _fault(path: Path, message: str) -> FieldFault:
    return FieldFault("file", f"{path} {message}")
