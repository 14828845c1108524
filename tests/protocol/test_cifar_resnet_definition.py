"""ResNet-20, 32, 44, 56 and 110: size, work, and the function that they compute."""

from __future__ import annotations

import pytest
import torch

from cu_ray.learning.layers import num_weight_layers
from cu_ray.models.cifar_resnet import CifarResNet
from tests.protocol import networks
from tests.protocol.reference import normalise


def expected_size(depth, num_classes):
    """Counted by hand: a block has two BatchNorm layers and two convolutions without bias."""
    blocks = (depth - 2) // 6
    size = 3 * 16 * 9 + 2 * 16
    for channels_in, channels in ((16, 16), (16, 32), (32, 64)):
        size += 2 * channels_in + 2 * channels + 9 * channels * (channels_in + channels)
        size += (blocks - 1) * (4 * channels + 18 * channels**2)
        size += 0 if channels_in == channels else channels_in * channels + 2 * channels
    return size + 64 * num_classes + num_classes


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_size_and_the_layers_of_each_depth(depth):
    model = networks.on_paper(CifarResNet(depth), (32, 32, 3), 10)
    assert networks.num_parameters(model) == expected_size(depth, 10)
    assert num_weight_layers(model) == depth
    assert CifarResNet(depth).layers_per_block() == (1, *[2] * ((depth - 2) // 2), 1)


def test_the_published_size_and_the_work_of_resnet20():
    model = networks.on_paper(CifarResNet(), (32, 32, 3), 10)
    assert networks.num_parameters(model) == 272_378
    # the stem, 18 convolutions of 2,359,296 of which two have half the channels, two shortcuts, the head
    by_hand = 442_368 + 16 * 2_359_296 + 2 * 1_179_648 + 2 * 131_072 + 640
    assert networks.count_multiply_adds(model, (32, 32, 3)) == by_hand


def expected_logits(state, images, learning):
    """BatchNorm before each convolution of a block; the first has the stride."""
    values = networks.relu(normalise(networks.convolve(images, state, "0.0"), state, "0.1", learning))
    for number in range(1, 10):
        stride, block = (2 if number in (4, 7) else 1), f"{number}.0.branch"
        branch = normalise(values, state, f"{block}.0", learning)
        branch = networks.relu(networks.convolve(branch, state, f"{block}.1", stride))
        branch = networks.convolve(normalise(branch, state, f"{block}.3", learning), state, f"{block}.4")
        values = networks.relu(branch + networks.projected(values, state, f"{number}.0.shortcut", stride, learning))
    return networks.mean_head(values, state, "10.2")


@pytest.mark.parametrize("image_shape", [(32, 32, 3), (12, 12, 1), (9, 6, 1)])
def test_it_computes_the_published_function(image_shape):
    model = networks.lively(CifarResNet(20, width=2).build(image_shape, 5))
    networks.assert_computes(model, expected_logits, image_shape)


def test_shortcuts_are_where_the_shape_changes_and_no_convolution_has_a_bias():
    model = CifarResNet().build((32, 32, 3), 10)
    names = [name for name in model.state_dict() if name.endswith("shortcut.0.weight")]
    assert names == ["4.0.shortcut.0.weight", "7.0.shortcut.0.weight"]
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    assert model[-1][-1].bias is not None
