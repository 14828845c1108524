"""`confusion_rate`: how often the two confused classes are still taken for each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.metrics import Metric, Outcome, share


@dataclass(frozen=True)
class ConfusionRate(Metric):
    """Of the test images of the two confused classes, the share predicted as the other of the two."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "images of the two confused classes predicted as the other one"

    def measure(self, outcome: Outcome) -> float | None:
        """None where the manipulation confuses no classes."""
        if outcome.confused is None:
            return None
        first, second = outcome.confused
        return share(outcome.affected_predicted == first + second - outcome.affected_true)
