"""A single sample: one manipulated sample was found, whatever the deletion fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.detections.uniform import Uniform
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class SingleSample(Detection):
    """One manipulated sample, drawn uniformly (the setting of Potion, arXiv 2406.09173): the first that `uniform` would find."""

    version: ClassVar[int] = 2
    summary: ClassVar[str] = "one manipulated sample, whatever the deletion fraction"

    def drawn_as(self) -> Detection:
        """As `uniform`."""
        return Uniform()

    def num_found(self, fraction: float, manipulated_size: int) -> int:
        """One."""
        return 1

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first of a permutation of the manipulated set."""
        return rng.permutation(poisoned.corruption.indices)[:size]
