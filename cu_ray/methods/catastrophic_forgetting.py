"""Catastrophic forgetting of the last k layers (CF-k): go on training without the deletion set."""

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
class CatastrophicForgetting(Method):
    """Freeze all but the last k layers in eval mode and train on the retain set (Goel et al. 2201.06640).

    As EU-k without re-initialising. k null: all layers. `lr` null: as the original was trained.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "CF-k: go on training the last k layers on the retain set; k null: all"
    k: Annotated[int | None, Bound(low=1)] = None
    steps: Annotated[int, Bound(low=1)] = 1000
    lr: Annotated[float | None, Bound(low=0, open_low=True)] = None

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original with its last k layers trained further."""
        model = task.original
        train_only(model, last_layers(task.blocks(model), self.k))
        sgd = task.sgd(model, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.retain, cross_entropy)
            task.offer(model)
        return model

    def cost(self, sizes: Sizes) -> Cost:
        """Every image of every step, forward and backward."""
        images = images_seen(sizes.retain, self.steps, sizes.batch_size)
        return Cost(images, images)

    def check(self, layers_per_block: tuple[int, ...]) -> None:
        """K must be that of whole blocks."""
        check_k(self.k, layers_per_block)
