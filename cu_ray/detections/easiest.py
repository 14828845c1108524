"""Detection biased by loss: the manipulated samples that the original model has learned best are found first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class Easiest(Detection):
    """Manipulated samples by the original's loss against their given labels, the lowest first; none wrongly."""

    version: ClassVar[int] = 2
    summary: ClassVar[str] = "the manipulated samples that the original has learned best first, none wrongly"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The `size` manipulated samples of the lowest loss."""
        rows = poisoned.corruption.indices
        return rows[np.argsort(evidence.losses()[rows], kind="stable")][:size]
