"""CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cu_ray.datasets._cache import Part
from cu_ray.datasets._cifar import NORMALISATION, Batches, read_batches
from cu_ray.datasets._download import Archive
from cu_ray.datasets._published import Published
from cu_ray.types import Augmentation


@dataclass(frozen=True)
class Cifar10(Published):
    """CIFAR-10 (Krizhevsky 2009), normalised and augmented as in the benchmark."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "CIFAR-10: 50,000 + 10,000 images of 32 x 32 x 3, downloaded once"
    title = "CIFAR-10"
    num_images = (50_000, 10_000)
    image_shape = (32, 32, 3)
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    normalisation = NORMALISATION
    augmentation = Augmentation(crop_padding=4, flip=True)
    archives = (
        Archive(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            unpacked="cifar-10-batches-py",
        ),
    )
    train_batches: ClassVar[Batches] = (
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    )
    test_batches: ClassVar[Batches] = (("test_batch", "40351d587109b95175f43aff81a1287e"),)

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the archive or its folder."""
        folder = "cifar-10-batches-py"
        return (
            read_batches(paths[0], folder, self.train_batches, "labels"),
            read_batches(paths[0], folder, self.test_batches, "labels"),
        )
