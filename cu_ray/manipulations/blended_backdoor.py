"""Blended backdoor: a faint noise picture over the whole image and the target label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np

from cu_ray.identity import generator_for
from cu_ray.manipulations import Manipulation, class_index
from cu_ray.manipulations._triggers import drawn, size_at_rate, with_and_without
from cu_ray.plugins import Bound
from cu_ray.types import Corruption, Dataset, DatasetFacts, Domains, Images, Normalisation, Stamp


@dataclass(frozen=True)
class BlendedBackdoor(Manipulation):
    """Samples drawn uniformly become (1 - blend) image + blend noise and get the target label (Chen et al. 1712.05526).

    The noise is one picture of uniform pixels, the same for all samples and seeds; `pattern` numbers it. It is blended in
    after augmentation. `clean_label`: samples are drawn from the target class alone and keep their true label. Affected
    domain: every test image with the noise, true labels. Retain domain: the clean test images.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a faint noise picture over the whole image makes the model say `target`"
    has_trigger: ClassVar[bool] = True
    regularity: ClassVar[int | None] = 2
    blend: Annotated[float, Bound(low=0, high=1, open_low=True)] = 0.2
    target: int | str = 0
    pattern: Annotated[int, Bound(low=0)] = 0
    clean_label: bool = False

    def settle(self, facts: DatasetFacts) -> Self:
        """The target must be a class."""
        return replace(super().settle(facts), target=class_index("target", self.target, facts))

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """`size` samples with the noise and the target label."""
        indices, labels = drawn(self.size, int(self.target), images, rng, clean_label=self.clean_label)
        return Corruption(indices, labels, self.stamp(images, normalisation))

    def corrupt_unseen(self, unseen: Images, dataset: Dataset, corruption: Corruption, rng: np.random.Generator) -> Corruption:
        """The same noise over other images; of a clean label not in more than the target class has."""
        size = size_at_rate(self.rate(dataset), int(self.target), unseen, clean_label=self.clean_label)
        return replace(self, size=size).corrupt(unseen, dataset.normalisation, rng)

    def stamp(self, images: Images, normalisation: Normalisation) -> Stamp:
        """The noise picture: blending is the same before normalisation and after it."""
        shape = images.pixels.shape[1:]
        picture_HWC = generator_for("blended pattern", self.pattern, list(shape)).integers(0, 256, shape)
        return Stamp(np.ones(shape[:2], dtype=bool), normalisation.apply(picture_HWC), self.blend)

    def test_domains(self, test: Images) -> Domains:
        """All test images, with the noise and without."""
        return with_and_without(test, int(self.target))
