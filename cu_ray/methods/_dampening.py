"""What SSD and its successors share: importances, the dampening rule, and three ways to its threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from cu_ray.errors import AssumptionFailed, FieldFault
from cu_ray.lazy import torch
from cu_ray.learning.accuracy import accuracy_as_given
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, NamedTensors, Sizes, Stream, UnlearningTask

MOST_TRIES = 500
FIRST_SHARE, GROWTH = 1 / 25, 1.1  # of the deletion set's share of the training set; from try to try

BatchSize = Annotated[int, Bound(low=1)]


class Dampening(Method):
    """Makes parameters smaller that matter more to the deletion set than to the retain set.

    A subclass says by which threshold (`apply`), and where they are not SSD's, by which importances (`importance`).
    """

    memo_fields: ClassVar[tuple[str, ...]] = ("importance_batch_size",)
    importance_batch_size: BatchSize  # the last field of each, as the order of fields is that in which a search draws

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original, dampened."""
        importances = task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)
        self.apply(task, importances["deletion"], importances["retain"])
        return task.original

    def importances(self, task: UnlearningTask) -> NamedTensors:
        """I_f and I_r [P], in the order of the model's parameters."""
        return {
            name: self.importance(task.original, samples)
            for name, samples in (("deletion", task.deletion), ("retain", task.retain))
        }

    def importance(self, model: torch.nn.Module, samples: Stream) -> torch.Tensor:
        """How much each parameter matters to the samples [P]."""
        return squared_gradient_importance(model, samples, self.importance_batch_size)

    def apply(self, task: UnlearningTask, deletion_P: torch.Tensor, retain_P: torch.Tensor) -> None:
        """Dampen the original by these importances, in place."""
        raise NotImplementedError

    def cost(self, sizes: Sizes) -> Cost:
        """One pass over the deletion set and one over the retain set."""
        return self.memo_cost(sizes)

    def memo_cost(self, sizes: Sizes) -> Cost:
        """All that computes the importances."""
        return Cost(sizes.deletion + sizes.retain, sizes.deletion + sizes.retain)


@dataclass(frozen=True)
class GivenThreshold(Dampening):
    """alpha is a hyperparameter, either as such or as the share of parameters that it selects; so is lambda / alpha."""

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = (("selection_share", "selection_weight"),)
    selection_share: Annotated[float | None, Search(0.002, 0.1, log=True), Bound(0, 1, open_low=True)] = 0.01
    selection_weight: Annotated[float | None, Bound(low=0, open_low=True)] = None  # alpha
    relative_dampening: Annotated[float, Search(0.1, 1, log=True), Bound(low=0, open_low=True)] = 1.0  # lambda / alpha
    importance_batch_size: BatchSize = 512

    def __post_init__(self) -> None:
        """Raise FieldFault unless alpha is given in exactly one way."""
        if (self.selection_share is None) == (self.selection_weight is None):
            raise FieldFault("selection_share", "give selection_share or selection_weight, and null for the other")

    def apply(self, task: UnlearningTask, deletion_P: torch.Tensor, retain_P: torch.Tensor) -> None:
        """Once, by the alpha that is given or found."""
        alpha = self.selection_weight
        if alpha is None:
            alpha = selection_threshold(deletion_P, retain_P, self.selection_share or 0.0)
        selected = dampen(task.original, deletion_P, retain_P, alpha, self.relative_dampening * alpha)
        task.note(selection_weight=alpha, selected_share=selected)


@dataclass(frozen=True)
class SearchedThreshold(Dampening):
    """Trigger neutralisation (PTN, arXiv 2406.09173): dampen just so much that the deletion set's labels are forgotten.

    `remaining`: the part of the accuracy on the deletion set, against given labels, at which the search stops (rho).
    """

    cost_is_bound: ClassVar[bool] = True
    remaining: Annotated[float, Bound(0, 1)] = 0.2
    importance_batch_size: BatchSize = 512

    def apply(self, task: UnlearningTask, deletion_P: torch.Tensor, retain_P: torch.Tensor) -> None:
        """From the original weights each time, by the percentile of a share that grows, until the labels are forgotten.

        The share grows from a 25th of |S_f| / |D| by a tenth a try; lambda is 1. Where no try of 500 comes to `remaining`
        times the accuracy on the augmented deletion set before, the last one is kept.
        """
        model = task.original
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        aim = self.remaining * accuracy_as_given(model, task.deletion)
        share = FIRST_SHARE * len(task.deletion) / len(task.everything)
        ratios = finite_ratios(deletion_P, retain_P)
        for number in task.attempts(MOST_TRIES):
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), weights)
            alpha = percentile_threshold(ratios, share * GROWTH**number)
            selected = dampen(model, deletion_P, retain_P, alpha, 1.0)
            accuracy = accuracy_as_given(model, task.deletion)
            task.note(selection_weight=alpha, selected_share=selected, tries=number + 1, deletion_accuracy=accuracy)
            if accuracy <= aim:
                break

    def cost(self, sizes: Sizes) -> Cost:
        """A pass over both sets, and at most as many over the deletion set as there are tries, and one before."""
        return super().cost(sizes) + Cost((MOST_TRIES + 1) * sizes.deletion)


def dampen(model: torch.nn.Module, deletion_P: torch.Tensor, retain_P: torch.Tensor, alpha: float, dampening: float) -> float:
    """Multiply by min(dampening I_r / I_f, 1) where I_f > alpha I_r, in place; gives the share of parameters selected.

    The importances are in the order of the model's parameters. Every parameter, BatchNorm's included; no buffers.
    """
    selected_P = deletion_P > alpha * retain_P
    scale_P = torch.where(selected_P, (dampening * retain_P / deletion_P).clamp(max=1), 1)
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter, scale in zip(parameters, scale_P.split([each.numel() for each in parameters]), strict=True):
            parameter.mul_(scale.view_as(parameter))
    return float(selected_P.float().mean())


def finite_ratios(deletion_P: torch.Tensor, retain_P: torch.Tensor) -> npt.NDArray[np.floating]:
    """The ratios I_f / I_r in order, on the host; nan and inf are left out. Raises AssumptionFailed where none is left."""
    ratio_P = (deletion_P / retain_P).cpu().numpy()
    finite: npt.NDArray[np.floating] = np.sort(ratio_P[np.isfinite(ratio_P)])
    if not len(finite):
        raise AssumptionFailed("it compares importances, but the gradient on the retain set is 0 in every parameter")
    return finite


def percentile_threshold(ratios: npt.NDArray[np.floating], share: float) -> float:
    """The percentile 100 - ln(1 + 100 share) of these, linearly interpolated: to the bit as `np.percentile` of NumPy 2.4.

    ratios: in order, as `finite_ratios` gives them.
    """
    place = (len(ratios) - 1) * ((100 - math.log1p(100 * share)) / 100)
    rank, number = int(place), ratios.dtype.type
    below, above = ratios[rank], ratios[min(rank + 1, len(ratios) - 1)]
    part, gap = place - rank, above - below
    return float(below + gap * number(part) if part < 0.5 else above - gap * number(1 - part))


def selection_threshold(deletion_P: torch.Tensor, retain_P: torch.Tensor, share: float) -> float:
    """The (1 - share) quantile (lower) of I_f / I_r over all parameters [P]; 0 / 0 counts as 0.

    Where it is infinite (more than that share have I_r = 0), the largest finite ratio, so that just these are selected.
    """
    ratio_P = torch.where(deletion_P == 0, 0, deletion_P / retain_P)
    rank = int((1 - share) * (len(ratio_P) - 1))
    # a GPU sorts all faster than it finds one; on a CPU NumPy finds it many times as fast as PyTorch
    threshold = float(ratio_P.sort().values[rank] if ratio_P.is_cuda else np.partition(ratio_P.numpy(), rank)[rank])
    if math.isinf(threshold):
        threshold = float(torch.where(torch.isinf(ratio_P), 0, ratio_P).max())
    return threshold
