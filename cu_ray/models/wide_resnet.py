"""WideResNet as the benchmark has it (its WideResNet-28-10), of any depth and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.models import Model
from cu_ray.models._checks import require_depth, require_sides
from cu_ray.plugins import Bound


@dataclass(frozen=True)
class WideResNet(Model):
    """The benchmark's WideResNet-28-10 by default: 36,490,250 parameters for 3 channels and 10 classes.

    It differs from the textbook network (Zagoruyko and Komodakis, arXiv 1605.07146) as the benchmark does: the second
    convolution of a block has the stride, shortcuts have BatchNorm, convolutions have biases, and nothing normalises before
    the head.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "WideResNet of the benchmark; depth (6 n + 4) and width: 28 and 10 as published"
    depth: Annotated[int, Bound(low=10, high=10_000)] = 28
    width: Annotated[int, Bound(low=1)] = 10

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """A 3x3 convolution, three stages of pre-activation blocks (the last two halve the image), mean, linear head."""
        from cu_ray.models._blocks import Residual, block_shapes, conv3x3, mean_head, shortcut

        nn, stages = torch.nn, (16 * self.width, 32 * self.width, 64 * self.width)

        def block(channels_in: int, channels: int, stride: int) -> torch.nn.Module:
            return Residual(
                *(nn.BatchNorm2d(channels_in), nn.ReLU(), conv3x3(channels_in, channels, bias=True)),
                *(nn.BatchNorm2d(channels), nn.ReLU(), conv3x3(channels, channels, stride=stride, bias=True)),
                shortcut=shortcut(channels_in, channels, stride=stride, bias=True),
            )

        blocks = [block(*shape) for shape in block_shapes(16, stages, self._blocks_each)]
        return nn.Sequential(conv3x3(image_shape[2], 16, bias=True), *blocks, mean_head(stages[-1], num_classes))

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The first convolution, each residual block, the head."""
        return list(model.children())

    def layers_per_block(self) -> tuple[int, ...]:
        """From the output these allow, at depth 28, k = 1, 3, 5, ..., 25 and all 26."""
        return (1, *[2] * (3 * self._blocks_each), 1)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Depth 6 n + 4; sides of at least 5 pixels: with 2 x 2 places left BatchNorm learns also from a single image."""
        require_depth("wide_resnet", self.depth, 4)
        require_sides("wide_resnet", image_shape, 5)

    @property
    def _blocks_each(self) -> int:
        return (self.depth - 4) // 6
