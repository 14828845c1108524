"""Activations: the inputs that layers get, and the features that a model decides by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cu_ray.errors import AssumptionFailed
from cu_ray.lazy import torch


def last_linear_layer(block: torch.nn.Module) -> torch.nn.Linear:
    """The linear layer in a model's last block, whose inputs are its features. Raises AssumptionFailed where there is none."""
    for module in reversed(list(block.modules())):
        if isinstance(module, torch.nn.Linear):
            return module
    raise AssumptionFailed("the inputs of a linear layer in the model's last block are needed, and it has none")


@contextmanager
def inputs_of(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The inputs that a layer gets within the context, newest last."""
    seen: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach())

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
