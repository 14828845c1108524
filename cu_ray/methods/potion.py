"""Potion: importances without labels (XLF), dampened until the trigger is neutralised (PTN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import absolute_gradient_importance
from cu_ray.methods._dampening import SearchedThreshold
from cu_ray.types import Stream


@dataclass(frozen=True)
class Potion(SearchedThreshold):
    """Dampen by the importances of the output's norm until the deletion set's labels are forgotten (Schoepf et al. 2406.09173).

    I = mean over batches of |gradient of the batch mean of ||f(x)||_2|, eval mode, I_r on the retain set. The search uses the
    deletion set only, no test data; `remaining` (rho) is where it stops.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "label-free importances, dampened until the deletion set's labels are forgotten"

    def importance(self, model: torch.nn.Module, samples: Stream) -> torch.Tensor:
        """Of the outputs' norm [P]."""
        return absolute_gradient_importance(model, samples, self.importance_batch_size, output_norm)


def output_norm(logits: torch.Tensor) -> torch.Tensor:
    """The batch mean of the outputs' Euclidean norms, from logits [B, classes]."""
    norms_B: torch.Tensor = torch.linalg.vector_norm(logits, dim=1)
    return norms_B.mean()
