"""MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cu_ray.datasets._cache import Part
from cu_ray.datasets._idx import idx_archives, read_part
from cu_ray.datasets._published import Published
from cu_ray.types import Augmentation, Normalisation


@dataclass(frozen=True)
class Mnist(Published):
    """MNIST (LeCun 1998): handwritten digits."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "MNIST: 60,000 + 10,000 digits of 28 x 28, downloaded once"
    title = "MNIST"
    num_images = (60_000, 10_000)
    image_shape = (28, 28, 1)
    class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    normalisation = Normalisation((0.1307,), (0.3081,))  # of the training pixels
    augmentation = Augmentation(crop_padding=2)  # no flip: a mirrored 2 or 7 is no digit, a mirrored 5 looks like a 2
    archives = idx_archives(
        "MNIST",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    )

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the four files."""
        return read_part(*paths[:2]), read_part(*paths[2:])
