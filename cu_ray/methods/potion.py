"""Potion: importances without labels (XLF), dampened until the trigger is neutralised (PTN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import absolute_gradient_importance
from cu_ray.methods import Method
from cu_ray.methods._dampening import MOST_TRIES, neutralise
from cu_ray.plugins import Bound
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class Potion(Method):
    """Dampen by the importances of the output's norm until the deletion set's labels are forgotten (Schoepf et al. 2406.09173).

    I = mean over batches of |gradient of the batch mean of ||f(x)||_2|, eval mode, I_r on the retain set; lambda = 1. The
    search uses the deletion set only, no test data. `remaining`: the part of the accuracy on the deletion set, against given
    labels, at which it stops (rho).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "label-free importances, dampened until the deletion set's labels are forgotten"
    memo_fields: ClassVar[tuple[str, ...]] = ("importance_batch_size",)
    cost_is_bound: ClassVar[bool] = True
    remaining: Annotated[float, Bound(0, 1)] = 0.2
    importance_batch_size: Annotated[int, Bound(low=1)] = 512

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original, dampened."""
        importances = task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)
        return neutralise(task, importances, self.remaining)

    def importances(self, task: UnlearningTask) -> NamedTensors:
        """I_f and I_r [P], in the order of the model's parameters."""
        return {
            name: absolute_gradient_importance(task.original, samples, self.importance_batch_size, output_norm)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def cost(self, sizes: Sizes) -> Cost:
        """A pass over both sets, and at most as many over the deletion set as there are tries, and one before."""
        passes = sizes.deletion + sizes.retain
        return Cost(passes + (MOST_TRIES + 1) * sizes.deletion, passes)


def output_norm(logits: torch.Tensor) -> torch.Tensor:
    """The batch mean of the outputs' Euclidean norms, from logits [B, classes]."""
    norms_B: torch.Tensor = torch.linalg.vector_norm(logits, dim=1)
    return norms_B.mean()
