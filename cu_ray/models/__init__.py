"""Models: what an original model's architecture is."""

from __future__ import annotations

from cu_ray.lazy import torch
from cu_ray.plugins import Plugin


class Model(Plugin):
    """An architecture. Its fields are its settings."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """A model that maps images [B, C, H, W] to logits [B, num_classes]; its weights are drawn by the caller."""
        raise NotImplementedError

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The model's blocks from input to output; together they hold all its parameters."""
        raise NotImplementedError

    def layers_per_block(self) -> tuple[int, ...]:
        """How many convolution and linear layers each block has, input to output, known without building the model."""
        raise NotImplementedError

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError where the model cannot take images of this height, width and number of channels."""
