"""Models: what an original model's architecture is."""

from __future__ import annotations

from cu_ray.lazy import torch
from cu_ray.plugins import Plugin


class Model(Plugin):
    """An architecture. Its fields are its settings."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """A model that maps images [B, C, H, W] to logits [B, num_classes]; its weights are drawn by the caller.

        The caller asks each layer's `reset_parameters` for them: a module with parameters of its own needs that.
        """
        raise NotImplementedError

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The model's blocks from input to output; together they hold all its parameters."""
        raise NotImplementedError

    def layers_per_block(self) -> tuple[int, ...]:
        """How many layers EU-k and CF-k count in each block, input to output, known without building the model.

        Convolutions and linear layers, but none in a module with `is_shortcut = True`: the 1x1 convolution past a residual
        branch is learned with its block and not counted, as in the names of networks (the 20 of ResNet-20).
        """
        raise NotImplementedError

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError where the model cannot take images of this height, width and number of channels."""
