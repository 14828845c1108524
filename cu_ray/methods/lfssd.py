"""Loss-free selective synaptic dampening (LFSSD): SSD whose importances need no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.errors import FieldFault
from cu_ray.lazy import torch
from cu_ray.learning.importance import absolute_gradient_importance
from cu_ray.methods import Method
from cu_ray.methods._dampening import dampen
from cu_ray.methods.ssd import selection_threshold
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class Lfssd(Method):
    """SSD with I = mean over batches of |gradient of the batch mean of ||f(x)||_2^2| (Foster et al. 2402.19308).

    alpha and lambda are given as in `ssd`.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD with the gradients of the output's squared norm: no labels needed"
    memo_fields: ClassVar[tuple[str, ...]] = ("importance_batch_size",)
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = (("selection_share", "selection_weight"),)
    selection_share: Annotated[float | None, Search(0.002, 0.1, log=True), Bound(0, 1, open_low=True)] = 0.01
    selection_weight: Annotated[float | None, Bound(low=0, open_low=True)] = None  # alpha
    relative_dampening: Annotated[float, Search(0.1, 1, log=True), Bound(low=0, open_low=True)] = 1.0  # lambda / alpha
    importance_batch_size: Annotated[int, Bound(low=1)] = 512

    def __post_init__(self) -> None:
        """Raise FieldFault unless alpha is given in exactly one way."""
        if (self.selection_share is None) == (self.selection_weight is None):
            raise FieldFault("selection_share", "give selection_share or selection_weight, and null for the other")

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original, dampened."""
        importances = task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)
        deletion_P, retain_P = importances["deletion"], importances["retain"]
        alpha = self.selection_weight
        if alpha is None:
            alpha = selection_threshold(deletion_P, retain_P, self.selection_share or 0.0)
        selected = dampen(task.original, deletion_P, retain_P, alpha, self.relative_dampening * alpha)
        task.note(selection_weight=alpha, selected_share=selected)
        return task.original

    def importances(self, task: UnlearningTask) -> NamedTensors:
        """I_f and I_r [P], in the order of the model's parameters."""
        return {
            name: absolute_gradient_importance(task.original, samples, self.importance_batch_size, squared_output_norm)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def cost(self, sizes: Sizes) -> Cost:
        """One pass over the deletion set and one over the retain set."""
        return Cost(sizes.deletion + sizes.retain, sizes.deletion + sizes.retain)


def squared_output_norm(logits: torch.Tensor) -> torch.Tensor:
    """The batch mean of the outputs' squared Euclidean norms, from logits [B, classes]."""
    return logits.square().sum(dim=1).mean()
