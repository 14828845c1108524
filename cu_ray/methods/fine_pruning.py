"""Fine-pruning: cut off the features that rest on clean images, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.activations import inputs_of, last_linear_layer
from cu_ray.learning.sgd import cross_entropy, images_seen
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, NamedTensors, Sizes, UnlearningTask


@dataclass(frozen=True)
class FinePruning(Method):
    """Prune the features that are least active on the retain set, then train on the retain set (Liu et al. 1805.12185).

    Features are the inputs of the last linear layer: to prune one sets its weights in that layer to 0, where they stay. On
    a ResNet-9 that prunes channels of the last convolution, as the paper does. Activity: the mean of |feature|, without
    augmentation. The paper's clean set is the retain set here, and the share to prune a hyperparameter (the paper stops
    when accuracy on clean data falls).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "prune the features that rest on the retain set, then fine-tune on it"
    memo_fields: ClassVar[tuple[str, ...]] = ()
    share: Annotated[float, Search(0.1, 0.95), Bound(0, 1)] = 0.5
    lr: Annotated[float, Search(1e-3, 1e-1, log=True), Bound(low=0, open_low=True)] = 0.01
    steps: Annotated[int, Bound(low=1)] = 1000

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original, pruned and trained further."""
        model, head = task.original, last_linear_layer(task.blocks(task.original)[-1])
        activity_F = task.remember("activity", self.activity)["activity"]
        pruned = activity_F.argsort(stable=True)[: int(self.share * len(activity_F))]

        def prune() -> None:
            with torch.no_grad():
                head.weight[:, pruned] = 0

        prune()
        sgd = task.sgd(model.train(), steps=self.steps, lr=self.lr)
        while not sgd.done:
            for batch in task.retain.epoch():
                if sgd.num_steps >= self.steps:
                    break
                sgd.step(batch, cross_entropy)
                prune()
            task.offer(model)
        task.note(features_pruned=len(pruned))
        return model

    def activity(self, task: UnlearningTask) -> NamedTensors:
        """The mean of |feature| over the retain set [F]."""
        model, head, count = task.original, last_linear_layer(task.blocks(task.original)[-1]), 0
        total_F = torch.zeros(head.in_features, dtype=head.weight.dtype, device=task.device)
        with inputs_of(head) as seen, torch.no_grad():
            for batch in task.retain.epoch(shuffle=False, augment=False):
                model(batch.images)
                features = seen.pop().flatten(0, -2).abs()
                total_F += features.sum(dim=0)
                count += len(features)
        return {"activity": total_F / count}

    def cost(self, sizes: Sizes) -> Cost:
        """The retain set forward once, then every image of every step forward and backward."""
        images = images_seen(sizes.retain, self.steps, sizes.batch_size)
        return self.memo_cost(sizes) + Cost(images, images)

    def memo_cost(self, sizes: Sizes) -> Cost:
        """The pass that finds the activities."""
        return Cost(sizes.retain)
