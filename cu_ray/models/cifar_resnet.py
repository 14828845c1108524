"""ResNet-20, 32, 44, 56 and 110 as the benchmark has them, of any depth and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.models import Model
from cu_ray.models._checks import require_depth, require_sides
from cu_ray.plugins import Bound


@dataclass(frozen=True)
class CifarResNet(Model):
    """The benchmark's ResNets for small images: ResNet-20 has 272,378 parameters for 3 channels and 10 classes.

    They differ from the textbook networks (He et al., arXiv 1512.03385) as the benchmark does: BatchNorm comes before each
    convolution of a block, and shortcuts that change the shape have a convolution.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ResNet of the benchmark; depth: 6 n + 2 (20, 32, 44, 56, 110 as published); width: 16 as published"
    depth: Annotated[int, Bound(low=8, high=10_000)] = 20
    width: Annotated[int, Bound(low=1)] = 16

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """A 3x3 convolution, three stages of residual blocks (the last two halve the image), mean, linear head."""
        from cu_ray.models._blocks import Residual, block_shapes, conv3x3, mean_head, shortcut

        nn, stages = torch.nn, (self.width, 2 * self.width, 4 * self.width)

        def block(channels_in: int, channels: int, stride: int) -> torch.nn.Module:
            residual = Residual(
                *(nn.BatchNorm2d(channels_in), conv3x3(channels_in, channels, stride=stride), nn.ReLU()),
                *(nn.BatchNorm2d(channels), conv3x3(channels, channels)),
                shortcut=shortcut(channels_in, channels, stride=stride),
            )
            return nn.Sequential(residual, nn.ReLU())

        stem = nn.Sequential(conv3x3(image_shape[2], self.width), nn.BatchNorm2d(self.width), nn.ReLU())
        blocks = [block(*shape) for shape in block_shapes(self.width, stages, self._blocks_each)]
        return nn.Sequential(stem, *blocks, mean_head(stages[-1], num_classes))

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The stem, each residual block, the head."""
        return list(model.children())

    def layers_per_block(self) -> tuple[int, ...]:
        """From the output these allow k = 1, 3, 5, ... and all, which are as many as the depth."""
        return (1, *[2] * (3 * self._blocks_each), 1)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Depth 6 n + 2; sides of at least 5 pixels: with 2 x 2 places left BatchNorm learns also from a single image."""
        require_depth("cifar_resnet", self.depth, 2)
        require_sides("cifar_resnet", image_shape, 5)

    @property
    def _blocks_each(self) -> int:
        return (self.depth - 2) // 6
