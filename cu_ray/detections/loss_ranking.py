"""Loss ranking: the training samples that the original has learned worst, or best, are suspected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.plugins import Choices
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class LossRanking(Detection):
    """All training samples by the original's loss against their given labels. It knows nothing of the manipulation.

    `suspect`: wrong labels tend to have the `highest` loss, triggers the `lowest` (they are learned first and best).
    """

    version: ClassVar[int] = 2
    summary: ClassVar[str] = "a detector: the samples of the highest, or of the lowest, loss under the original"
    suspect: Annotated[str, Choices(("highest", "lowest"))] = "highest"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` of the ranking; of equal losses the lower rows."""
        losses = evidence.losses()
        return np.argsort(-losses if self.suspect == "highest" else losses, kind="stable")[:size]
