"""The vision transformer, ViT-B/16 where the image allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.errors import UserError
from cu_ray.lazy import torch
from cu_ray.models import Model
from cu_ray.plugins import Bound

MOST_PATCHES = 1024  # attention takes memory with their square


@dataclass(frozen=True)
class Vit(Model):
    """ViT (Dosovitskiy et al., arXiv 2010.11929): 86,567,656 parameters for 224 x 224 x 3 and 1000 classes, as ViT-B/16 has.

    `patch: null` is the largest square of up to 16 pixels that tiles the image at least 7 times each way: 16 at 224 pixels,
    4 at 32 and at 28. Class token, learned positions, norm first, GELU, no dropout; weights start as all models' do.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "vision transformer (ViT-B); patch: side in pixels, null: fitted to the image, up to 16"
    patch: Annotated[int | None, Bound(low=1)] = None
    depth: Annotated[int, Bound(low=1, high=1000)] = 12
    width: Annotated[int, Bound(low=1)] = 768
    heads: Annotated[int, Bound(low=1)] = 12
    mlp_ratio: Annotated[int, Bound(low=1)] = 4

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
        """Patches to tokens, encoder blocks of attention and a two-layer network, norm and linear head of the class token."""
        from cu_ray.models._blocks import Residual
        from cu_ray.models._tokens import Attention, ClassToken, Tokens

        nn, width, (height, image_width, channels) = torch.nn, self.width, image_shape
        patch, inner = self._patch_for(image_shape), self.mlp_ratio * width

        def norm() -> torch.nn.Module:
            return nn.LayerNorm(width, eps=1e-6)

        def encoder() -> torch.nn.Module:
            network = (nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            return nn.Sequential(Residual(norm(), Attention(width, self.heads)), Residual(norm(), *network))

        return nn.Sequential(
            Tokens(channels, width, patch, (height // patch) * (image_width // patch)),
            *[encoder() for _ in range(self.depth)],
            nn.Sequential(ClassToken(), norm(), nn.Linear(width, num_classes)),
        )

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Patches to tokens, each encoder block, the head."""
        return list(model.children())

    def layers_per_block(self) -> tuple[int, ...]:
        """An encoder block has four: into attention, out of it, and two. At depth 12: k = 1, 5, 9, ..., 49 and all 50."""
        return (1, *[4] * self.depth, 1)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Patches must tile the image, up to 1,024 of them, and heads must share the width evenly."""
        height, width, _ = image_shape
        patch = self._patch_for(image_shape)
        if self.width % self.heads:
            raise UserError(f"vit takes a width that its heads share evenly, not {self.width} with {self.heads} heads")
        if height % patch or width % patch:
            raise UserError(f"vit with patch {patch} takes images whose sides are multiples of {patch}, not {height} x {width}")
        num_patches = (height // patch) * (width // patch)
        if num_patches > MOST_PATCHES:
            raise UserError(
                f"vit takes images of up to {MOST_PATCHES} patches, not {height} x {width} in {num_patches} of {patch} x {patch}"
            )

    def _patch_for(self, image_shape: tuple[int, int, int]) -> int:
        if self.patch is not None:
            return self.patch
        common, shorter = math.gcd(*image_shape[:2]), min(image_shape[:2])
        return max(side for side in range(1, 17) if common % side == 0 and (side == 1 or shorter >= 7 * side))
