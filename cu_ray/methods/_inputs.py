"""The inputs of a layer, for methods that look at activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cu_ray.lazy import torch


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
