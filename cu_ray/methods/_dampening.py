"""What SSD and its successors share: the dampening rule, alpha as a percentile, the search for the trigger's neutralisation."""

from __future__ import annotations

import math

import numpy as np

from cu_ray.errors import AssumptionFailed
from cu_ray.lazy import torch
from cu_ray.learning.accuracy import accuracy_as_given
from cu_ray.types import NamedTensors, UnlearningTask

MOST_TRIES = 500
FIRST_SHARE, GROWTH = 1 / 25, 1.1  # of the deletion set's share of the training set; from try to try


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


def percentile_threshold(deletion_P: torch.Tensor, retain_P: torch.Tensor, share: float) -> float:
    """The percentile 100 - ln(1 + 100 share) of I_f / I_r [P], linearly interpolated; nan and inf are left out.

    Raises AssumptionFailed where no ratio is left.
    """
    ratio_P = (deletion_P / retain_P).cpu().numpy()
    finite = ratio_P[np.isfinite(ratio_P)]
    if not len(finite):
        raise AssumptionFailed("it compares importances, but the gradient on the retain set is 0 in every parameter")
    return float(np.percentile(finite, 100 - math.log1p(100 * share)))


def neutralise(task: UnlearningTask, importances: NamedTensors, remaining: float) -> torch.nn.Module:
    """The original dampened just so much that it forgets the given labels of the deletion set (PTN, arXiv 2406.09173).

    From the original weights each time: dampen with the alpha of a share, which grows from a 25th of |S_f| / |D| by a tenth
    a try, until accuracy on the augmented deletion set against its given labels is at most `remaining` times what it was.
    Where no try of 500 comes to that, the last one is kept.
    """
    model, tries = task.original, 0
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    aim = remaining * accuracy_as_given(model, task.deletion)
    share = FIRST_SHARE * len(task.deletion) / len(task.everything)
    for tries in task.attempts(MOST_TRIES):
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), weights)
        alpha = percentile_threshold(importances["deletion"], importances["retain"], share * GROWTH**tries)
        selected = dampen(model, importances["deletion"], importances["retain"], alpha, 1.0)
        accuracy = accuracy_as_given(model, task.deletion)
        if accuracy <= aim:
            break
    task.note(selection_weight=alpha, selected_share=selected, tries=tries + 1, deletion_accuracy=accuracy)
    return model
