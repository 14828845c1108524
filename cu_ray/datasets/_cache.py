"""Images that were converted once into plain arrays in a folder, mapped into memory: nothing is read before it is used.

    <cache>/<name>-<key>/  train_pixels.npy  train_labels.npy  test_pixels.npy  test_labels.npy  facts.json

The folder appears finished: it is written under a temporary name and renamed. One process converts, others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cu_ray.errors import CuRayError, UserError, in_one_line
from cu_ray.identity import key_of
from cu_ray.places import ABANDONED_AFTER, claimed
from cu_ray.types import Images, Indices, Normalisation, Pixels

CACHE = "~/.cache/cu-ray/datasets"
CONVERTER = 1  # part of every key: raise it when the arrays that come out of the same files change
PIECE = 1024  # images copied or counted at once
PIECE_BYTES = 16 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
Shape = tuple[int, int, int]

LOCKED = f"locked-on-{platform.node()}-"  # in the name of what is made under a lock, which may be this machine's alone


@dataclass(frozen=True, eq=False)
class Part:
    """A training or test set as it is read: labels [N], and blocks of pixels [B, H, W, C] that together are N images."""

    labels: Indices
    blocks: Iterable[Pixels]


@dataclass(frozen=True, eq=False)
class Contents:
    """A data set as it is read. Blocks are read once and by nobody who only wants to know the rest."""

    source: str  # for messages
    class_names: tuple[str, ...]
    image_shape: Shape
    train: Part
    test: Part
    normalisation: Normalisation | None = None  # None: that of the training pixels


@dataclass(frozen=True, eq=False)
class Kept:
    """A data set as it lies in the cache, pixels and labels mapped read-only."""

    class_names: tuple[str, ...]
    normalisation: Normalisation
    train: Images
    test: Images


def path_of(cache: str, name: str, identity: Any) -> Path:
    """Where a data set lies once it is converted. `identity`: all that its pixels and labels depend on."""
    return Path(cache).expanduser().absolute() / f"{name}-{key_of([CONVERTER, identity])[:16]}"


def kept(path: Path, read: Callable[[Path], Contents]) -> Kept:
    """The data set at this path; converted first where it is not there. `read` gets a folder for temporary files."""
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with claimed(path.with_name(f".{path.name}.lock")) as alone:
                if not path.exists():  # another process may have made it meanwhile
                    _clear_abandoned(path, alone=alone)
                    _convert(path, read, alone=alone)
        except OSError as error:
            space = "; `cache` names a folder with more space" if error.errno in NO_SPACE else ""
            raise UserError(f"the images cannot be converted into {path.parent}: {error}{space}") from error
    try:
        return _opened(path)
    except Exception as error:  # as below
        raise UserError(f"{path} is damaged ({in_one_line(error)}): delete it, and it is made again") from error


def checksums(cache: str = CACHE) -> dict[str, str]:
    """A checksum of each data set that lies in the cache, by the name of its folder, which says what it was made of."""
    found = {}
    for folder in sorted(Path(cache).expanduser().glob("[!.]*")):
        crc = 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    crc = zlib.crc32(piece, crc)
        found[folder.name] = f"{crc:08x}"
    return found


def _clear_abandoned(path: Path, *, alone: bool) -> None:
    """Take away what processes that were killed left of a conversion: at once what was made here under the lock that is held."""
    for left in path.parent.glob(f".{path.name}.*tmp"):
        with contextlib.suppress(OSError):  # another process was first
            if (alone and LOCKED in left.name) or left.stat().st_mtime < time.time() - ABANDONED_AFTER:
                shutil.rmtree(left, ignore_errors=True)


def _convert(path: Path, read: Callable[[Path], Contents], *, alone: bool) -> None:
    unfinished = path.with_name(f".{path.name}.{LOCKED if alone else ''}{uuid.uuid4().hex}.tmp")
    scratch = unfinished / "scratch"
    scratch.mkdir(parents=True)
    try:
        contents = read(scratch)
        counts = _write(unfinished, "train", contents)
        _write(unfinished, "test", contents)
        normalisation = contents.normalisation or _normalisation_of(counts)
        facts = {"class_names": contents.class_names, "mean": normalisation.mean, "std": normalisation.std}
        (unfinished / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        shutil.rmtree(scratch)
        _flush(unfinished)
        try:
            os.replace(unfinished, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process has just made it
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, part: str, contents: Contents) -> npt.NDArray[np.int64]:
    """How often each pixel value [C, 256] occurs. Written block by block, not through a map: a full disk is then an error."""
    images, shape = contents.train if part == "train" else contents.test, contents.image_shape
    counts = np.zeros((shape[2], 256), dtype=np.int64)
    written = 0
    with open(folder / f"{part}_pixels.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(images.labels), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in images.blocks:
            if block.dtype != np.uint8 or block.shape[1:] != shape:
                raise UserError(f"{contents.source}: {part} images of {block.shape[1:]} {block.dtype}, not of {shape} uint8")
            for start in range(0, len(block), PIECE):
                piece = np.ascontiguousarray(block[start : start + PIECE])
                file.write(piece.data)
                counts += [np.bincount(piece[..., channel].ravel(), minlength=256) for channel in range(shape[2])]
            written += len(block)
    if written != len(images.labels):
        raise UserError(f"{contents.source}: {written} {part} images, but {len(images.labels)} {part} labels")
    np.save(folder / f"{part}_labels.npy", images.labels.astype(np.int64))
    return counts


def _normalisation_of(counts: npt.NDArray[np.int64]) -> Normalisation:
    """Mean and standard deviation by channel, from exact counts: how the images were cut into blocks changes nothing."""
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    std[std == 0] = 1  # a channel of one value becomes 0
    return Normalisation(tuple(round(float(each), 6) for each in mean), tuple(round(float(each), 6) for each in std))


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _opened(path: Path) -> Kept:
    facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
    train, test = (
        Images(_mapped(path / f"{part}_pixels.npy"), _mapped(path / f"{part}_labels.npy")) for part in ("train", "test")
    )
    return Kept(tuple(facts["class_names"]), Normalisation(tuple(facts["mean"]), tuple(facts["std"])), train, test)


def _mapped(path: Path) -> Any:
    """A plain array on the mapped file: NumPy's memmap would be pickled into Ray as a class of its own."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """A context in which errors of reading become a UserError that names the source; a full disk stays what it is."""
    try:
        yield
    except CuRayError:
        raise
    except Exception as error:  # there is no end of what NumPy, zipfile, Arrow and Pillow raise for damaged files
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        raise UserError(f"{source}: cannot be read ({type(error).__name__}: {in_one_line(error)}); is it damaged?") from error
