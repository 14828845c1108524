"""A data set of 60 + 40 images of 12 x 12 pixels with 4 classes, and what a trial on it needs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.datasets import Dataset as DatasetPlugin
from cu_ray.detections.uniform import Uniform
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.models.resnet9 import ResNet9
from cu_ray.types import Augmentation, Dataset, Images, Normalisation, OriginalSpec, Setting, TrainRecipe, TrialSpec

CLASS_NAMES = ("ant", "bee", "cat", "dog")
RECIPE = TrainRecipe(steps=6, lr=0.05, batch_size=16, precision="fp32")


@dataclass(frozen=True)
class Tiny(DatasetPlugin):
    """Stands for the data set in a setting."""

    version: ClassVar[int] = 1


def tiny_dataset(augmentation=Augmentation(1, True)):  # noqa: B008 (frozen)
    """Noise over a pattern of its own for each class; classes of 15 and 10."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 120, (4, 12, 12, 1))

    def some(each):
        labels = rng.permutation(np.repeat(np.arange(4), each))
        return Images((patterns[labels] + rng.integers(1, 100, (len(labels), 12, 12, 1))).astype(np.uint8), labels)

    return Dataset("tiny", CLASS_NAMES, Normalisation((0.4,), (0.3,)), augmentation, some(15), some(10))


class MemoryStore:
    """A store without files; hands out copies."""

    def __init__(self):
        self.entries = {}

    def load(self, kind, key):
        """The entry, or None."""
        if (kind, key) not in self.entries:
            return None
        tensors, metadata = self.entries[kind, key]
        return {name: array.copy() for name, array in tensors.items()}, dict(metadata)

    def claimed(self, kind, key):
        """Nobody else is here."""
        return contextlib.nullcontext()

    def save(self, kind, key, tensors, metadata):
        """Keep an entry."""
        self.entries[kind, key] = {name: array.copy() for name, array in tensors.items()}, dict(metadata)


def original_spec(dataset, *, seed=0, manipulation=Backdoor(size=15, target=1), recipe=RECIPE):  # noqa: B008 (frozen)
    """A ResNet-9 of width 2 on the tiny data set."""
    return OriginalSpec(Setting(Tiny(), dataset.content_hash, ResNet9(width=2), manipulation, recipe, seed))


def trial_spec(dataset, method, *, deletion_size=9, keep="last", held_out=False, **setting):
    """A trial on it."""
    deletion_size = deletion_size if method.uses_deletion_set else 0
    original = OriginalSpec.for_method(original_spec(dataset, **setting).setting, method)
    return TrialSpec(original, Uniform(), deletion_size, method, keep, held_out)
