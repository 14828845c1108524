"""Selective synaptic dampening (SSD): shrink the parameters that matter more to the deletion set than to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.errors import FieldFault
from cu_ray.lazy import torch
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.methods import Method
from cu_ray.methods._dampening import dampen
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class Ssd(Method):
    """Where I_f > alpha I_r, multiply a parameter by min(lambda I_r / I_f, 1) (Foster et al. 2308.07707).

    I_f and I_r are the squared-gradient importances on the deletion and the retain set. alpha is given either as such
    (`selection_weight`) or as the share of parameters to select (`selection_share`; alpha is then the (1 - share) quantile
    of I_f / I_r, and recorded): alpha has no scale that carries from one model to another. `relative_dampening` is
    lambda / alpha; above 1 it would repeat other points (r alpha, 1). Every parameter, BatchNorm's included; no buffers.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "dampen the parameters that matter more to the deletion set than to the retain set"
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
            name: squared_gradient_importance(task.original, samples, self.importance_batch_size)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def cost(self, sizes: Sizes) -> Cost:
        """One pass over the deletion set and one over the retain set."""
        return Cost(sizes.deletion + sizes.retain, sizes.deletion + sizes.retain)


def selection_threshold(deletion_P: torch.Tensor, retain_P: torch.Tensor, share: float) -> float:
    """The (1 - share) quantile (lower) of I_f / I_r over all parameters [P]; 0 / 0 counts as 0.

    Where it is infinite (more than that share have I_r = 0), the largest finite ratio, so that just these are selected.
    """
    ratio_P = torch.where(deletion_P == 0, 0, deletion_P / retain_P)
    rank = int((1 - share) * (len(ratio_P) - 1))
    # a GPU sorts all faster than it finds one, and a CPU does not
    threshold = ratio_P.sort().values[rank] if ratio_P.is_cuda else ratio_P.kthvalue(rank + 1).values
    if torch.isinf(threshold):
        threshold = torch.where(torch.isinf(ratio_P), 0, ratio_P).max()
    return float(threshold)
