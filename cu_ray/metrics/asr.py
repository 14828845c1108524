"""`asr`: attack success rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.metrics import Metric, Outcome, share


@dataclass(frozen=True)
class Asr(Metric):
    """Of the triggered test images whose true class is not the target, the share predicted as the target."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "attack success rate: triggered images of other classes predicted as the target"

    def measure(self, outcome: Outcome) -> float | None:
        """None where the manipulation has no target class."""
        if outcome.target is None:
            return None
        return share(outcome.affected_predicted[outcome.affected_true != outcome.target] == outcome.target)
