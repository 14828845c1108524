"""Parameter importances: how strongly each parameter's gradient speaks on a set of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cu_ray.lazy import torch
from cu_ray.types import Stream


def squared_gradient_importance(model: torch.nn.Module, samples: Stream, batch_size: int) -> torch.Tensor:
    """The importances [P] of all parameters, in the order of `model.parameters()`.

    The mean over batches of the squared gradient of the batch-mean cross-entropy, in eval mode and float32, on augmented
    images (Selective Synaptic Dampening, arXiv 2308.07707, as used by the benchmark). It depends on the batch size.
    """
    model.eval()
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    num_batches = 0
    for batch in samples.epoch(batch_size):
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
        gradients = gradients_of(loss, parameters)
        torch._foreach_addcmul_(total, gradients, gradients)
        num_batches += 1
    return torch.cat([importance.flatten() for importance in total]) / num_batches


def gradients_of(value: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradient of each parameter; zeros of those that do not learn, or that the value does not depend on."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    found = iter(torch.autograd.grad(value, learning, materialize_grads=True))
    return [next(found) if parameter.requires_grad else torch.zeros_like(parameter) for parameter in parameters]


def absolute_gradient_importance(
    model: torch.nn.Module, samples: Stream, batch_size: int, of_logits: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The importances [P] of all parameters: the mean over batches of the absolute gradient of `of_logits` (no labels).

    In eval mode and float32, on augmented images. It depends on the batch size.
    """
    model.eval()
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    num_batches = 0
    for batch in samples.epoch(batch_size):
        gradients = gradients_of(of_logits(model(batch.images)), parameters)
        torch._foreach_add_(total, torch._foreach_abs(gradients))
        num_batches += 1
    return torch.cat([importance.flatten() for importance in total]) / num_batches
