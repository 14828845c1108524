"""SCRUB: move away from the original on the deletion set, stay with it on the retain set."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import cross_entropy
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class Scrub(Method):
    """Alternate ascent on the deletion set and descent on the retain set (Kurmanji et al. 2302.09880).

    L = CE + alpha T^2 KL(teacher || student), the divergence summed over classes and averaged over the batch; the teacher
    is the original in eval mode. While fewer than `msteps` steps are made, each pass over the retain set (descending L)
    comes after one over the deletion set (ascending L, cross-entropy and divergence both). One optimiser and one schedule;
    ascent steps count; BatchNorm in train mode in both.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ascend on the deletion set, then descend on the retain set, close to the original"
    alpha: Annotated[float, Search(1e-3, 10, log=True), Bound(low=0)] = 0.1
    msteps: Annotated[int, Bound(low=0)] = 100
    steps: Annotated[int, Bound(low=1)] = 1000
    lr: Annotated[float, Bound(low=0, open_low=True)] = 0.0025
    temperature: Annotated[float, Bound(low=0, open_low=True)] = 4.0

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original after alternating ascent and descent."""
        model, teacher = task.original, copy.deepcopy(task.original).eval()
        model.train()

        @repeats
        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                teacher_logits = teacher(batch.images).float()
            return cross_entropy(logits, batch) + self.alpha * self.divergence(logits, teacher_logits)

        @repeats
        def negative_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return -loss(logits, batch)

        sgd = task.sgd(model, steps=self.steps, lr=self.lr)
        while not sgd.done:
            if sgd.num_steps < self.msteps:
                sgd.epoch(task.deletion, negative_loss)
            sgd.epoch(task.retain, loss)
            task.offer(model)
        return model

    def divergence(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        """T^2 KL(teacher || student) of softened predictions [B, classes], summed over classes, averaged over the batch."""
        student, teacher = (torch.log_softmax(each / self.temperature, dim=1) for each in (logits, teacher_logits))
        divergence = torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence

    def cost(self, sizes: Sizes) -> Cost:
        """Each image goes forward through student and teacher, and backward through the student."""
        step = images = 0
        while sizes.retain and step < self.steps:
            for num_images in (sizes.deletion, sizes.retain) if step < self.msteps else (sizes.retain,):
                num_steps = min(-(-num_images // sizes.batch_size), self.steps - step)
                images += min(num_images, num_steps * sizes.batch_size)
                step += num_steps
        return Cost(2 * images, images)
