"""Reading MNIST's files: big-endian sizes, then bytes; gzipped as published, or unpacked."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cu_ray.datasets._cache import Part
from cu_ray.datasets._download import Archive

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UNSIGNED_BYTES = 8


def idx_archives(folder: str, md5s: tuple[str, str, str, str], sites: tuple[str, ...]) -> tuple[Archive, ...]:
    """The four files, where torchvision keeps them: in `<folder>/raw`."""
    return tuple(
        Archive(f"{folder}/raw/{file}.gz", md5, tuple(f"{site}{file}.gz" for site in sites), unpacked=f"{folder}/raw/{file}")
        for file, md5 in zip(FILES, md5s, strict=True)
    )


def read_part(pixels: Path, labels: Path) -> Part:
    """Images of one channel with their labels."""
    return Part(read_idx(labels).astype(np.int64), [read_idx(pixels)[..., None]])


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in a file of unsigned bytes. Raises ValueError where it is none, or not all of it is there."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(content) < 4:
        raise ValueError(f"{path.name} is no IDX file of unsigned bytes")
    shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(shape)
