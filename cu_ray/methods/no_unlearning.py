"""No unlearning: the original model, as the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.lazy import torch
from cu_ray.methods import Method
from cu_ray.types import Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class NoUnlearning(Method):
    """The original model unchanged."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the original model, unchanged: the baseline"
    uses_deletion_set: ClassVar[bool] = False

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original."""
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        """Nothing."""
        return Cost()
