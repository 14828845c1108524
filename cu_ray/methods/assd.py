"""Adaptive selective synaptic dampening (ASSD): SSD whose threshold follows from the size of the deletion set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.methods import Method
from cu_ray.methods._dampening import dampen, percentile_threshold
from cu_ray.plugins import Bound
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class Assd(Method):
    """SSD with lambda = 1 and alpha the percentile 100 - ln(1 + 100 |S_f| / |D|) of I_f / I_r (Schoepf et al. 2402.10098)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD with a threshold that follows from the deletion set's share of the training set"
    memo_fields: ClassVar[tuple[str, ...]] = ("importance_batch_size",)
    importance_batch_size: Annotated[int, Bound(low=1)] = 512

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original, dampened."""
        importances = task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)
        share = len(task.deletion) / len(task.everything)
        alpha = percentile_threshold(importances["deletion"], importances["retain"], share)
        selected = dampen(task.original, importances["deletion"], importances["retain"], alpha, 1.0)
        task.note(selection_weight=alpha, selected_share=selected)
        return task.original

    def importances(self, task: UnlearningTask) -> NamedTensors:
        """I_f and I_r [P], in the order of the model's parameters."""
        return {
            name: squared_gradient_importance(task.original, samples, self.importance_batch_size)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def cost(self, sizes: Sizes) -> Cost:
        """One pass over the deletion set and one over the retain set."""
        return Cost(sizes.deletion + sizes.retain, sizes.deletion + sizes.retain)
