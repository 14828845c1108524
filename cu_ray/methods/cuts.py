"""CUTS: step from the original away from a model that has learned the corruption even better."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.accuracy import accuracy_as_given
from cu_ray.learning.sgd import cross_entropy, images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, Sizes, UnlearningTask

MOST_TRIES, STEP = 100, 0.05  # a = -0.05, -0.10, ..., -5.00
FORGOTTEN = 0.01  # accuracy, rounded to two places


@dataclass(frozen=True)
class Cuts(Method):
    """theta + a (theta_proxy - theta) with a < 0 (2511.18660), BatchNorm's tensors left as they are.

    theta_proxy is the original trained further on the deletion set, labels as given: the paper has a held-out proxy set into
    which it injects the corruption, which the owner of a model cannot do. a is the first of -0.05, -0.10, ..., -5.00 at which
    accuracy on the deletion set (given labels, no augmentation) rounds to at most 0.01; where none does, that of the lowest
    accuracy, the first of them.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "step away from the original fine-tuned on the deletion set, until its labels are forgotten"
    cost_is_bound: ClassVar[bool] = True
    lr: Annotated[float, Search(1e-4, 1e-1, log=True), Bound(low=0, open_low=True)] = 0.01
    steps: Annotated[int, Bound(low=1)] = 50

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original minus what the proxy learned."""
        model, learned = task.original, self.learned(task)
        moved = parameters_but_batch_norm(model)
        start = [parameter.detach().clone() for parameter in moved]

        def move(coefficient: float) -> None:
            with torch.no_grad():
                for parameter, before, step in zip(moved, start, learned, strict=True):
                    parameter.copy_(before + coefficient * step)

        lowest, best = torch.inf, 0.0
        for number in task.attempts(MOST_TRIES):
            coefficient = -STEP * (number + 1)
            move(coefficient)
            accuracy = accuracy_as_given(model, task.deletion, augment=False)
            if accuracy < lowest:
                lowest, best = accuracy, coefficient
            if round(accuracy, 2) <= FORGOTTEN:
                break
        move(best)
        task.note(coefficient=best, deletion_accuracy=lowest)
        return model

    def learned(self, task: UnlearningTask) -> list[torch.Tensor]:
        """theta_proxy - theta, by parameter."""
        proxy = copy.deepcopy(task.original)
        sgd = task.sgd(proxy.train(), steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.deletion, cross_entropy)
        pairs = zip(parameters_but_batch_norm(proxy), parameters_but_batch_norm(task.original), strict=True)
        return [after.detach() - before.detach() for after, before in pairs]

    def cost(self, sizes: Sizes) -> Cost:
        """The proxy's training, and at most as many passes over the deletion set as there are coefficients."""
        images = images_seen(sizes.deletion, self.steps, sizes.batch_size)
        return Cost(images + MOST_TRIES * sizes.deletion, images)


def parameters_but_batch_norm(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of all layers that are no BatchNorm, in the model's order."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    skipped = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in skipped]
