"""Negative preference optimisation (NPO): an ascent that fades where the labels are forgotten already."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class Npo(Method):
    """Descend (-2 / beta) E log sigmoid(-beta (log p(y|x) - log p_original(y|x))) on the deletion set (Zhang et al. 2404.05868).

    y is the label as given, p_original the original in eval mode. As beta falls to 0 it becomes gradient ascent. The paper
    is on language models; BatchNorm keeps the original's statistics here, as in `gradient_ascent`.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "make the given labels of the deletion set less likely than the original has them"
    beta: Annotated[float, Search(0.1, 10, log=True), Bound(low=0, open_low=True)] = 1.0
    lr: Annotated[float, Search(1e-5, 1e-2, log=True), Bound(low=0, open_low=True)] = 1e-4
    steps: Annotated[int, Bound(low=1)] = 50

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original after the descent."""
        model, reference = task.original, copy.deepcopy(task.original)

        @repeats
        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                reference_logits = reference(batch.images).float()
            return negative_preference(logits, reference_logits, batch.labels, self.beta)

        sgd = task.sgd(model, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.deletion, loss)
            task.offer(model)
        return model

    def cost(self, sizes: Sizes) -> Cost:
        """Each image goes forward through model and reference, and backward through the model."""
        images = images_seen(sizes.deletion, self.steps, sizes.batch_size)
        return Cost(2 * images, images)


def negative_preference(logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, beta: float) -> torch.Tensor:
    """The loss from the logits of model and reference [B, classes] and the labels to be disliked [B]."""
    own, other = (-torch.nn.functional.cross_entropy(each, labels, reduction="none") for each in (logits, reference))
    return -2 / beta * torch.nn.functional.logsigmoid(-beta * (own - other)).mean()
