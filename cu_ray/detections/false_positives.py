"""Detection with false positives: a share of what is found was never manipulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.detections.uniform import Uniform
from cu_ray.errors import AssumptionFailed
from cu_ray.plugins import Bound
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class FalsePositives(Detection):
    """Manipulated samples as `uniform` finds them, and among the first k found round(rate k) that are not manipulated.

    `rate` is a share of what is found: precision is 1 - rate, and recall as much less than the deletion fraction.
    """

    version: ClassVar[int] = 2
    summary: ClassVar[str] = "manipulated samples found uniformly, with false positives at a given rate"
    rate: Annotated[float, Bound(0, 1)] = 0.1

    def drawn_as(self) -> Detection:
        """As `uniform`, so that rates differ in what is found wrongly, and in nothing else."""
        return Uniform()

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` of both kinds, interleaved."""
        manipulated = rng.permutation(poisoned.corruption.indices)
        clean = rng.permutation(np.setdiff1d(np.arange(len(poisoned.labels)), manipulated))
        num_wrong = np.round(self.rate * np.arange(size + 1)).astype(np.int64)
        if num_wrong[-1] > len(clean):
            raise AssumptionFailed(f"{num_wrong[-1]} samples are to be found wrongly, and {len(clean)} are not manipulated")
        is_wrong = np.diff(num_wrong) > 0
        found = np.empty(size, dtype=np.int64)
        found[is_wrong], found[~is_wrong] = clean[: num_wrong[-1]], manipulated[: size - num_wrong[-1]]
        return found
