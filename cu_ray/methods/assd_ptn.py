"""ASSD with the search of Potion: SSD's importances, dampened until the deletion set's labels are forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.methods import Method
from cu_ray.methods._dampening import MOST_TRIES, neutralise
from cu_ray.plugins import Bound
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class AssdPtn(Method):
    """What Potion's published code calls ASSD: squared cross-entropy importances with its search (Schoepf et al. 2406.09173).

    `remaining`: the part of the accuracy on the deletion set, against given labels, at which the search stops (rho).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD's importances, dampened until the deletion set's labels are forgotten"
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
            name: squared_gradient_importance(task.original, samples, self.importance_batch_size)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def cost(self, sizes: Sizes) -> Cost:
        """A pass over both sets, and at most as many over the deletion set as there are tries, and one before."""
        passes = sizes.deletion + sizes.retain
        return Cost(passes + (MOST_TRIES + 1) * sizes.deletion, passes)
