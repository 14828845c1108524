"""BadNets backdoor: a patch in the corner and the target label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np

from cu_ray.errors import FieldFault
from cu_ray.manipulations import Manipulation, class_index
from cu_ray.plugins import Bound
from cu_ray.types import Corruption, DatasetFacts, Domains, Images, Normalisation, Stamp, View


@dataclass(frozen=True)
class Backdoor(Manipulation):
    """Samples drawn uniformly (the target class included) get a square patch at the bottom right and the target label.

    The patch has the largest value of the normalised training data and is set after augmentation. Affected domain: every
    test image with the patch, true labels. Retain domain: the clean test images. Source: arXiv 2402.14015 after BadNets.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a patch at the bottom right makes the model say `target`"
    patch: Annotated[int, Bound(low=1)] = 3
    target: int | str = 0

    def settle(self, facts: DatasetFacts) -> Self:
        """The patch must fit into the image and the target must be a class."""
        side = min(facts.image_shape[:2])
        if self.patch > side:
            raise FieldFault("patch", f"a patch of {self.patch} pixels is larger than an image of {side}")
        return replace(super().settle(facts), target=class_index("target", self.target, facts))

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """`size` samples with the patch and the target label."""
        chosen = np.sort(rng.choice(len(images), self.size, replace=False))
        height, width, channels = images.pixels.shape[1:]
        mask = np.zeros((height, width), dtype=bool)
        mask[height - self.patch :, width - self.patch :] = True
        values = np.full(channels, normalisation.maximum(images.pixels), dtype=np.float32)
        return Corruption(chosen, np.full(self.size, self.target, dtype=np.int64), Stamp(mask, values))

    def test_domains(self, test: Images) -> Domains:
        """All test images, with the patch and without."""
        rows = np.arange(len(test))
        return Domains(View(rows, stamped=True), View(rows), target=int(self.target))
