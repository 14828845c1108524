"""Relabelling: train on with the labels of the deletion set corrected by the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class Relabelling(Method):
    """Train on the whole training set, each deletion-set sample with the class that the original finds likeliest but the given.

    What one tries first; of no paper. The correction is made once, on the images as they are (without augmentation).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "train on with the deletion set's labels corrected to the model's second choice"
    lr: Annotated[float, Search(1e-3, 1e-1, log=True), Bound(low=0, open_low=True)] = 0.01
    steps: Annotated[int, Bound(low=1)] = 1000

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original trained further."""
        model, (rows_N, corrected_N) = task.original, self.second_choices(task)
        model.train()

        @repeats
        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            places = torch.searchsorted(rows_N, batch.indices).clamp(max=len(rows_N) - 1)
            labels = torch.where(batch.in_deletion, corrected_N[places], batch.labels)
            return torch.nn.functional.cross_entropy(logits, labels)

        sgd = task.sgd(model, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.everything, loss)
            task.offer(model)
        return model

    def second_choices(self, task: UnlearningTask) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the deletion set [N], ascending, and the corrected label of each [N]."""
        rows, labels = [], []
        for batch in task.deletion.epoch(shuffle=False, augment=False):
            with torch.no_grad():
                logits = task.original(batch.images).scatter(1, batch.labels[:, None], -torch.inf)
            rows.append(batch.indices)
            labels.append(logits.argmax(dim=1))
        rows_N, order_N = torch.cat(rows).sort()
        return rows_N, torch.cat(labels)[order_N]

    def cost(self, sizes: Sizes) -> Cost:
        """The deletion set forward once, then every image of every step forward and backward."""
        images = images_seen(sizes.deletion + sizes.retain, self.steps, sizes.batch_size)
        return Cost(sizes.deletion + images, images)
