"""Reading CIFAR's batches: pickles of rows of 3,072 bytes, red, green and blue planes one after another."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cu_ray.datasets._cache import Part
from cu_ray.types import Normalisation

# CIFAR-10's own, which the benchmark uses for CIFAR-100 too
NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

Batches = tuple[tuple[str, str], ...]  # name and MD5


def read_batches(path: Path, folder: str, batches: Batches, labels: str) -> Part:
    """The images of these batches, from the archive or from the folder that was unpacked from it."""
    contents = [_unpickled(content, *batch) for batch, content in zip(batches, _bytes(path, folder, batches), strict=True)]
    rows = (np.asarray(content["data"], dtype=np.uint8) for content in contents)
    blocks = (block.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for block in rows)
    return Part(np.concatenate([np.asarray(content[labels], dtype=np.int64) for content in contents]), blocks)


def _bytes(path: Path, folder: str, batches: Batches) -> Iterable[bytes]:
    if path.is_dir():
        return [(path / name).read_bytes() for name, _ in batches]
    with tarfile.open(path) as archive:
        members = [archive.extractfile(f"{folder}/{name}") for name, _ in batches]
        return [member.read() for member in members if member is not None]


def _unpickled(content: bytes, name: str, md5: str) -> dict[str, object]:
    """The batch; nothing is unpickled, and so run, but what the publisher wrote."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{name} is damaged: its md5 is {found}, not {md5}")
    batch: dict[str, object] = pickle.loads(content, encoding="latin1")  # noqa: S301 (checked above)
    return batch
