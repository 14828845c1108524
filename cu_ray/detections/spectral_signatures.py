"""Spectral signatures: samples that stand out along the main direction of their class's features are suspected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.detections import Detection
from cu_ray.types import Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class SpectralSignatures(Detection):
    """All training samples by the square of their centred features along the top singular vector of their given class.

    Tran et al. 1811.00636. They remove equally many of each class; here the classes compete by score, for as many as are
    asked for. It knows nothing of the manipulation.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a detector: outliers along the main direction of a class's features"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The `size` samples of the highest score; of equal ones the lower rows."""
        features = evidence.features().astype(np.float64)
        scores = np.zeros(len(features))
        for label in np.unique(poisoned.labels):
            members = np.flatnonzero(poisoned.labels == label)
            centred = features[members] - features[members].mean(axis=0)
            direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
            scores[members] = (centred @ direction) ** 2
        return np.argsort(-scores, kind="stable")[:size]
