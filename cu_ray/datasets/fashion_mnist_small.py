"""6,000 training and 2,000 test images of Fashion-MNIST, inside the package."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.datasets import Dataset
from cu_ray.types import Augmentation, DatasetFacts, Images, Normalisation
from cu_ray.types import Dataset as LoadedDataset

CLASS_NAMES = ("t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")


@dataclass(frozen=True)
class FashionMnistSmall(Dataset):
    """A class-balanced subset of Fashion-MNIST (Zalando, MIT licence): the first 600 and 200 images of each class."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "6,000 + 2,000 images of Fashion-MNIST, 28 x 28, inside the package: no download"

    def facts(self) -> DatasetFacts:
        """6,000 training and 2,000 test images of 28 x 28, one channel."""
        return DatasetFacts(6000, 2000, (28, 28, 1), CLASS_NAMES)

    def load(self) -> LoadedDataset:
        """The images, from the package's own file."""
        file = importlib.resources.files("cu_ray.datasets") / "_data" / "fashion_mnist_small.npz"
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            train, test = (
                Images(arrays[f"{part}_pixels"][..., None], arrays[f"{part}_labels"].astype(np.int64))
                for part in ("train", "test")
            )
        # mean and standard deviation of the full training set's pixels
        normalisation = Normalisation(mean=(0.2860,), std=(0.3530,))
        augmentation = Augmentation(crop_padding=2, flip=True)
        return LoadedDataset("fashion_mnist_small", CLASS_NAMES, normalisation, augmentation, train, test)
