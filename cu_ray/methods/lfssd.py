"""Loss-free selective synaptic dampening (LFSSD): SSD whose importances need no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import absolute_gradient_importance
from cu_ray.methods._dampening import GivenThreshold
from cu_ray.types import Stream


@dataclass(frozen=True)
class Lfssd(GivenThreshold):
    """SSD with I = mean over batches of |gradient of the batch mean of ||f(x)||_2^2| (Foster et al. 2402.19308).

    alpha and lambda are given as in `ssd`.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD with the gradients of the output's squared norm: no labels needed"

    def importance(self, model: torch.nn.Module, samples: Stream) -> torch.Tensor:
        """Of the outputs' squared norm [P]."""
        return absolute_gradient_importance(model, samples, self.importance_batch_size, squared_output_norm)


def squared_output_norm(logits: torch.Tensor) -> torch.Tensor:
    """The batch mean of the outputs' squared Euclidean norms, from logits [B, classes]."""
    return logits.square().sum(dim=1).mean()
