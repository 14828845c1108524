"""The largest value of each window of K x K places, and its gradient, by Triton kernels; to the bit what PyTorch's give.

PyTorch's take several times as long on images that are channels last: they write and read where each maximum was, and set all
gradients to zero before. Windows lie side by side and leave nothing out. Images [B, C, H, W] that are channels last are a table:
a row a place, a column a channel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

COLUMNS = 64
PLACES = 128  # of a tile, about


@triton.jit
def _first_places(x, windows, columns, width, C: tl.constexpr, K: tl.constexpr):
    """Where the first place of each window is."""
    row = windows // (width // K) * (K * width) + windows % (width // K) * K
    return x + row[:, None] * C + columns[None, :]


@triton.jit
def _forward(x, y, num_windows, width, C: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    windows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (windows < num_windows)[:, None] & (columns < C)[None, :]
    first = _first_places(x, windows, columns, width, C, K)
    best = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    for place in tl.static_range(1, K * K):
        value = tl.load(first + (place // K * width + place % K) * C, mask=mask, other=0.0).to(tl.float32)
        best = tl.where((value > best) | (value != value), value, best)
    tl.store(y + windows[:, None] * C + columns[None, :], best.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(x, dy, dx, num_windows, width, C: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    windows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (windows < num_windows)[:, None] & (columns < C)[None, :]
    first = _first_places(x, windows, columns, width, C, K)
    best = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    chosen = tl.zeros([ROWS, COLUMNS], tl.int32)
    for place in tl.static_range(1, K * K):
        value = tl.load(first + (place // K * width + place % K) * C, mask=mask, other=0.0).to(tl.float32)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        chosen = tl.where(better, place, chosen)
    gradient = tl.load(dy + windows[:, None] * C + columns[None, :], mask=mask, other=0.0)
    target = _first_places(dx, windows, columns, width, C, K)
    for place in tl.static_range(K * K):
        value = tl.where(chosen == place, gradient, 0.0)
        tl.store(target + (place // K * width + place % K) * C, value, mask=mask)


class MaxOfWindows(torch.autograd.Function):
    """The first of the largest values of each window; of several NaN the last has the gradient, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, size: int) -> torch.Tensor:
        """[B, C, H, W], channels last, to [B, C, H / size, W / size]."""
        height, width = images.shape[2:]
        outputs = torch.empty_like(images[:, :, : height // size, : width // size], memory_format=torch.channels_last)
        _forward[_grid(outputs, size)](images, outputs, *_sizes(images, outputs, size))
        ctx.save_for_backward(images)
        ctx.size = size
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """That of the images."""
        (images,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of this gradient
            outputs = torch.nn.functional.max_pool2d(images, ctx.size)
            return *torch.autograd.grad(outputs, images, gradient, create_graph=True), None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        _backward[_grid(gradient, ctx.size)](images, gradient, result, *_sizes(images, gradient, ctx.size))
        return result, None


def _rows(size: int) -> int:
    return int(triton.next_power_of_2(max(1, PLACES // size**2)))


def _grid(outputs: torch.Tensor, size: int) -> tuple[int, int]:
    channels = outputs.shape[1]
    return int(triton.cdiv(outputs.numel() // channels, _rows(size))), int(triton.cdiv(channels, COLUMNS))


def _sizes(images: torch.Tensor, outputs: torch.Tensor, size: int) -> tuple[int, ...]:
    channels = images.shape[1]
    return outputs.numel() // channels, images.shape[3], channels, size, _rows(size), COLUMNS
