"""What models say of images and settings that they cannot take."""

from __future__ import annotations

from cu_ray.errors import UserError


def require_sides(name: str, image_shape: tuple[int, int, int], least: int) -> None:
    """Raise UserError where an image (height, width, channels) has a side of fewer pixels."""
    height, width, _ = image_shape
    if min(height, width) < least:
        raise UserError(f"{name} takes images of at least {least} x {least} pixels, not {height} x {width}")


def require_depth(name: str, depth: int, layers_besides: int) -> None:
    """Raise UserError where the layers are not three stages of equally many blocks of two, and the others."""
    if (depth - layers_besides) % 6:
        below = depth - (depth - layers_besides) % 6
        near = [str(each) for each in (below, below + 6) if each >= 6 + layers_besides]
        raise UserError(f"{name} takes a depth of 6 n + {layers_besides}, not {depth}. Nearest: {' and '.join(near)}")
