"""Parts that models are built of. Imported when a model is built: it needs torch."""

from __future__ import annotations

import torch
from torch import nn


def conv_norm_celu(channels_in: int, channels: int, kernel: int, *, stride: int = 1, padding: int = 1) -> nn.Sequential:
    """Convolution with bias, BatchNorm and CELU (alpha 0.075)."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=padding)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.CELU(alpha=0.075))


def conv3x3(channels_in: int, channels: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image's size, but for its stride."""
    return nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=bias)


class Shortcut(nn.Sequential):
    """The way past a residual branch that changes the shape: a 1x1 convolution and BatchNorm."""

    is_shortcut = True  # k does not count its convolution


def shortcut(channels_in: int, channels: int, *, stride: int, bias: bool = False) -> Shortcut | None:
    """The way past a branch with these channels and this stride; None where the branch keeps the shape."""
    if (channels_in, stride) == (channels, 1):
        return None
    return Shortcut(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=bias), nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """The input, or what the shortcut makes of it, plus what the modules make of it."""

    def __init__(self, *modules: nn.Module, shortcut: Shortcut | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*modules)
        self.shortcut = shortcut

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same shape; to the branch's where there is a shortcut."""
        passed = inputs if self.shortcut is None else self.shortcut(inputs)
        outputs: torch.Tensor = passed + self.branch(inputs)
        return outputs


def mean_head(channels: int, num_classes: int) -> nn.Sequential:
    """The mean over all places of the image, and the linear layer to logits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def block_shapes(channels_in: int, channels: tuple[int, ...], blocks_each: int) -> list[tuple[int, int, int]]:
    """(channels in, channels, stride) of each residual block: stages of these channels, halving the image from the second on."""
    found = []
    for stage, channels_out in enumerate(channels):
        for block in range(blocks_each):
            found.append((channels_in, channels_out, 2 if stage and not block else 1))
            channels_in = channels_out
    return found
