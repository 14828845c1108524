"""Interclass confusion: the labels of two classes exchanged for some of their samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from cu_ray.errors import FieldFault
from cu_ray.manipulations import Manipulation, class_index
from cu_ray.types import Corruption, Dataset, DatasetFacts, Domains, Images, Normalisation, View


@dataclass(frozen=True)
class InterclassConfusion(Manipulation):
    """Half of the samples come from one class and half from the other; their labels are exchanged.

    Affected domain: the test images of the two classes. Retain domain: those of all others. Source: arXiv 2402.14015; the
    samples are drawn by seed (published: the first of each class).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "labels of two classes exchanged, half of `size` from each"
    regularity: ClassVar[int | None] = 1
    classes: tuple[int | str, int | str] = (3, 5)

    def settle(self, facts: DatasetFacts) -> Self:
        """Two different classes of three or more, an even size, and not more samples than the training set could hold."""
        first, second = (class_index("classes", name, facts) for name in self.classes)
        if first == second:
            raise FieldFault("classes", f"{list(self.classes)} names one class twice; give two different ones")
        if len(facts.class_names) == 2:
            raise FieldFault("classes", f"{list(self.classes)} are all classes: no test images are left that it does not harm")
        if self.size % 2:
            raise FieldFault("size", f"{self.size} is odd: half of the samples come from each class. Allowed: an even number.")
        return replace(super().settle(facts), classes=(first, second))

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """`size` samples of the two classes with the other's label."""
        first, second = (int(index) for index in self.classes)
        chosen = []
        for index in (first, second):
            members = np.flatnonzero(images.labels == index)
            if len(members) < self.size // 2:
                raise FieldFault("size", f"class {index} has {len(members)} samples, fewer than {self.size // 2}")
            chosen.append(rng.choice(members, self.size // 2, replace=False))
        indices = np.sort(np.concatenate(chosen))
        return Corruption(indices, np.where(images.labels[indices] == first, second, first))

    def test_domains(self, test: Images) -> Domains:
        """The two classes, and the others."""
        first, second = (int(index) for index in self.classes)
        affected = np.isin(test.labels, (first, second))
        return Domains(View(np.flatnonzero(affected)), View(np.flatnonzero(~affected)), confused=(first, second))

    def corrupt_unseen(self, unseen: Images, dataset: Dataset, corruption: Corruption, rng: np.random.Generator) -> Corruption:
        """As many of each class, and not more than there are."""
        fewest = min(int((unseen.labels == index).sum()) for index in self.classes)
        half = min(max(1, round(self.rate(dataset) * len(unseen) / 2)), fewest)
        return replace(self, size=2 * half).corrupt(unseen, dataset.normalisation, rng)
