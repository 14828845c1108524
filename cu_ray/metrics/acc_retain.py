"""`acc_retain`: accuracy against true labels on the retain domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.metrics import Metric, Outcome, share


@dataclass(frozen=True)
class AccRetain(Metric):
    """Accuracy against true labels on the retain domain."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "accuracy against true labels on the retain domain"

    def measure(self, outcome: Outcome) -> float | None:
        """The share of right predictions."""
        return share(outcome.retain_predicted == outcome.retain_true)
