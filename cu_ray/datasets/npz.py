"""One's own arrays in a NumPy file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from cu_ray.datasets._cache import Contents, Part
from cu_ray.datasets._own import Own, checked, existing, numbered, stamp_of
from cu_ray.errors import UserError
from cu_ray.types import Indices, Normalisation, Pixels

BLOCK_BYTES = 32 << 20
NEEDED = ("train_pixels", "train_labels", "test_pixels", "test_labels")
FORM = f"an .npz file with {', '.join(NEEDED)} and, if you like, class_names, mean, std"


@dataclass(frozen=True)
class Npz(Own):
    """Arrays of an .npz file: train_pixels and test_pixels uint8 [N, H, W, C] or [N, H, W], train_labels and test_labels [N].

    Labels are integers from 0 without gaps. Optional: class_names (texts), mean and std by channel for pixels between 0 and
    1 (else those of the training pixels). Pickled objects are refused.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "your own arrays: train_pixels, train_labels, test_pixels, test_labels in `file`"
    file: str

    def contents(self) -> Contents:
        """What headers and labels tell, and the pixels still to be read."""
        path = existing(self.file, FORM)
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = _Arrays(path, archive)
                return arrays.contents()
        except (zipfile.BadZipFile, IsADirectoryError) as error:
            raise UserError(f"{path} cannot be read ({error}): {FORM} is needed") from error

    def identity(self) -> Any:
        """The file's path, size and time."""
        return stamp_of(existing(self.file, FORM))


class _Arrays:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._names = [name.removesuffix(".npy") for name in archive.namelist()]

    def contents(self) -> Contents:
        missing = [name for name in NEEDED if name not in self._names]
        if missing:
            raise self._fault(f"has no {', '.join(missing)} (it has {', '.join(self._names) or 'nothing'}): {FORM} is needed")
        shapes = [self._pixel_shape(part) for part in ("train", "test")]
        if shapes[0][1:] != shapes[1][1:]:
            raise self._fault(f"train_pixels are images of {shapes[0][1:]}, test_pixels of {shapes[1][1:]}")
        train, test = (self._part(part, shape[0]) for part, shape in zip(("train", "test"), shapes, strict=True))
        height, width, channels = shapes[0][1:]
        normalisation = self._normalisation(channels)
        return checked(
            Contents(str(self._path), self._class_names(train.labels), (height, width, channels), train, test, normalisation)
        )

    def _fault(self, message: str) -> UserError:
        return UserError(f"{self._path} {message}")

    def _pixel_shape(self, part: str) -> tuple[int, ...]:
        """[N, H, W, C], from the header."""
        name = f"{part}_pixels"
        with self._archive.open(f"{name}.npy") as stream:
            shape, _, dtype = _header(stream)
        if dtype != np.uint8:
            raise self._fault(f"has {name} of type {dtype}: uint8 is needed, values from 0 to 255")
        if len(shape) not in (3, 4) or 0 in shape:
            raise self._fault(f"has {name} of shape {shape}: [N, H, W, C] or [N, H, W] is needed")
        if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
            raise self._fault(f"has {name} of shape {shape}: channels come last, [N, H, W, C]")
        return shape if len(shape) == 4 else (*shape, 1)

    def _part(self, part: str, num_images: int) -> Part:
        labels = self._small(f"{part}_labels")
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise self._fault(f"has {part}_labels of type {labels.dtype} and shape {labels.shape}: integers [N] are needed")
        if len(labels) != num_images:
            raise self._fault(f"has {num_images} {part}_pixels, but {len(labels)} {part}_labels")
        return Part(labels.astype(np.int64), _blocks(self._path, f"{part}_pixels"))

    def _class_names(self, labels: Indices) -> tuple[str, ...]:
        if "class_names" not in self._names:
            return numbered(labels)
        names = self._small("class_names")
        if names.dtype.kind != "U" or names.ndim != 1:
            raise self._fault(f"has class_names of type {names.dtype} and shape {names.shape}: a list of texts is needed")
        return tuple(names.tolist())

    def _normalisation(self, channels: int) -> Normalisation | None:
        given = [name for name in ("mean", "std") if name in self._names]
        if not given:
            return None
        if len(given) == 1:
            raise self._fault(f"has {given[0]} alone: give mean and std, or neither")
        mean, std = (self._small(name) for name in given)
        sound = all(each.shape == (channels,) and each.dtype.kind in "fiu" and np.isfinite(each).all() for each in (mean, std))
        if not (sound and (std > 0).all()):
            raise self._fault(f"needs {channels} finite numbers, one a channel, as mean and as std, the latter above 0")
        if (mean < 0).any() or (mean > 1).any():
            raise self._fault(
                f"has mean {mean.tolist()} and std {std.tolist()}: they are of pixels between 0 and 1, so divide by 255"
            )
        return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))

    def _small(self, name: str) -> Any:
        try:
            with self._archive.open(f"{name}.npy") as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise self._fault(f"has {name} that cannot be read: {error}") from error


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _blocks(path: Path, name: str) -> Iterator[Pixels]:
    """Blocks of an array's images [B, H, W, C]; an array in Fortran's order comes in one piece."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as opened:
        stream = cast("BinaryIO", opened)
        shape, fortran_order, _ = _header(stream)
        image = shape[1:] if len(shape) == 4 else (*shape[1:], 1)
        if fortran_order:
            stream.seek(0)
            yield np.lib.format.read_array(stream, allow_pickle=False).reshape(-1, *image)
            return
        size = int(np.prod(image))
        while content := stream.read(max(1, BLOCK_BYTES // size) * size):
            yield np.frombuffer(content, dtype=np.uint8).reshape(-1, *image)
