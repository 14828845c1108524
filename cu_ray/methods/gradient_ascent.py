"""Gradient ascent: raise the loss on the deletion set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import cross_entropy, images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class GradientAscent(Method):
    """Ascend the cross-entropy of the deletion set against its given labels (NegGrad in Golatkar et al. 1911.04933).

    BatchNorm keeps the original's statistics: those of the deletion set alone would be another kind of change.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "raise the loss on the deletion set, nothing else"
    lr: Annotated[float, Search(1e-5, 2e-3, log=True), Bound(low=0, open_low=True)] = 3e-4
    steps: Annotated[int, Bound(low=1)] = 20

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original after the ascent."""

        @repeats
        def negative_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return -cross_entropy(logits, batch)

        sgd = task.sgd(task.original, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.deletion, negative_loss)
            task.offer(task.original)
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        """Every image of every step, forward and backward."""
        images = images_seen(sizes.deletion, self.steps, sizes.batch_size)
        return Cost(images, images)
