"""BatchNorm and CELU in one are what PyTorch's two layers are, forward and backward.

On a GPU, or without one in Triton's interpreter: TRITON_INTERPRET=1 python -m pytest -m gpu tests/learning/test_norm_celu.py
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

from cu_ray.models import _blocks
from cu_ray.models._blocks import Chain

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
SHAPES = [(4, 5, 6, 6), (9, 70, 7, 5), (2, 1, 1, 1), (64, 64, 16, 16)]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@pytest.fixture(autouse=True)
def kernels():
    return pytest.importorskip("cu_ray.models._norm_celu")


def layers(channels):
    """BatchNorm and CELU, no weight or statistic as it begins."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.1, 1.5)
    norm.bias.data -= 0.8
    return norm.to(DEVICE).train(), torch.nn.CELU(0.075)


def some(shape, kind, *, scale=3.0, shift=5.0):
    images = (torch.randn(shape) * scale + shift).to(kind)
    return images.to(DEVICE).contiguous(memory_format=torch.channels_last)


def run(function, images, norm, gradient):
    """Outputs and gradients of images, weight and bias."""
    images = images.detach().requires_grad_()
    outputs = function(images)
    return [outputs, *torch.autograd.grad(outputs, (images, norm.weight, norm.bias), gradient)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TOLERANCE)
def test_outputs_gradients_and_running_statistics_are_those_of_the_two_layers(shape, kind):
    norm, celu = layers(shape[1])
    exact = copy.deepcopy(norm).double()
    images, gradient = some(shape, kind), some(shape, kind, scale=1, shift=0)
    found = run(lambda images: _blocks._norm_celu(images, norm, celu), images, norm, gradient)
    expected = run(lambda images: celu(exact(images)), images.double(), exact, gradient.double())
    assert found[0].dtype == kind
    assert found[0].stride() == images.stride()
    for given, wanted in zip(found, expected, strict=True):
        most = float(wanted.detach().abs().max())
        torch.testing.assert_close(given.double(), wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * max(most, 1))
    for name, wanted in exact.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name].double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_the_kernels_are_what_runs(kernels, monkeypatch):
    norm, celu = layers(5)
    assert _blocks._kernels_work(torch.device(DEVICE))
    monkeypatch.setattr(kernels.NormCelu, "apply", lambda *given: pytest.fail("they run"))
    with pytest.raises(pytest.fail.Exception, match="they run"):
        _blocks._norm_celu(some((4, 5, 6, 6), torch.float32), norm, celu)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TOLERANCE)
def test_by_running_statistics_outputs_are_those_of_the_two_layers(kernels, shape, kind):
    norm, celu = layers(shape[1])
    exact, images = copy.deepcopy(norm).double().eval(), some(shape, kind)
    expected = celu(exact(images.double()))
    given = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    with torch.inference_mode():
        found = kernels.norm_celu_(images, *given, norm.eps, celu.alpha)
    assert found is images
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so_or_a_loss_would_hide_that_it_diverged(kernels, value, training):
    norm, celu = layers(5)
    exact = copy.deepcopy(norm).double().train(training)
    images = some((4, 5, 6, 6), torch.float32)
    images[1, 2, 3, 4] = value
    if training:
        gradient = some((4, 5, 6, 6), torch.float32, scale=1, shift=0)
        expected = run(lambda images: celu(exact(images)), images.double(), exact, gradient.double())
        found = run(lambda images: _blocks._norm_celu(images, norm, celu), images, norm, gradient)
        assert torch.isnan(found[0][:, 2]).all()
        assert torch.isfinite(found[0][:, :2]).all()
    else:
        expected = [celu(exact(images.double()))]
        given = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        with torch.no_grad():
            found = [kernels.norm_celu_(images, *given, norm.eps, celu.alpha)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_chain_evaluates_as_the_layers_one_by_one_and_by_our_kernel_where_nobody_asks_for_gradients(
    kernels, monkeypatch, without
):
    monkeypatch.setattr(Chain, "spares_bias", staticmethod(lambda inputs: True))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    calls, kernel = [], kernels.norm_celu_
    monkeypatch.setattr(kernels, "norm_celu_", lambda *given: calls.append(1) or kernel(*given))
    chain = torch.nn.Sequential(_blocks.conv_norm_celu(3, 8, 3), _blocks.conv_norm_celu(8, 8, 3))
    chain = chain.to(DEVICE, memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            chain(some((8, 3, 6, 6), torch.float32))
    assert not calls
    plain = torch.nn.Sequential(*(copy.deepcopy(module) for block in chain for module in block))
    images = some((8, 3, 6, 6), torch.float32)
    kept = images.clone()
    with without():
        torch.testing.assert_close(chain.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-4)
    assert torch.equal(images, kept)
    assert len(calls) == 2
    gradients = [torch.autograd.grad((block(images) ** 2).sum(), next(block.parameters()))[0] for block in (chain, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert len(calls) == 2


def test_a_large_mean_costs_no_digits():
    norm, celu = layers(8)
    exact = copy.deepcopy(norm).double()
    images = some((32, 8, 8, 8), torch.float32, scale=0.1, shift=300.0)
    found, expected = _blocks._norm_celu(images, norm, celu), celu(exact(images.double()))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_gradients_are_those_of_the_two_layers(frozen):
    second = []
    for ours in (True, False):
        norm, celu = layers(5)
        norm.bias.requires_grad_(not frozen)
        images = some((4, 5, 6, 6), torch.float32, scale=1, shift=0).requires_grad_()
        outputs = _blocks._norm_celu(images, norm, celu) if ours else celu(norm(images))
        (first,) = torch.autograd.grad((outputs**2).sum(), images, create_graph=True)
        second.append(torch.autograd.grad((first**2).sum(), (images, norm.weight)))
    for given, wanted in zip(*second, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-3)


def test_what_the_kernels_do_not_take_is_done_by_the_two_layers(monkeypatch):
    norm, celu = layers(5)
    exact = copy.deepcopy(norm)
    for images in (torch.randn(4, 5, 6, 6, device=DEVICE), torch.randn(4, 5, 6, 6, device=DEVICE).double()):
        norm, exact = norm.to(images.dtype), exact.to(images.dtype)
        assert torch.equal(_blocks._norm_celu(images, norm, celu), celu(exact(images)))
    with pytest.raises(ValueError, match="more than 1 value"):
        _blocks._norm_celu(torch.randn(1, 5, 1, 1, device=DEVICE), norm, celu)


def test_a_chain_trains_as_the_layers_one_by_one(monkeypatch):
    monkeypatch.setattr(Chain, "spares_bias", staticmethod(lambda inputs: True))
    chain = _blocks.conv_norm_celu(3, 8, 3).to(DEVICE, memory_format=torch.channels_last).train()
    plain = torch.nn.Sequential(*(copy.deepcopy(module) for module in chain)).train()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for block in (chain, plain):
        optimiser = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        torch.manual_seed(1)
        for _ in range(4):
            optimiser.zero_grad()
            (block(some((8, 3, 6, 6), torch.float32, scale=1, shift=0)) ** 2).mean().backward()
            optimiser.step()
    assert not chain[0].bias.grad.any()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(chain.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
