"""ResNet-9: size, work, and the function that it computes."""

from __future__ import annotations

import pytest
import torch

from cu_ray.errors import UserError
from cu_ray.learning.layers import initialise
from cu_ray.models.resnet9 import ResNet9
from tests.protocol import fakes
from tests.protocol.networks import count_multiply_adds, num_parameters, on_paper
from tests.protocol.reference import celu

functional = torch.nn.functional


def test_the_published_size_and_work_at_width_64():
    model = on_paper(ResNet9(), (32, 32, 3), 10)
    assert num_parameters(model) == 2_276_224
    assert count_multiply_adds(model, (32, 32, 3)) / 1e6 == pytest.approx(291.3, abs=0.05)


def expected_logits(model, images):
    """The architecture written out, with the model's weights taken in their order."""
    layers = iter([layer for layer in model.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.BatchNorm2d))])

    def conv(values, **how):
        weights, norm = next(layers), next(layers)
        values = functional.conv2d(values, weights.weight, weights.bias, **how)
        mean, variance = (each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
        scale, shift = (each.view(1, -1, 1, 1) for each in (norm.weight, norm.bias))
        return celu((values - mean) / torch.sqrt(variance + 1e-5) * scale + shift)

    values = conv(images, padding=1)
    values = conv(values, stride=2, padding=2)
    values = values + conv(conv(values, padding=1), padding=1)
    values = functional.max_pool2d(conv(values, padding=1), 2)
    values = values + conv(conv(values, padding=1), padding=1)
    values = conv(values, padding=0).amax(dim=(2, 3))
    assert next(layers, None) is None
    return values @ model[-1][-1].weight.T


def lively(model):
    """All weights and statistics away from their usual start, in float64."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.double().state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model.eval()


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28), (1, 12)])
def test_it_computes_the_published_function(channels, side):
    model = lively(ResNet9(width=3).build((side, side, channels), 5))
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(model(images), expected_logits(model, images), rtol=1e-9, atol=1e-9)


def test_kernels_and_biases_are_as_published():
    layers = [layer for layer in ResNet9().build((32, 32, 3), 10).modules() if isinstance(layer, torch.nn.Conv2d)]
    shapes = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]
    residual_128, residual_256 = (128, 128, 3), (256, 256, 3)
    assert shapes == [
        *((3, 64, 3), (64, 128, 5), residual_128, residual_128),
        *((128, 256, 3), residual_256, residual_256, (256, 128, 3)),
    ]
    assert all(layer.bias is not None for layer in layers)
    assert ResNet9().build((32, 32, 3), 10)[-1][-1].bias is None


def test_blocks_go_from_input_to_output_and_hold_every_parameter_once():
    model = ResNet9(width=2).build((32, 32, 3), 10)
    held = [id(parameter) for block in ResNet9(width=2).blocks(model) for parameter in block.parameters()]
    assert held == [id(parameter) for parameter in model.parameters()]


def test_initial_weights_are_a_function_of_the_seed_with_biases_zero():
    states = []
    for seed, global_seed in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(global_seed)
        model = ResNet9(width=4).build((12, 12, 1), 4)
        before = torch.get_rng_state()
        initialise([model], seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(fakes.snapshot(model))
    assert fakes.same_bits(states[0], states[1])
    assert not fakes.same_bits(states[0], states[2])
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in states[0].items() if name.endswith("bias"))


@pytest.mark.parametrize(("side", "allowed"), [(32, True), (11, True), (10, False)])
def test_images_that_are_too_small_are_refused(side, allowed):
    model = ResNet9(width=1).build((side, side, 1), 2).eval()
    if allowed:
        ResNet9().check((side, side, 1))
        assert model(torch.zeros(1, 1, side, side)).shape == (1, 2)
        return
    with pytest.raises(UserError):
        ResNet9().check((side, side, 1))
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 1, side, side))
