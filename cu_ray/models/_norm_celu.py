"""BatchNorm and the CELU after it in one go, forward and, in train mode, backward, by Triton kernels.

Half of what a GPU reads and writes in PyTorch's kernels for the two is not needed. Images [B, C, H, W] that are channels last
are a table of rows [C]: kernels sum over pieces of the rows, then over the pieces; all in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

MOST_PIECES = 512  # of the rows; a power of two
TILE = {"ROWS": 32, "COLUMNS": 64}
THIN = 8  # columns of the kernels that sum over pieces


@triton.jit
def _forward_sums(x, sums, num_rows, piece, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each piece the sums of x and x^2, less the table's first row, so that no digits are lost."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    base = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)  # summed up once at the end: threads then need not wait for each other
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * piece
    for row in range(start, start + piece, ROWS):
        rows = row + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & inside[None, :]
        value = tl.load(x + rows[:, None] * C + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - base[None, :], 0.0)
        first += value
        second += value * value
    place = tl.program_id(0) * 2 * C + columns
    tl.store(sums + place, tl.sum(first, axis=0), mask=inside)
    tl.store(sums + place + C, tl.sum(second, axis=0), mask=inside)


@triton.jit
def _statistics(
    x,
    sums,
    mean,
    scale,
    running_mean,
    running_var,
    num_pieces,
    num_rows,
    momentum,
    eps,
    C: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean and 1 / standard deviation; the running statistics go on."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pieces = tl.arange(0, PIECES)
    inside = columns < C
    mask = (pieces < num_pieces)[:, None] & inside[None, :]
    place = pieces[:, None] * 2 * C + columns[None, :]
    first = tl.sum(tl.load(sums + place, mask=mask, other=0.0), axis=0) / num_rows
    second = tl.sum(tl.load(sums + place + C, mask=mask, other=0.0), axis=0) / num_rows
    variance = second - first * first
    variance = tl.where(variance < 0, 0.0, variance)  # not maximum, which on a GPU takes the number of a number and NaN
    average = first + tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(mean + columns, average, mask=inside)
    tl.store(scale + columns, 1.0 / tl.sqrt(variance + eps), mask=inside)
    before = tl.load(running_mean + columns, mask=inside, other=0.0)
    tl.store(running_mean + columns, before + momentum * (average - before), mask=inside)
    before = tl.load(running_var + columns, mask=inside, other=0.0)
    unbiased = variance * (num_rows / (num_rows - 1.0))
    tl.store(running_var + columns, before + momentum * (unbiased - before), mask=inside)


@triton.jit
def _forward(x, y, mean, scale, weight, bias, num_rows, alpha, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = columns < C
    mask = (rows < num_rows)[:, None] & inside[None, :]
    place = rows[:, None] * C + columns[None, :]
    slope = tl.load(scale + columns, mask=inside, other=0.0) * tl.load(weight + columns, mask=inside, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + columns, mask=inside, other=0.0)[None, :]
    value = value * slope[None, :] + tl.load(bias + columns, mask=inside, other=0.0)[None, :]
    value = tl.where(value > 0, value, alpha * (tl.exp(tl.where(value > 0, 0.0, value) / alpha) - 1.0))
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _through_celu(x, dy, place, mask, average, deviation, gain, shift, alpha):
    """The normalised x, and the gradient of what BatchNorm gives."""
    normalised = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - average[None, :]) * deviation[None, :]
    value = normalised * gain[None, :] + shift[None, :]
    gradient = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    return normalised, tl.where(value > 0, gradient, gradient * tl.exp(tl.where(value > 0, 0.0, value) / alpha))


@triton.jit
def _backward_sums(
    x, dy, sums, mean, scale, weight, bias, num_rows, piece, alpha, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Of each piece the sums of BatchNorm's gradient, and of it times the normalised x."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    average, deviation = tl.load(mean + columns, mask=inside, other=0.0), tl.load(scale + columns, mask=inside, other=0.0)
    gain, shift = tl.load(weight + columns, mask=inside, other=0.0), tl.load(bias + columns, mask=inside, other=0.0)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)  # summed up once at the end: threads then need not wait for each other
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * piece
    for row in range(start, start + piece, ROWS):
        rows = row + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & inside[None, :]
        place = rows[:, None] * C + columns[None, :]
        normalised, gradient = _through_celu(x, dy, place, mask, average, deviation, gain, shift, alpha)
        first += gradient
        second += gradient * normalised
    place = tl.program_id(0) * 2 * C + columns
    tl.store(sums + place, tl.sum(first, axis=0), mask=inside)
    tl.store(sums + place + C, tl.sum(second, axis=0), mask=inside)


@triton.jit
def _totals(sums, totals, num_pieces, C: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr):
    """Over the pieces: the gradients of BatchNorm's bias and weight."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pieces = tl.arange(0, PIECES)
    inside = columns < 2 * C
    mask = (pieces < num_pieces)[:, None] & inside[None, :]
    tile = tl.load(sums + pieces[:, None] * 2 * C + columns[None, :], mask=mask, other=0.0)
    tl.store(totals + columns, tl.sum(tile, axis=0), mask=inside)


@triton.jit
def _backward(
    x, dy, dx, totals, mean, scale, weight, bias, num_rows, alpha, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = columns < C
    mask = (rows < num_rows)[:, None] & inside[None, :]
    place = rows[:, None] * C + columns[None, :]
    average, deviation = tl.load(mean + columns, mask=inside, other=0.0), tl.load(scale + columns, mask=inside, other=0.0)
    gain, shift = tl.load(weight + columns, mask=inside, other=0.0), tl.load(bias + columns, mask=inside, other=0.0)
    first = tl.load(totals + columns, mask=inside, other=0.0) / num_rows
    second = tl.load(totals + C + columns, mask=inside, other=0.0) / num_rows
    normalised, gradient = _through_celu(x, dy, place, mask, average, deviation, gain, shift, alpha)
    value = (gradient - first[None, :] - normalised * second[None, :]) * (gain * deviation)[None, :]
    tl.store(dx + place, value.to(dx.dtype.element_ty), mask=mask)


class NormCelu(torch.autograd.Function):
    """CELU(BatchNorm(images)) by batch statistics; the running ones go on in place."""

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running: tuple[torch.Tensor, torch.Tensor],
        momentum: float,
        eps: float,
        alpha: float,
    ) -> torch.Tensor:
        """Images [B, C, H, W], channels last; all else [C] in float32. Gives what images are: type, shape, layout."""
        outputs = torch.empty_like(images)
        num_rows, C, piece, num_pieces, grid = _table(images)
        sums = images.new_empty((num_pieces, 2, C), dtype=torch.float32)
        mean, scale = sums.new_empty(C), sums.new_empty(C)
        _forward_sums[(num_pieces, grid[1])](images, sums, num_rows, piece, C, **TILE)
        _statistics[(triton.cdiv(C, THIN),)](
            *(images, sums, mean, scale, *running, num_pieces, num_rows, momentum, eps, C, MOST_PIECES, THIN)
        )
        _forward[grid](images, outputs, mean, scale, weight, bias, num_rows, alpha, C, **TILE)
        ctx.save_for_backward(images, weight, bias, mean, scale)
        ctx.alpha, ctx.eps = alpha, eps
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of images, weight and bias."""
        images, weight, bias, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            outputs = torch.nn.functional.batch_norm(images, None, None, weight, bias, training=True, eps=ctx.eps)
            outputs = torch.nn.functional.celu(outputs, ctx.alpha)
            wanted = [each for each, needed in zip((images, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(outputs, wanted, gradient, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None, None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        num_rows, C, piece, num_pieces, grid = _table(images)
        sums, totals = mean.new_empty((num_pieces, 2, C)), mean.new_empty((2, C))
        given = (mean, scale, weight, bias, num_rows)
        _backward_sums[(num_pieces, grid[1])](images, gradient, sums, *given, piece, ctx.alpha, C, **TILE)
        _totals[(triton.cdiv(2 * C, THIN),)](sums, totals, num_pieces, C, MOST_PIECES, THIN)
        result = torch.empty_like(images)
        _backward[grid](images, gradient, result, totals, *given, ctx.alpha, C, **TILE)
        return result, totals[1], totals[0], None, None, None, None


def norm_celu_(
    images: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    alpha: float,
) -> torch.Tensor:
    """CELU(BatchNorm(images)) by given statistics, in place and without gradients: images as `NormCelu` takes them."""
    num_rows, C, _, _, grid = _table(images)
    _forward[grid](images, images, mean, torch.rsqrt(variance + eps), weight, bias, num_rows, alpha, C, **TILE)
    return images


def _table(images: torch.Tensor) -> tuple[int, int, int, int, tuple[int, int]]:
    """Rows, columns, rows of a piece (whole tiles), pieces, and the grid of tiles."""
    columns = images.shape[1]
    num_rows = images.numel() // columns
    tiles = triton.cdiv(num_rows, TILE["ROWS"])
    tiles_a_piece = triton.cdiv(tiles, MOST_PIECES)
    grid = (tiles, triton.cdiv(columns, TILE["COLUMNS"]))
    return num_rows, columns, tiles_a_piece * TILE["ROWS"], triton.cdiv(tiles, tiles_a_piece), grid


@functools.cache
def works(device: torch.device) -> bool:
    """Whether kernels can be made here: Triton needs a compiler for C, and GPUs from Volta on."""
    images = torch.ones(1, 1, 1, 2, device=device)
    ones = [torch.ones(1, device=device) for _ in range(4)]
    try:
        NormCelu.apply(images, ones[0], ones[1], (ones[2], ones[3]), 0.1, 1e-5, 1.0)
    except torch.OutOfMemoryError:
        raise  # it passes: no answer to be remembered
    except Exception:
        return False
    return True
