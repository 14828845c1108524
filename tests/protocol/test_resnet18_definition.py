"""ResNet-18: size, work, the stem for each image size, and the function that it computes."""

from __future__ import annotations

import pytest
import torch

from cu_ray.errors import UserError
from cu_ray.learning.layers import num_weight_layers
from cu_ray.models.resnet18 import ResNet18
from tests.protocol import networks
from tests.protocol.reference import normalise


@pytest.mark.parametrize(
    ("image_shape", "num_classes", "size", "billions"),
    [((32, 32, 3), 10, 11_173_962, 0.5554), ((224, 224, 3), 1000, 11_689_512, 1.8141)],
)
def test_the_usual_size_and_work(image_shape, num_classes, size, billions):
    model = networks.on_paper(ResNet18(), image_shape, num_classes)
    assert networks.num_parameters(model) == size
    assert networks.count_multiply_adds(model, image_shape) / 1e9 == pytest.approx(billions, abs=5e-5)
    assert num_weight_layers(model) == 18


def expected_logits(state, images, learning, large):
    """Convolution and BatchNorm, twice a block; the first convolution has the stride; ReLU after the sum."""
    values = networks.convolve(images, state, "0.0", 2 if large else 1)
    values = networks.relu(normalise(values, state, "0.1", learning))
    values = networks.pool_3x3(values) if large else values
    for number in range(1, 9):
        stride, block = (2 if number in (3, 5, 7) else 1), f"{number}.0.branch"
        branch = normalise(networks.convolve(values, state, f"{block}.0", stride), state, f"{block}.1", learning)
        branch = normalise(networks.convolve(networks.relu(branch), state, f"{block}.3"), state, f"{block}.4", learning)
        values = networks.relu(branch + networks.projected(values, state, f"{number}.0.shortcut", stride, learning))
    return networks.mean_head(values, state, "9.2")


@pytest.mark.parametrize(
    ("stem", "image_shape", "large"),
    [("auto", (32, 32, 3), False), ("auto", (9, 14, 1), False), ("large", (37, 48, 1), True), ("auto", (65, 70, 3), True)],
)
def test_it_computes_the_usual_function(stem, image_shape, large):
    model = networks.lively(ResNet18(stem, width=2).build(image_shape, 5))
    networks.assert_computes(model, lambda *given: expected_logits(*given, large), image_shape)


@pytest.mark.parametrize(("side", "kernel"), [(32, 3), (64, 3), (65, 7), (224, 7)])
def test_images_of_up_to_64_pixels_get_the_small_stem(side, kernel):
    assert networks.on_paper(ResNet18(), (side, side, 3), 10)[0][0].kernel_size == (kernel, kernel)


def test_the_large_stem_needs_larger_images():
    ResNet18("large").check((33, 40, 3))
    assert ResNet18("large", width=1).build((33, 33, 3), 2).train()(torch.zeros(1, 3, 33, 33)).shape == (1, 2)
    with pytest.raises(UserError, match="large stem takes images of at least 33 x 33 pixels, not 32 x 40"):
        ResNet18("large").check((32, 40, 3))
