"""What holds of every model: EU-k and CF-k for every allowed k, training in each precision, single images, importances."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from cu_ray import plugins, testing
from cu_ray.errors import FieldFault, UserError
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.learning.layers import initialise
from cu_ray.learning.sgd import Sgd, cross_entropy
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.models.cifar_resnet import CifarResNet
from cu_ray.models.resnet9 import ResNet9
from cu_ray.models.resnet18 import ResNet18
from cu_ray.models.vit import Vit
from cu_ray.models.wide_resnet import WideResNet
from tests.protocol import fakes, networks

SMALL = [ResNet9(2), WideResNet(10, 1), CifarResNet(14, 2), ResNet18(width=2), Vit(None, 2, 8, 2)]
ALLOWED = {
    ResNet9: [1, 2, 4, 5, 7, 8, 9],
    WideResNet: [*range(1, 26, 2), 26],
    CifarResNet: [*range(1, 20, 2), 20],
    ResNet18: [*range(1, 18, 2), 18],
    Vit: [*range(1, 50, 4), 50],
}
SIDE = 16
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LAST_LAYERS = (ExactUnlearning, CatastrophicForgetting)


def allowed(plugin):
    """All k of a model, by adding up its blocks from the output."""
    return list(itertools.accumulate(reversed(plugin.layers_per_block())))


def name(plugin):
    """For the names of tests."""
    return plugins.name_of(plugin) if not isinstance(plugin, (int, str)) else str(plugin)


def drawn(plugin, side=SIDE, channels=1):
    """A small model whose weights are drawn, no tensor at its start."""
    model = plugin.build((side, side, channels), fakes.NUM_CLASSES)
    initialise([model], seed=7)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.to(memory_format=torch.channels_last)


def test_every_model_is_here():
    assert sorted(map(name, SMALL)) == plugins.names("models")


@pytest.mark.parametrize(
    "plugin", [ResNet9(), WideResNet(), *map(CifarResNet, (20, 32, 44, 56, 110)), ResNet18(), Vit()], ids=str
)
def test_the_documentation_says_size_work_and_k(plugin):
    model = networks.on_paper(plugin, (32, 32, 3), 10)
    work = networks.count_multiply_adds(model, (32, 32, 3))
    digits = f"{work / 1e9:.3f} G" if work >= 1e9 else f"{work / 1e6:.1f} M"
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if f" {networks.num_parameters(model):,} " in line)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[4] == digits
    assert cells[5].endswith(f"{allowed(plugin)[-2]}, all {allowed(plugin)[-1]}")


@pytest.mark.parametrize("method", LAST_LAYERS)
@pytest.mark.parametrize("cls", ALLOWED, ids=name)
def test_these_k_are_allowed_and_no_others(cls, method):
    assert allowed(cls()) == ALLOWED[cls]
    for k in range(1, max(ALLOWED[cls]) + 3):
        if k in ALLOWED[cls]:
            method(k=k).check(cls().layers_per_block())
        else:
            with pytest.raises(FieldFault, match="not allowed"):
                method(k=k).check(cls().layers_per_block())


@pytest.mark.parametrize("method", LAST_LAYERS)
@pytest.mark.parametrize(("plugin", "k"), [(each, k) for each in SMALL for k in (*allowed(each), None)], ids=name)
def test_exactly_the_last_k_layers_change_and_what_is_frozen_keeps_its_statistics(plugin, k, method):
    num_blocks = len(plugin.layers_per_block())
    num_trained = num_blocks if k is None else allowed(plugin).index(k) + 1
    model = drawn(plugin).double()
    before = fakes.snapshot(model)
    task = fakes.FakeTask(model, retain=fakes.some_batches(1, [4], side=SIDE))
    task.blocks = plugin.blocks
    after = fakes.snapshot(method(k=k, steps=1, lr=1e-3).unlearn(task))
    for key, tensor in after.items():
        trained = int(key.split(".")[0]) >= num_blocks - num_trained
        assert torch.equal(tensor, before[key]) != trained, key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plugin", SMALL, ids=name)
def test_it_trains_channels_last_in_each_precision(plugin, precision):
    model = drawn(plugin, side=32, channels=3).train()
    before = fakes.snapshot(model)

    def require_channels_last(layer, _, output):
        assert output.is_contiguous(memory_format=torch.channels_last), layer

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            layer.register_forward_hook(require_channels_last)
    (batch,) = fakes.some_batches(2, [4], channels=3, side=32)
    images = batch.images.float().contiguous(memory_format=torch.channels_last)
    Sgd(model, replace(fakes.RECIPE, precision=precision), torch.device("cpu")).step(replace(batch, images=images), cross_entropy)
    for key, tensor in model.state_dict().items():
        assert bool(tensor.isfinite().all()), key
        assert tensor.dtype == before[key].dtype
        assert not torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("plugin", SMALL, ids=name)
def test_importances_are_the_squared_gradients_of_all_parameters(plugin):
    model = drawn(plugin).eval().double()
    (batch,) = fakes.some_batches(3, [4], side=SIDE)
    torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
    expected = torch.cat([parameter.grad.flatten() ** 2 for parameter in model.parameters()])
    computed = squared_gradient_importance(model, fakes.FixedStream("retain", [batch], []), 4)
    torch.testing.assert_close(computed, expected)
    assert bool((computed > 0).any())


@pytest.mark.parametrize(
    ("plugin", "least"), [(SMALL[0], 11), (SMALL[1], 5), (SMALL[2], 5), (SMALL[3], 9), (SMALL[4], 1)], ids=name
)
def test_smaller_images_are_refused_and_the_smallest_can_be_a_batch_of_one(plugin, least):
    plugin.check((least, least, 1))
    model = plugin.build((least, least, 1), 3).train(not isinstance(plugin, ResNet9))  # ResNet-9: from 15 pixels, see below
    assert bool(model(torch.ones(1, 1, least, least)).isfinite().all())
    if least == 1:
        return
    with pytest.raises(UserError, match=f"at least {least} x {least} pixels, not {least - 1} x {least}"):
        plugin.check((least - 1, least, 1))
    with pytest.raises((ValueError, RuntimeError)):
        model(torch.ones(1, 1, least - 1, least - 1))


@pytest.mark.parametrize(
    ("cls", "depth", "message"),
    [
        (WideResNet, 27, r"wide_resnet takes a depth of 6 n \+ 4, not 27. Nearest: 22 and 28$"),
        (CifarResNet, 57, r"cifar_resnet takes a depth of 6 n \+ 2, not 57. Nearest: 56 and 62$"),
        (CifarResNet, 5, "Nearest: 8$"),
    ],
    ids=str,
)
def test_a_depth_that_stages_cannot_have_is_refused(cls, depth, message):
    with pytest.raises(UserError, match=message):
        cls(depth).check((32, 32, 3))


@pytest.mark.parametrize(("side", "can"), [(11, False), (14, False), (15, True), (28, True)])
def test_resnet9_learns_from_a_batch_of_one_image_from_15_pixels_on(side, can):
    model = SMALL[0].build((side, side, 1), 3).train()
    if can:
        assert model(torch.ones(1, 1, side, side)).shape == (1, 3)
        return
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        model(torch.ones(1, 1, side, side))
    assert model(torch.ones(2, 1, side, side)).shape == (2, 3)


class TestExactUnlearningOfWideResNet(testing.MethodConformance):
    plugin = ExactUnlearning
    settings: ClassVar = {"k": 3, "steps": 5}
    model: ClassVar = WideResNet(10, 1)


class TestCatastrophicForgettingOfResNet8(testing.MethodConformance):
    plugin = CatastrophicForgetting
    settings: ClassVar = {"k": 7, "steps": 5}
    model: ClassVar = CifarResNet(8, 2)


class TestExactUnlearningOfResNet18(testing.MethodConformance):
    plugin = ExactUnlearning
    settings: ClassVar = {"k": 5, "steps": 5}
    model: ClassVar = ResNet18(width=2)


class TestExactUnlearningOfVit(testing.MethodConformance):
    plugin = ExactUnlearning
    settings: ClassVar = {"k": None, "steps": 5}
    model: ClassVar = Vit(3, 2, 8, 2)
