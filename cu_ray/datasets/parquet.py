"""One's own pictures in Parquet files, also in the Hugging Face layout."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from cu_ray.datasets._cache import Contents, Part
from cu_ray.datasets._own import TRAIN, Own, checked, existing, numbered, stamp_of, unseen_part
from cu_ray.datasets._pictures import BLOCK, Look
from cu_ray.errors import UserError, did_you_mean
from cu_ray.plugins import Bound
from cu_ray.types import Mask

FORM = "a Parquet file with a column of 'train' and 'test', or a folder with train*.parquet and test*.parquet,"


@dataclass(frozen=True)
class Parquet(Own):
    """PNG or JPEG bytes, or Hugging Face's {bytes, path}, with labels and parts, in a Parquet file or a folder of them.

    `image`, `label`, `split`: the columns. Labels are integers from 0 without gaps (named by Hugging Face's metadata where
    there are) or texts (classes in alphabetical order). Without a split column, names say it: train*.parquet or train/*.parquet.
    `side`, `grey`: as for `image_folder`. Normalised by the training pixels.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "your own pictures in Parquet files: columns of images, labels and parts in `file`"
    file: str
    image: str = "image"
    label: str = "label"
    split: str = "split"
    side: Annotated[int | None, Bound(low=1)] = None
    grey: bool = False

    def contents(self) -> Contents:
        """What schemas, labels and the first picture's header tell, and the pictures still to be read."""
        source = existing(self.file, FORM)
        files = [self._file(path, source) for path in self._paths(source)]
        if len({file.labels.dtype.kind for file in files}) > 1:
            raise UserError(f"{source}: column {self.label!r} holds texts in some files and integers in others")
        names = {str(name) for file in files for name in np.unique(file.parts)}
        test = unseen_part(names)
        if test is None:
            raise UserError(f"{source}: the parts are called {', '.join(sorted(names)) or 'nothing'}: {FORM} is needed")
        given = [np.concatenate([file.labels[file.parts == part] for file in files]) for part in (TRAIN, test)]
        class_names, labels = _classes(given, files[0].class_names)
        first, where = next(_pictures(files, TRAIN, self.image))
        look = Look(self.side, self.grey)
        shape = look.shape(first, where)
        train, test_part = (
            Part(of_part, look.blocks(_pictures(files, part, self.image), shape))
            for part, of_part in zip((TRAIN, test), labels, strict=True)
        )
        return checked(Contents(str(source), class_names, shape, train, test_part))

    def identity(self) -> Any:
        """The settings, and path, size and time of each file."""
        settings = [self.image, self.label, self.split, self.side, self.grey]
        return [settings, [stamp_of(path) for path in self._paths(existing(self.file, FORM))]]

    def _paths(self, source: Path) -> list[Path]:
        paths = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
        if not paths:
            raise UserError(f"{source} has no *.parquet: {FORM} is needed")
        return paths

    def _file(self, path: Path, source: Path) -> _File:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
            for column in (self.image, self.label):
                if column not in schema.names:
                    raise UserError(f"{path} has no column {column!r}. {did_you_mean(column, schema.names)}")
            self._check_image_type(path, schema.field(self.image).type, pa)
            has_split = self.split in schema.names
            table = pq.read_table(path, columns=[self.label, self.split][: 1 + has_split], partitioning=None)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is no Parquet file: {error}") from error
        labels = self._labels(path, table.column(self.label), pa)
        parts = table.column(self.split).to_pylist() if has_split else [_part_in_name(path.relative_to(source))] * len(labels)
        return _File(path, labels, np.asarray(parts, dtype=str), _class_names_in(schema, self.label))

    def _check_image_type(self, path: Path, kind: Any, pa: Any) -> None:
        if pa.types.is_struct(kind):
            kind = next((field.type for field in kind if field.name == "bytes"), kind)
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{path}: column {self.image!r} is {kind}: PNG or JPEG bytes, or {{bytes, path}}, are needed")

    def _labels(self, path: Path, column: Any, pa: Any) -> Any:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if column.null_count or not (is_text or pa.types.is_integer(kind)):
            nulls = f" with {column.null_count} nulls" if column.null_count else ""
            raise UserError(f"{path}: column {self.label!r} is {kind}{nulls}: an integer or a text in each row is needed")
        return np.asarray(column.to_pylist(), dtype=str if is_text else np.int64)


@dataclass(frozen=True, eq=False)
class _File:
    """A file without its images: a label and the name of a part for each row."""

    path: Path
    labels: Any
    parts: Any
    class_names: tuple[str, ...] | None

    def rows(self, part: str) -> Mask:
        """Which rows belong to a part."""
        return np.asarray(self.parts == part)


def _part_in_name(inside: Path) -> str:
    """'train' of train-00000-of-00005.parquet and of train/0000.parquet; the path is that inside the user's folder."""
    words = [match[0] for text in (inside.stem, inside.parent.name) if (match := re.match("[a-z]+", text.lower()))]
    return next((word for word in words if word == TRAIN or unseen_part({TRAIN, word})), inside.name or "nothing")


def _class_names_in(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's `datasets` writes into the metadata, or None."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    return None


def _classes(given: list[Any], names: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[Any]]:
    """Class names, and the labels of both parts as integers."""
    if given[0].dtype.kind != "U":
        return names or numbered(given[0]), given
    found = np.unique(np.concatenate(given))
    return tuple(found.tolist()), [np.searchsorted(found, labels).astype(np.int64) for labels in given]


def _pictures(files: list[_File], part: str, column: str) -> Iterator[tuple[bytes, str]]:
    """The encoded pictures of a part with their places, in the order of files and rows."""
    import pyarrow.parquet as pq

    for file in files:
        chosen = np.flatnonzero(file.rows(part))
        if not len(chosen):
            continue
        start = 0
        with pq.ParquetFile(file.path) as opened:
            for batch in opened.iter_batches(batch_size=BLOCK, columns=[column]):
                inside = chosen[(chosen >= start) & (chosen < start + len(batch))]
                for row, value in zip(inside, batch.column(0).take(inside - start).to_pylist(), strict=True):
                    picture = value.get("bytes") if isinstance(value, dict) else value
                    if picture is None:
                        raise UserError(f"{file.path}: row {row} has no image bytes")
                    yield picture, f"{file.path}: the image of row {row}"
                start += len(batch)
