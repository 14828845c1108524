"""REM: the memory beside the network, its losses step by step in float64, and which model is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cu_ray.errors import AssumptionFailed
from cu_ray.learning.layers import initialise
from cu_ray.methods import rem
from cu_ray.methods.rem import Memory, Rem
from cu_ray.models.cifar_resnet import CifarResNet
from cu_ray.models.resnet9 import ResNet9
from cu_ray.models.resnet18 import ResNet18
from cu_ray.models.vit import Vit
from cu_ray.models.wide_resnet import WideResNet
from tests.protocol import fakes, reference
from tests.protocol.networks import lively, some_images
from tests.protocol.reference import preference

DELETION = fakes.some_batches(60, [3, 2], in_deletion=True)
RETAIN = fakes.some_batches(61, [4, 3], in_deletion=False)
EVERYTHING = [
    replace(batch, in_deletion=torch.arange(len(batch)) % 3 == 1) for batch in fakes.some_batches(62, [4, 4, 1])
]  # the last batch holds no sample of the deletion set
NUM = sum(map(len, EVERYTHING))
RUNNING, LEARNING = (), (0, 1)  # BatchNorm by its running statistics, by the batch's


def run(method):
    task = fakes.FakeTask(fakes.small_net(4), retain=RETAIN, deletion=DELETION, everything=EVERYTHING)
    return task, method.unlearn(task)


# ------------------------------------------------------------------------------------------------- written down anew


def wide_start():
    """The state with twice the channels: new weights, but the original's where both ends are the network's own."""
    nn = torch.nn
    wide = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.CELU()),
        nn.Sequential(nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4), nn.CELU()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    ).double()
    initialise([wide], 12345)  # as the stand-in draws
    state, own = reference.state_of(wide), reference.state_of(fakes.small_net(4))
    for name in ("weight", "bias", "running_mean", "running_var"):
        for layer in ("0.1", "1.1"):
            state[f"{layer}.{name}"][:2] = own[f"{layer}.{name}"]
    state["0.0.weight"][:2], state["0.0.bias"][:2] = own["0.0.weight"], own["0.0.bias"]
    state["1.0.weight"][:2, :2], state["1.0.bias"][:2] = own["1.0.weight"], own["1.0.bias"]
    state["2.1.weight"][:, :8], state["2.1.bias"] = own["2.1.weight"], own["2.1.bias"]
    for layer in ("0.1", "1.1"):
        state[f"{layer}.num_batches_tracked"] = own[f"{layer}.num_batches_tracked"]
    return state


def draws():
    """What each sample sees of the 2 channels before the second convolution, and of the 8 features; the last: S_f."""
    generator = torch.Generator().manual_seed(0)
    return {width: torch.rand(NUM + 1, width, generator=generator) < 0.2 for width in (2, 8)}


def forward(state, images, seen, learning=RUNNING):
    """The logits. seen: what of the memory each sample sees, by width; None where it is off."""

    def filtered(values, width):
        memory = torch.zeros(len(images), width) if seen is None else seen[width].double()
        parts = [torch.ones(len(images), width), memory]
        return values * torch.cat(parts, dim=1).view(len(images), 2 * width, *[1] * (values.dim() - 2))

    values = reference.convolve(images, state["0.0.weight"], state["0.0.bias"])
    values = filtered(reference.celu(reference.normalise(values, state, "0.1", 0 in learning)), 2)
    values = reference.convolve(values, state["1.0.weight"], state["1.0.bias"])
    values = reference.celu(reference.normalise(values, state, "1.1", 1 in learning))
    return filtered(values.flatten(1), 8) @ state["2.1.weight"].T + state["2.1.bias"]


def seen_by(batch):
    rows = [NUM if found else int(row) for row, found in zip(batch.indices, batch.in_deletion, strict=True)]
    return {width: table[rows] for width, table in draws().items()}


def erasing(batch, beta):
    def loss(state):
        return -preference(forward(state, batch.images, None), forward(wide_start(), batch.images, None), batch.labels, beta)

    return loss


def redirecting(batch, beta):
    def loss(state):
        before = forward(wide_start(), batch.images, seen_by(batch))
        value = preference(forward(state, batch.images, seen_by(batch), LEARNING), before, batch.labels, beta)
        found = batch.in_deletion
        if not found.any():
            return value
        without = forward(state, batch.images[found], None)
        return value - preference(without, before[found], batch.labels[found], beta)

    return loss


# -------------------------------------------------------------------------------------------------------------- tests


def never_forgetting(monkeypatch):
    """Each erasure takes both passes that it may."""
    monkeypatch.setattr(rem, "MOST_PASSES", 2)
    monkeypatch.setattr(rem, "FORGOTTEN", -1.0)


def require_updates(task, start, losses):
    """The states by the definition, one a loss; those of the task have to be the same."""
    recipe = fakes.RECIPE
    expected = reference.descend(
        start, losses, lr=0.05, num_steps=len(losses), momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    assert len(task.states) == len(expected)
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)
    return expected


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_every_update_follows_the_definition(beta, monkeypatch):
    erasure = [erasing(batch, beta) for batch in [*DELETION, *DELETION]]
    losses = [*erasure, *[redirecting(batch, beta) for batch in EVERYTHING], *erasure]
    never_forgetting(monkeypatch)
    task, model = run(Rem(beta=beta, lr=0.05, steps=11))
    require_updates(task, wide_start(), losses)
    assert {name: tensor.shape for name, tensor in fakes.snapshot(model).items()} == {
        name: tensor.shape for name, tensor in fakes.snapshot(fakes.small_net(4)).items()
    }


def test_an_erasure_ends_where_the_deletion_set_is_forgotten(monkeypatch):
    accuracies = iter([0.9, 0.5, 0.2, 0.1, 0.1])  # before, after a pass, after two: enough; then of the two sets
    monkeypatch.setattr(rem, "accuracy_as_given", lambda *_, **__: next(accuracies))
    task, _ = run(Rem(lr=0.01, steps=6))
    assert [name for name, *_ in task.log] == ["deletion"] * 4 + ["everything"] * 3


def test_of_the_models_after_each_turn_the_best_is_kept(monkeypatch):
    values = iter([0.3, 0.8, 0.5, 0.8])
    models = []

    def value(self, task, model):
        models.append(fakes.snapshot(model))
        return next(values)

    monkeypatch.setattr(Rem, "value", value)
    monkeypatch.setattr(rem, "FORGOTTEN", 1.0)  # so that nothing is to be erased
    task, model = run(Rem(lr=0.05, steps=12))
    assert task.offers == len(models) == 4
    assert task.notes == {"value": 0.8, "turns": 4}
    assert not fakes.same_bits(models[1], models[3])
    assert fakes.same_bits(fakes.snapshot(model), models[1])


def test_a_models_value_is_what_is_kept_times_what_is_forgotten_but_no_more_than_chance_asks(monkeypatch):
    task = fakes.FakeTask(fakes.small_net(4), retain=RETAIN, deletion=DELETION)
    for found, factor in ((0.7, 0.3), (0.2, 0.8), (0.0, 0.8)):
        accuracies = {"retain": 0.9, "deletion": found}
        monkeypatch.setattr(rem, "accuracy_as_given", lambda _, samples, augment, a=accuracies: a[samples.name])
        assert Rem().value(task, task.original) == pytest.approx(0.9 * factor)


PLUGINS = [ResNet9(width=2), WideResNet(depth=10, width=1), CifarResNet(depth=8, width=3), ResNet18(width=2)]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda each: type(each).__name__)
def test_with_its_memory_off_and_with_it_cut_off_every_model_is_what_it_was(plugin):
    original, images = lively(plugin.build((16, 16, 3), 5)), some_images((16, 16, 3))
    task = fakes.FakeTask(original, everything=EVERYTHING)
    task.blocks = plugin.blocks
    memory, expected = Memory(task), original(images)
    torch.testing.assert_close(memory.model(images), expected)
    batch = replace(EVERYTHING[0], images=images[:1].expand(4, -1, -1, -1))
    memory.on(batch)
    memory.model.eval()
    logits = memory.model(batch.images)
    assert not torch.allclose(logits, expected[:1])
    torch.testing.assert_close(logits.float(), memory.reference_logits(batch))
    found, other = logits[batch.in_deletion], logits[~batch.in_deletion]
    assert all(not torch.allclose(found[0], each) for each in other)
    memory.off()
    with torch.no_grad():
        for parameter in memory.model.parameters():
            parameter.mul_(0.9)
    without = memory.model(images)
    memory.cut_off(original)
    torch.testing.assert_close(original(images), without)
    assert not torch.allclose(without, expected)


def test_the_deletion_set_shares_one_draw_of_a_fifth_and_every_other_sample_has_its_own():
    task = fakes.FakeTask(fakes.small_net(4), everything=fakes.some_batches(1, [5000]))
    memory = Memory(task)
    assert {width: tuple(table.shape) for width, table in memory.tied.drawn.items()} == {2: (5001, 2), 8: (5001, 8)}
    assert float(memory.tied.drawn[8].double().mean()) == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 40_000))
    memory.on(EVERYTHING[0])
    assert memory.tied.rows_B.tolist() == [0, 5000, 2, 3]


def net_with(*layers):
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.Sequential(nn.Flatten(), nn.Linear(18, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Vit(patch=4, depth=1, width=8, heads=2).build((12, 12, 1), 3), "but 0 is a Tokens"),
        (net_with(torch.nn.LayerNorm(3)), "but 1 is a LayerNorm"),
        (net_with(torch.nn.Conv2d(2, 2, 3, groups=2)), "but 1 is a Conv2d"),
    ],
)
def test_a_layer_that_cannot_be_widened_is_an_assumption_that_fails(model, message):
    with pytest.raises(AssumptionFailed, match=message):
        Memory(fakes.FakeTask(model, everything=EVERYTHING))


def test_the_published_values_are_the_defaults():
    assert (Rem().beta, Rem().lr, Rem().steps) == (1.0, 0.005, 980)
