"""`acc_corr`: accuracy against true labels on the affected domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.metrics import Metric, Outcome, share


@dataclass(frozen=True)
class AccCorr(Metric):
    """Accuracy against true labels on the affected domain."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "accuracy against true labels on the affected domain"

    def measure(self, outcome: Outcome) -> float | None:
        """The share of right predictions."""
        return share(outcome.affected_predicted == outcome.affected_true)
