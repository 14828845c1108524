"""SalUn: learn random labels on the deletion set with the weights that matter to it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.importance import gradients_of
from cu_ray.learning.sgd import cross_entropy
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, NamedTensors, Sizes, Stream, UnlearningTask


@dataclass(frozen=True)
class Salun(Method):
    """Move only the weights with the largest gradients on the deletion set (Fan et al. 2310.12508), in turns of two passes.

    Saliency: |the sum over batches of the gradient of the batch-mean cross-entropy on the deletion set|, in eval mode; the
    top `share` of all parameters is moved, the others are held. Each turn: a pass over the deletion set with labels drawn
    anew uniformly over all classes, then one over the retain set with labels as given; BatchNorm in train mode in both.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "learn random labels on the deletion set, then the retain set, with the most salient weights only"
    memo_fields: ClassVar[tuple[str, ...]] = ()
    share: Annotated[float, Search(0.1, 1.0), Bound(0, 1, open_low=True)] = 0.5
    lr: Annotated[float, Search(1e-3, 1e-1, log=True), Bound(low=0, open_low=True)] = 0.01
    steps: Annotated[int, Bound(low=1)] = 1000

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original with its salient weights moved."""
        model = task.original
        saliency_P = task.remember("saliency", self.saliency)["saliency"]
        moved_P = torch.zeros_like(saliency_P, dtype=torch.bool)
        moved_P[saliency_P.argsort(descending=True, stable=True)[: round(self.share * len(saliency_P))]] = True
        hold = holder(list(model.parameters()), moved_P)
        sgd = task.sgd(model.train(), steps=self.steps, lr=self.lr)

        def relabelled(batch: Batch) -> Batch:
            labels = torch.randint(task.num_classes, batch.labels.shape, generator=task.generator, device=task.device)
            return replace(batch, labels=labels)

        def as_given(batch: Batch) -> Batch:
            return batch

        def one_pass(samples: Stream, labelled: Callable[[Batch], Batch]) -> None:
            for batch in samples.epoch():
                if sgd.num_steps >= self.steps:
                    break
                sgd.step(labelled(batch), cross_entropy)
                hold()

        while not sgd.done:
            one_pass(task.deletion, relabelled)
            one_pass(task.retain, as_given)
            task.offer(model)
        return model

    def saliency(self, task: UnlearningTask) -> NamedTensors:
        """The saliencies [P], in the order of the model's parameters."""
        parameters = list(task.original.parameters())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in task.deletion.epoch():
            gradients = gradients_of(cross_entropy(task.original(batch.images), batch), parameters)
            torch._foreach_add_(total, gradients)
        return {"saliency": torch.cat([each.flatten() for each in total]).abs()}

    def cost(self, sizes: Sizes) -> Cost:
        """A pass over the deletion set for the saliency, then every image of every step, forward and backward."""
        images = in_turns((sizes.deletion, sizes.retain), self.steps, sizes.batch_size)
        return self.memo_cost(sizes) + Cost(images, images)

    def memo_cost(self, sizes: Sizes) -> Cost:
        """The pass that finds the saliencies."""
        return Cost(sizes.deletion, sizes.deletion)


def holder(parameters: list[torch.nn.Parameter], moved_P: torch.Tensor) -> Callable[[], None]:
    """What puts the parameters back to their values of now, but for those that are to move [P, bool], in their order.

    On their bits as integers, all together: (new - old) * moved + old is exact there, as integers count modulo 2 to the 32
    (or 64), also for nan, inf and the two zeros.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [parameter.detach().view(integers[parameter.element_size()]) for parameter in parameters]
    before = [each.clone() for each in bits]
    parts = moved_P.split([each.numel() for each in bits])
    moved = [torch.empty_like(each).copy_(part.view_as(each)) for each, part in zip(bits, parts, strict=True)]

    def hold() -> None:
        torch._foreach_sub_(bits, before)
        torch._foreach_mul_(bits, moved)
        torch._foreach_add_(bits, before)

    return hold


def in_turns(passes: tuple[int, ...], steps: int, batch_size: int) -> int:
    """How many images so many steps see, in passes over sets of these sizes in turns."""
    step = images = 0
    while any(passes) and step < steps:
        for num_images in passes:
            num_steps = min(-(-num_images // batch_size), steps - step)
            images += min(num_images, num_steps * batch_size)
            step += num_steps
    return images
