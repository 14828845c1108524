"""WideResNet-28-10: size, work, and the function that it computes."""

from __future__ import annotations

import pytest

from cu_ray.models.wide_resnet import WideResNet
from tests.protocol import networks
from tests.protocol.reference import normalise


@pytest.mark.parametrize(("num_classes", "published"), [(10, 36_490_250), (100, 36_547_940)])
def test_the_published_size_and_work_at_depth_28_and_width_10(num_classes, published):
    model = networks.on_paper(WideResNet(), (32, 32, 3), num_classes)
    assert networks.num_parameters(model) == published
    assert networks.count_multiply_adds(model, (32, 32, 3)) / 1e9 == pytest.approx(5.951, abs=0.0005)


def test_the_published_k_are_allowed_and_the_blocks_go_two_by_two():
    assert WideResNet().layers_per_block() == (1, *[2] * 12, 1)


def expected_logits(state, images, learning, blocks_each):
    """Pre-activation blocks in three stages; the second convolution has the stride."""
    values = networks.convolve(images, state, "0")
    for number in range(1, 3 * blocks_each + 1):
        stride = 2 if number in (blocks_each + 1, 2 * blocks_each + 1) else 1
        branch = networks.relu(normalise(values, state, f"{number}.branch.0", learning))
        branch = networks.convolve(branch, state, f"{number}.branch.2")
        branch = networks.relu(normalise(branch, state, f"{number}.branch.3", learning))
        branch = networks.convolve(branch, state, f"{number}.branch.5", stride)
        values = branch + networks.projected(values, state, f"{number}.shortcut", stride, learning)
    return networks.mean_head(values, state, f"{3 * blocks_each + 1}.2")


@pytest.mark.parametrize(("depth", "width", "image_shape"), [(10, 1, (32, 32, 3)), (16, 1, (12, 12, 1)), (10, 2, (9, 6, 1))])
def test_it_computes_the_published_function(depth, width, image_shape):
    model = networks.lively(WideResNet(depth, width).build(image_shape, 5))
    networks.assert_computes(model, lambda *given: expected_logits(*given, (depth - 4) // 6), image_shape)


def test_shortcuts_are_where_the_shape_changes_and_every_convolution_has_a_bias():
    state = WideResNet(16, 2).build((32, 32, 3), 10).state_dict()
    assert [name for name in state if name.endswith("shortcut.0.weight")] == [f"{block}.shortcut.0.weight" for block in (1, 3, 5)]
    convolutions = [name for name, tensor in state.items() if tensor.dim() == 4]
    assert len(convolutions) == 1 + 12 + 3
    assert all(name.replace("weight", "bias") in state for name in convolutions)
    assert [state[f"{block}.branch.5.weight"].shape[0] for block in range(1, 7)] == [32, 32, 64, 64, 128, 128]


def test_a_first_block_that_keeps_the_channels_needs_no_shortcut():
    state = WideResNet(10, 1).build((32, 32, 3), 10).state_dict()
    assert [name for name in state if name.endswith("shortcut.0.weight")] == ["2.shortcut.0.weight", "3.shortcut.0.weight"]
