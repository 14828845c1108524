"""SVHN, cropped digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cu_ray.datasets._cache import Part
from cu_ray.datasets._download import Archive
from cu_ray.datasets._published import Published
from cu_ray.types import Augmentation, Normalisation

SITE = "http://ufldl.stanford.edu/housenumbers/"


@dataclass(frozen=True)
class Svhn(Published):
    """Street View House Numbers (Netzer 2011), the cropped digits, without the extra set."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SVHN: 73,257 + 26,032 digits of 32 x 32 x 3, downloaded once"
    title = "SVHN"
    num_images = (73_257, 26_032)
    image_shape = (32, 32, 3)
    class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    normalisation = Normalisation((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))  # of the training pixels
    augmentation = Augmentation(crop_padding=4)  # no flip: mirrored digits are none
    archives = (
        Archive("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", (f"{SITE}train_32x32.mat",)),
        Archive("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", (f"{SITE}test_32x32.mat",)),
    )

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the two files."""
        return _read_mat(paths[0]), _read_mat(paths[1])


def _read_mat(path: Path) -> Part:
    """X [32, 32, 3, N] and y [N, 1], where the file calls the digit 0 class 10."""
    from scipy.io import loadmat

    arrays = loadmat(path)
    labels = arrays["y"].reshape(-1).astype(np.int64) % 10
    return Part(labels, [arrays["X"].transpose(3, 0, 1, 2)])
