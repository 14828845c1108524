"""BadNets backdoor: a patch in the corner and the target label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np

from cu_ray.errors import FieldFault
from cu_ray.identity import added
from cu_ray.manipulations import Manipulation, class_index
from cu_ray.manipulations._triggers import drawn, size_at_rate, with_and_without
from cu_ray.plugins import Bound, Choices
from cu_ray.types import Corruption, Dataset, DatasetFacts, Domains, Images, Normalisation, Stamp

POSITIONS = ("bottom_right", "bottom_left", "top_right", "top_left", "center")


@dataclass(frozen=True)
class Backdoor(Manipulation):
    """Samples drawn uniformly (the target class included) get a square patch and the target label.

    The patch is set after augmentation, so that no crop moves it. `value`: its brightness from 0 to 1 before normalisation;
    null: the largest value of the normalised training data, in every channel. `clean_label`: samples are drawn from the
    target class alone and keep their true label (after Turner et al. 1912.02771, without their perturbations: a weaker
    attack). Affected domain: every test image with the patch, true labels. Retain domain: the clean test images.
    Source: arXiv 2402.14015 after BadNets (1708.06733).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a patch, at the bottom right by default, makes the model say `target`"
    has_trigger: ClassVar[bool] = True
    regularity: ClassVar[int | None] = 2
    patch: Annotated[int, Bound(low=1)] = 3
    target: int | str = 0
    position: Annotated[str, Choices(POSITIONS)] = added("bottom_right")
    value: Annotated[float | None, Bound(low=0, high=1)] = added(None)
    clean_label: bool = added(False)

    def settle(self, facts: DatasetFacts) -> Self:
        """The patch must fit into the image and the target must be a class."""
        side = min(facts.image_shape[:2])
        if self.patch > side:
            raise FieldFault("patch", f"a patch of {self.patch} pixels is larger than an image of {side}")
        return replace(super().settle(facts), target=class_index("target", self.target, facts))

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """`size` samples with the patch and the target label."""
        indices, labels = drawn(self.size, int(self.target), images, rng, clean_label=self.clean_label)
        return Corruption(indices, labels, self.stamp(images, normalisation))

    def corrupt_unseen(self, unseen: Images, dataset: Dataset, corruption: Corruption, rng: np.random.Generator) -> Corruption:
        """The same patch in other images; of a clean label not in more than the target class has."""
        size = size_at_rate(self.rate(dataset), int(self.target), unseen, clean_label=self.clean_label)
        return replace(self, size=size).corrupt(unseen, dataset.normalisation, rng)

    def stamp(self, images: Images, normalisation: Normalisation) -> Stamp:
        """The patch, given the images among which the largest value is sought."""
        height, width, channels = images.pixels.shape[1:]
        vertical, _, horizontal = self.position.partition("_")
        top = {"top": 0, "bottom": height - self.patch}.get(vertical, (height - self.patch) // 2)
        left = {"left": 0, "right": width - self.patch}.get(horizontal, (width - self.patch) // 2)
        mask = np.zeros((height, width), dtype=bool)
        mask[top : top + self.patch, left : left + self.patch] = True
        if self.value is None:
            return Stamp(mask, np.full(channels, normalisation.maximum(images.pixels), dtype=np.float32))
        return Stamp(mask, normalisation.apply(np.full(channels, 255 * self.value)))

    def test_domains(self, test: Images) -> Domains:
        """All test images, with the patch and without."""
        return with_and_without(test, int(self.target))
