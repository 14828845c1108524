"""The portable half of Cognac: ascend on the deletion set and descend on the retain set by turns, decoupled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import cross_entropy, images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Sizes, Stream, UnlearningTask


@dataclass(frozen=True)
class Cognac(Method):
    """An ascent step on a deletion batch, then a descent step on a retain batch, `steps` times (Kolipaka et al. 2412.00789).

    Each has its own optimiser; the other half of the method is for graphs. Ascent: of the cross-entropy against given labels.
    Descent: cross-entropy plus `distillation` times KL(original || model), summed over classes and averaged over the batch,
    temperature 1, the original in eval mode. BatchNorm is in eval mode in ascents and in train mode in descents.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ascend on the deletion set and descend on the retain set by turns, with an optimiser each"
    ascent_lr: Annotated[float, Search(1e-6, 3e-4, log=True), Bound(low=0, open_low=True)] = 1e-4
    lr: Annotated[float, Search(1e-3, 1e-1, log=True), Bound(low=0, open_low=True)] = 0.01
    distillation: Annotated[float, Search(0.01, 10, log=True), Bound(low=0)] = 1.0
    steps: Annotated[int, Bound(low=1)] = 1000

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original after ascents and descents by turns."""
        model, teacher = task.original, copy.deepcopy(task.original)
        ascent = task.sgd(model, steps=self.steps, lr=self.ascent_lr)
        descent = task.sgd(model, steps=self.steps, lr=self.lr)

        @repeats
        def negative_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return -cross_entropy(logits, batch)

        @repeats
        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                target = torch.log_softmax(teacher(batch.images).float(), dim=1)
            divergence = torch.nn.functional.kl_div(
                torch.log_softmax(logits, dim=1), target, reduction="batchmean", log_target=True
            )
            return cross_entropy(logits, batch) + self.distillation * divergence

        deletion = endless(task.deletion)
        while not descent.done:
            for batch in task.retain.epoch():
                if descent.num_steps >= self.steps:
                    break
                model.eval()
                ascent.step(next(deletion), negative_loss)
                model.train()
                descent.step(batch, loss)
            task.offer(model)
        return model

    def cost(self, sizes: Sizes) -> Cost:
        """Ascents go forward and backward; descents also forward through the original."""
        ascents, descents = (images_seen(size, self.steps, sizes.batch_size) for size in (sizes.deletion, sizes.retain))
        return Cost(ascents + 2 * descents, ascents + descents)


def endless(samples: Stream) -> Iterator[Batch]:
    """Pass after pass over the samples."""
    while True:
        yield from samples.epoch()
