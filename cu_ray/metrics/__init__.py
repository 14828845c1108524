"""Metrics: numbers read off a model's predictions on the test views. Each is a column of the tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cu_ray.plugins import Plugin
from cu_ray.types import Indices


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predicted and true classes on the affected and on the retain domain; target and confused classes where there are any."""

    affected_predicted: Indices
    affected_true: Indices
    retain_predicted: Indices
    retain_true: Indices
    target: int | None
    confused: tuple[int, int] | None


class Metric(Plugin):
    """A number between 0 and 1 read off an outcome, or None where it has no meaning."""

    def measure(self, outcome: Outcome) -> float | None:
        """The number; None where the domain is empty or the manipulation has no such thing."""
        raise NotImplementedError


def share(hits: npt.NDArray[np.bool_]) -> float | None:
    """The share of true values in a boolean array; None for an empty one."""
    return float(hits.mean()) if hits.size else None
