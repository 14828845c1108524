"""Parts that models are built of. Imported when a model is built: it needs torch."""

from __future__ import annotations

import torch
from torch import nn


def conv_norm_celu(channels_in: int, channels: int, kernel: int, *, stride: int = 1, padding: int = 1) -> nn.Sequential:
    """Convolution with bias, BatchNorm and CELU (alpha 0.075)."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=padding)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.CELU(alpha=0.075))


class Residual(nn.Module):
    """The input plus what the modules make of it."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*modules)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same shape."""
        outputs: torch.Tensor = inputs + self.branch(inputs)
        return outputs
