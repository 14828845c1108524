"""CIFAR-100 with its fine labels."""

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

CLASS_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
    wolf woman worm
    """.split()  # noqa: SIM905 (a hundred lines otherwise)
)


@dataclass(frozen=True)
class Cifar100(Published):
    """CIFAR-100 (Krizhevsky 2009), its 100 fine classes, normalised (as CIFAR-10) and augmented as in the benchmark."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "CIFAR-100: 50,000 + 10,000 images of 32 x 32 x 3 in 100 classes, downloaded once"
    title = "CIFAR-100"
    num_images = (50_000, 10_000)
    image_shape = (32, 32, 3)
    class_names = CLASS_NAMES
    normalisation = NORMALISATION
    augmentation = Augmentation(crop_padding=4, flip=True)
    archives = (
        Archive(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            unpacked="cifar-100-python",
        ),
    )
    train_batches: ClassVar[Batches] = (("train", "16019d7e3df5f24257cddd939b257f8d"),)
    test_batches: ClassVar[Batches] = (("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),)

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the archive or its folder."""
        folder = "cifar-100-python"
        return (
            read_batches(paths[0], folder, self.train_batches, "fine_labels"),
            read_batches(paths[0], folder, self.test_batches, "fine_labels"),
        )
