"""ResNet-18, with the first layers that small images need or those of ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.models import Model
from cu_ray.models._checks import require_sides
from cu_ray.plugins import Bound, Choices


@dataclass(frozen=True)
class ResNet18(Model):
    """ResNet-18 (He et al., arXiv 1512.03385): 11,173,962 parameters for small images of 3 channels and 10 classes.

    `stem: small` is a 3x3 convolution; `large` a 7x7 convolution with stride 2 and max pooling with stride 2; `auto` takes
    the small one for images whose shorter side has up to 64 pixels.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ResNet-18; stem: small (3x3) or large (7x7, stride 2, pooling), auto: by the image's size"
    stem: Annotated[str, Choices(("auto", "small", "large"))] = "auto"
    width: Annotated[int, Bound(low=1)] = 64

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """The stem, four stages of two basic blocks (the last three halve the image), mean, linear head."""
        from cu_ray.models._blocks import Residual, block_shapes, conv3x3, mean_head, shortcut

        nn, width = torch.nn, self.width
        stages = (width, 2 * width, 4 * width, 8 * width)

        def block(channels_in: int, channels: int, stride: int) -> torch.nn.Module:
            residual = Residual(
                *(conv3x3(channels_in, channels, stride=stride), nn.BatchNorm2d(channels), nn.ReLU()),
                *(conv3x3(channels, channels), nn.BatchNorm2d(channels)),
                shortcut=shortcut(channels_in, channels, stride=stride),
            )
            return nn.Sequential(residual, nn.ReLU())

        if self._stem_for(image_shape) == "small":
            stem = nn.Sequential(conv3x3(image_shape[2], width), nn.BatchNorm2d(width), nn.ReLU())
        else:
            convolution = nn.Conv2d(image_shape[2], width, 7, stride=2, padding=3, bias=False)
            stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        blocks = [block(*shape) for shape in block_shapes(width, stages, 2)]
        return nn.Sequential(stem, *blocks, mean_head(stages[-1], num_classes))

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The stem, each residual block, the head."""
        return list(model.children())

    def layers_per_block(self) -> tuple[int, ...]:
        """From the output these allow k = 1, 3, 5, ..., 17 and all 18."""
        return (1, *[2] * 8, 1)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """With 2 x 2 places left BatchNorm can learn from a batch of one image: sides of 9 pixels, 33 with the large stem."""
        if self._stem_for(image_shape) == "small":
            require_sides("resnet18", image_shape, 9)
        else:
            require_sides("resnet18 with the large stem", image_shape, 33)

    def _stem_for(self, image_shape: tuple[int, int, int]) -> str:
        return self.stem if self.stem != "auto" else "small" if min(image_shape[:2]) <= 64 else "large"
