"""Uniform detection: every manipulated sample is equally likely to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class Uniform(Detection):
    """Prefixes of one permutation of the manipulated set: nested deletion sets, no false positives (arXiv 2402.14015)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "manipulated samples found uniformly at random, none wrongly"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` samples of a permutation of the manipulated set."""
        return rng.permutation(poisoned.corruption.indices)[:size]
