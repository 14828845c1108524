"""Detections: how a part of the manipulated set was found."""

from __future__ import annotations

from typing import Self

import numpy as np

from cu_ray.plugins import Plugin
from cu_ray.types import DatasetFacts, Evidence, Indices, PoisonedDataset


class Detection(Plugin):
    """A way in which samples are identified. Its fields are its settings."""

    def drawn_as(self) -> Detection:
        """Whose random numbers it gets in `find`: where two detections are given the same, what they find is paired."""
        return self

    def settle(self, facts: DatasetFacts) -> Self:
        """The same detection, ready to find; raises FieldFault where it does not fit the data set."""
        return self

    def num_found(self, fraction: float, manipulated_size: int) -> int:
        """How many samples it identifies for a deletion fraction: that part of as many as were manipulated."""
        return round(fraction * manipulated_size)

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The rows [size] of the training samples it identifies; smaller sets must be part of larger ones.

        The generator is the same for every size. `evidence` is of the original model, and costs a pass over the training set.
        """
        raise NotImplementedError
