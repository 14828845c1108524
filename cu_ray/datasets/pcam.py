"""PatchCamelyon, the centre of each patch."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cu_ray.datasets._cache import Part
from cu_ray.datasets._download import Archive
from cu_ray.datasets._published import Published
from cu_ray.errors import UserError
from cu_ray.types import Augmentation, Normalisation, Pixels

BLOCK = 1024  # images read at once: 28 MB
CENTRE = slice(32, 64)  # of 96 pixels


def _archive(part: str, md5: str) -> Archive:
    file = f"camelyonpatch_level_2_split_{part}.h5"
    url = f"https://zenodo.org/records/2546921/files/{file}.gz"  # torchvision's Google Drive needs one more package
    return Archive(f"pcam/{file}.gz", md5, (url,), unpacked=f"pcam/{file}")


@dataclass(frozen=True)
class Pcam(Published):
    """PCam (Veeling 2018): lymph node tissue, with or without tumor. The benchmark takes the centre, 32 of 96 pixels.

    The label says whether there is tumor in just this centre. Training and test set; the validation set is not used.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "PCam: 262,144 + 32,768 images, the centre of 32 x 32 x 3, downloaded once (7 GB)"
    title = "PCam"
    num_images = (262_144, 32_768)
    image_shape = (32, 32, 3)
    class_names = ("normal", "tumor")
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    augmentation = Augmentation(crop_padding=4, flip=True)
    archives = (
        _archive("train_x", "1571f514728f59376b705fc836ff4b63"),
        _archive("train_y", "35c2d7259d906cfc8143347bb8e05be7"),
        _archive("test_x", "d8c2d60d490dbd479f8199bdfa0cf6ec"),
        _archive("test_y", "60a7035772fbdb7f34eb86d4420cf66a"),
    )

    def require(self) -> None:
        """PCam's files are HDF5."""
        if importlib.util.find_spec("h5py") is None:
            raise UserError("PCam needs h5py to read its files: pip install 'cu-ray[pcam]'")

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the four files."""
        train_x, train_y, test_x, test_y = paths
        return (
            Part(_labels(train_y, scratch), _centres(train_x, scratch)),
            Part(_labels(test_y, scratch), _centres(test_x, scratch)),
        )


def _labels(path: Path, scratch: Path) -> np.ndarray:
    import h5py

    with h5py.File(_unzipped(path, scratch)) as file:
        return np.asarray(file["y"][:]).reshape(-1).astype(np.int64)


def _centres(path: Path, scratch: Path) -> Iterator[Pixels]:
    """Blocks of the images' centres; the file is unzipped when the first is asked for."""
    import h5py

    with h5py.File(_unzipped(path, scratch)) as file:
        images = file["x"]
        stride = images.chunks[0] if images.chunks else 1
        block = -(-BLOCK // stride) * stride  # whole chunks: each is decompressed once
        for start in range(0, len(images), block):
            yield images[start : start + block, CENTRE, CENTRE]


def _unzipped(path: Path, scratch: Path) -> Path:
    if path.suffix != ".gz":
        return path
    unzipped = scratch / path.stem
    with gzip.open(path, "rb") as source, open(unzipped, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return unzipped
