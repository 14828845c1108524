"""Detections: how a part of the manipulated set was found."""

from __future__ import annotations

import numpy as np

from cu_ray.plugins import Plugin
from cu_ray.types import Indices, PoisonedDataset


class Detection(Plugin):
    """A way in which samples are identified. Its fields are its settings."""

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator) -> Indices:
        """The rows [size] of the training samples it identifies; smaller sets must be part of larger ones.

        The generator is the same for every size.
        """
        raise NotImplementedError
