"""Exact unlearning of the last k layers (EU-k); of all layers: retraining without the deletion set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.layers import last_layers, train_only
from cu_ray.learning.sgd import cross_entropy, images_seen
from cu_ray.methods import Method
from cu_ray.methods._last_layers import check_k
from cu_ray.plugins import Bound
from cu_ray.types import Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class ExactUnlearning(Method):
    """Re-initialise the last k layers, freeze the others in eval mode, train on the retain set (Goel et al. 2201.06640).

    k counts convolution and linear layers from the output; null: all of them, which is retraining from scratch.
    `steps` and `lr` null: as the original was trained.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "EU-k: re-initialise the last k layers and train them on the retain set; k null: retrain"
    k: Annotated[int | None, Bound(low=1)] = None
    steps: Annotated[int | None, Bound(low=1)] = None
    lr: Annotated[float | None, Bound(low=0, open_low=True)] = None

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original with its last k layers learned anew."""
        model = task.original
        relearned = last_layers(task.blocks(model), self.k)
        task.reinitialise(relearned)
        train_only(model, relearned)
        sgd = task.sgd(model, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.retain, cross_entropy)
            task.offer(model)
        return model

    def cost(self, sizes: Sizes) -> Cost:
        """Every image of every step, forward and backward."""
        images = images_seen(sizes.retain, self.steps or sizes.train_steps, sizes.batch_size)
        return Cost(images, images)

    def check(self, layers_per_block: tuple[int, ...]) -> None:
        """K must be that of whole blocks."""
        check_k(self.k, layers_per_block)
