"""Fashion-MNIST, all of it."""

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
class FashionMnist(Published):
    """Fashion-MNIST (Xiao 2017; Zalando, MIT licence)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Fashion-MNIST: 60,000 + 10,000 images of 28 x 28, downloaded once"
    title = "Fashion-MNIST"
    num_images = (60_000, 10_000)
    image_shape = (28, 28, 1)
    class_names = ("t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
    normalisation = Normalisation((0.2860,), (0.3530,))  # of the training pixels
    augmentation = Augmentation(crop_padding=2, flip=True)
    archives = idx_archives(
        "FashionMNIST",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    )

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the four files."""
        return read_part(*paths[:2]), read_part(*paths[2:])
