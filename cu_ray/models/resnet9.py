"""ResNet-9 as the benchmark has it, of any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.errors import UserError
from cu_ray.lazy import torch
from cu_ray.models import Model
from cu_ray.plugins import Bound


@dataclass(frozen=True)
class ResNet9(Model):
    """The benchmark's ResNet-9: 2,276,224 parameters at width 64 for 3 channels and 10 classes."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ResNet-9 of the benchmark; width: channels of the first convolution (64 as published)"
    width: Annotated[int, Bound(low=1)] = 64

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """conv1, conv2 (5x5, stride 2), res1, conv3 + pool, res2, conv4 (no padding), linear head without bias."""
        from cu_ray.models._blocks import GlobalMaxPool, MaxPool, Pooled, Residual, conv_norm_celu

        nn, width = torch.nn, self.width
        residual = [Residual(conv_norm_celu(w, w, 3), conv_norm_celu(w, w, 3)) for w in (2 * width, 4 * width)]
        return nn.Sequential(
            conv_norm_celu(image_shape[2], width, 3),
            conv_norm_celu(width, 2 * width, 5, stride=2, padding=2),
            residual[0],
            Pooled(conv_norm_celu(2 * width, 4 * width, 3), MaxPool(2)),
            residual[1],
            conv_norm_celu(4 * width, 2 * width, 3, padding=0),
            nn.Sequential(GlobalMaxPool(), nn.Flatten(), nn.Linear(2 * width, num_classes, bias=False)),
        )

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The seven children, input to output."""
        return list(model.children())

    def layers_per_block(self) -> tuple[int, ...]:
        """From the output these allow k = 1, 2, 4, 5, 7, 8 and all 9."""
        return (1, 1, 2, 1, 2, 1, 1)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Images must be at least 11 pixels high and wide: after one stride and one pooling 3 x 3 must be left.

        Below 15 pixels conv4 leaves a single place, where BatchNorm cannot learn from a batch of one image.
        """
        height, width, _ = image_shape
        if min(height, width) < 11:
            raise UserError(f"resnet9 takes images of at least 11 x 11 pixels, not {height} x {width}")
