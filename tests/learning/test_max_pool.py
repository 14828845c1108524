"""The largest values of windows and their gradients are PyTorch's, to the bit.

On a GPU, or without one in Triton's interpreter: TRITON_INTERPRET=1 python -m pytest -m gpu tests/learning/test_max_pool.py
"""

from __future__ import annotations

import os

import pytest
import torch

from cu_ray.models._blocks import Chain, GlobalMaxPool, MaxPool

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
KINDS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(Chain, "spares_bias", staticmethod(lambda inputs: True))
    return pytest.importorskip("cu_ray.models._max_pool")


def some(shape, kind, seed=0):
    """Images with ties: few different values."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-3, 4, shape, generator=generator).to(kind)
    return images.to(DEVICE).contiguous(memory_format=torch.channels_last)


def run(pool, images, gradient):
    """Outputs, and the gradient of the images."""
    images = images.detach().clone().requires_grad_()
    outputs = pool(images)
    return outputs, torch.autograd.grad(outputs, images, gradient)[0]


POOLS = [
    (MaxPool(2), torch.nn.MaxPool2d(2), (5, 70, 6, 10)),
    (MaxPool(2), torch.nn.MaxPool2d(2), (64, 64, 16, 16)),
    (MaxPool(3), torch.nn.MaxPool2d(3), (2, 3, 9, 6)),
    (GlobalMaxPool(), torch.nn.MaxPool2d(6), (9, 130, 6, 6)),
    (GlobalMaxPool(), torch.nn.MaxPool2d(1), (3, 5, 1, 1)),
]


@pytest.mark.parametrize(("ours", "plain", "shape"), POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_pytorch(ours, plain, shape, kind):
    images = some(shape, kind)
    gradient = some(plain(images).shape, kind, seed=1)
    found, expected = run(ours, images, gradient), run(plain, images, gradient)
    assert type(found[0].grad_fn).__name__ == "MaxOfWindowsBackward"
    for given, wanted in zip(found, expected, strict=True):
        assert torch.equal(given, wanted)
        assert given.is_contiguous(memory_format=torch.channels_last)


def test_infinities_and_what_is_no_number_are_kept():
    images = some((2, 8, 4, 4), torch.float32)
    images[0, :, 0, 1] = float("nan")
    images[0, :, 1, 1] = float("nan")
    images[1, :, :2, :2] = float("-inf")
    gradient = some((2, 8, 2, 2), torch.float32, seed=1)
    for given, wanted in zip(*(run(pool, images, gradient) for pool in (MaxPool(2), torch.nn.MaxPool2d(2))), strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)


def test_gradients_of_gradients_are_those_of_pytorch():
    second = []
    for pool in (MaxPool(2), torch.nn.MaxPool2d(2)):
        images = some((2, 3, 4, 4), torch.float32).requires_grad_()
        (first,) = torch.autograd.grad((pool(images) ** 3).sum(), images, create_graph=True)
        second.append(torch.autograd.grad((first**2).sum(), images)[0])
    assert torch.equal(*second)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 5, 4).contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4),
        torch.zeros(0, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
    ],
    ids=["a row too much", "channels first", "no images", "64 bits"],
)
def test_what_the_kernels_do_not_take_is_done_by_pytorch(images):
    images = images.to(DEVICE).requires_grad_()
    assert "MaxOfWindows" not in type(MaxPool(2)(images).grad_fn).__name__
    assert "MaxOfWindows" not in type(GlobalMaxPool()(torch.zeros(1, 1, 9, 9, requires_grad=True)).grad_fn).__name__
