"""Detection biased by class: all manipulated samples of one class are found before any of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.plugins import Choices
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class ClassByClass(Detection):
    """Manipulated samples by class, the classes and the samples of each in random order; none wrongly.

    `by`: the class that a sample is of (`true`: one source), or the one that it was given (`given`).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "manipulated samples of one class first, none wrongly"
    by: Annotated[str, Choices(("true", "given"))] = "true"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` of the manipulated set in the order of its classes."""
        rows = rng.permutation(poisoned.corruption.indices)
        labels = poisoned.dataset.train.labels if self.by == "true" else poisoned.labels
        place_of_class = rng.permutation(poisoned.dataset.num_classes)
        return rows[np.argsort(place_of_class[labels[rows]], kind="stable")][:size]
