"""Bad teaching (BadT): learn from a random teacher on the deletion set and from the original elsewhere."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.graphs import repeats
from cu_ray.learning.sgd import images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound
from cu_ray.types import Batch, Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class BadTeaching(Method):
    """Distil a randomly initialised teacher on deletion-set samples and the original on all others (Chundawat et al. 2205.08096).

    The student starts as the original and sees the whole training set. Loss: KL(teacher || student) at temperature 1,
    averaged over batch and classes, as published. Both teachers in eval mode. `lr` null: as the original was trained.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "distil a random teacher on the deletion set and the original elsewhere"
    steps: Annotated[int, Bound(low=1)] = 1000
    lr: Annotated[float | None, Bound(low=0, open_low=True)] = None

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The student."""
        student = task.original
        competent, incompetent = copy.deepcopy(student).eval(), task.fresh().eval()
        student.train()

        @repeats
        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                bad, good = incompetent(batch.images).float(), competent(batch.images).float()
                target = torch.log_softmax(torch.where(batch.in_deletion[:, None], bad, good), dim=1)
            return (target.exp() * (target - torch.log_softmax(logits, dim=1))).mean()  # over batch and classes

        sgd = task.sgd(student, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.everything, loss)
            task.offer(student)
        return student

    def cost(self, sizes: Sizes) -> Cost:
        """Each image goes forward through student and both teachers, and backward through the student."""
        images = images_seen(sizes.deletion + sizes.retain, self.steps, sizes.batch_size)
        return Cost(3 * images, images)
