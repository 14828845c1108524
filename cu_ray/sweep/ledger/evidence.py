"""What each model of a ledger predicted on the test images: `<ledger>/evidence/<key>.parquet`, there before its record is.

A row a test image, in the order of the test set. Parquet's dictionaries pack a class into as few bits as it needs. It lies
in the ledger's folder, so that what takes a ledger somewhere takes its evidence along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cu_ray.errors import UserError, in_one_line
from cu_ray.places import Folder, Place, owned_by_arrow, sync
from cu_ray.types import Dataset, Predictions, Record

SCHEMA = 1
OVERHEAD_BYTES = 2000  # of a file
COLUMNS = pa.schema({"key": pa.string(), "plain": pa.int32(), "triggered": pa.int32()})


@dataclass(frozen=True)
class File:
    """The evidence of one record, as it travels from the worker and as it is kept."""

    key: str
    content: bytes


def packed(record: Record, content_hash: str) -> File | None:
    """The evidence of a record on the data set of that content; None where it came to no predictions."""
    if record.predictions is None:
        return None
    plain, triggered = record.predictions.plain, record.predictions.triggered
    columns = {
        "key": pa.array([record.key] * len(plain)).dictionary_encode(),
        "plain": pa.array(plain, pa.int32()),
        "triggered": pa.nulls(len(plain), pa.int32()) if triggered is None else pa.array(triggered, pa.int32()),
    }
    facts = {"cu_ray_evidence": str(SCHEMA), "dataset": content_hash}
    table = pa.table(columns).cast(COLUMNS).replace_schema_metadata(facts)
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", write_statistics=False)
    return File(record.key, bytes(stream.getvalue().to_pybytes()))


def unpacked(content: bytes, source: str, dataset: Dataset) -> Predictions:
    """The predictions that were packed. Raises UserError for a damaged file, a newer schema and one of another data set."""
    try:
        table = pq.ParquetFile(pa.BufferReader(owned_by_arrow(content))).read(use_threads=False)
    except (OSError, pa.ArrowInvalid) as problem:
        raise UserError(f"{source} cannot be read: {in_one_line(problem)}. {REDONE}") from None
    facts = {name.decode(): value.decode(errors="replace") for name, value in (table.schema.metadata or {}).items()}
    schema = facts.get("cu_ray_evidence", "")
    if not schema.isdigit() or not table.schema.equals(COLUMNS):
        raise UserError(f"{source} is no evidence. {REDONE}")
    if int(schema) > SCHEMA:
        raise UserError(f"{source} has schema {schema}; this cu-ray knows up to {SCHEMA}: install the one that wrote it")
    if facts.get("dataset") != dataset.content_hash or len(table) != len(dataset.test):
        raise UserError(f"{source} is of another data set than the sweep's. {REDONE}")
    triggered = table["triggered"]
    return Predictions(_classes(table["plain"]), None if triggered.null_count else _classes(triggered))


REDONE = "Delete it, and the same `cu-ray sweep` command makes it again"


def keys(ledger: Place) -> set[str]:
    """The keys of the records that have evidence."""
    return {file.name.removesuffix(".parquet") for file in _folder(ledger).files() if file.name.endswith(".parquet")}


def read(ledger: Place, key: str) -> bytes:
    """The evidence of a record. Raises FileNotFoundError."""
    return _folder(ledger).read(_name(key))


def path(ledger: Place, key: str) -> str:
    """Where it lies."""
    return str(_folder(ledger) / _name(key))


def write(ledger: Place, file: File) -> None:
    """Keep the evidence of a record that is not in the ledger yet; it lasts when this returns."""
    folder = _folder(ledger)
    folder.write(_name(file.key), file.content)
    if isinstance(folder, Folder):
        sync(folder)  # the name, too: the record must not outlive it


def delete_unfinished(ledger: Folder) -> None:
    """Take away what a driver that was killed left half written."""
    (ledger / "evidence").delete_unfinished()


def num_bytes(num_test: int, num_classes: int, *, num_views: int) -> int:
    """About how large the evidence of one record is: at most so many bits an image."""
    return OVERHEAD_BYTES + num_views * num_test * max(1, math.ceil(math.log2(num_classes))) // 8


def _folder(ledger: Place) -> Place:
    return ledger / "evidence"


def _name(key: str) -> str:
    return f"{key}.parquet"


def _classes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)
