"""REM on an original with a memory of its own: how that is trained, and each update from there, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cu_ray.identity import seed_for
from cu_ray.learning.activations import last_linear_layer
from cu_ray.learning.batches import RowStream
from cu_ray.learning.sgd import Sgd, cross_entropy
from cu_ray.learning.tied_dropout import TiedDropout, draw, own_channels, takers
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.rem_etd import RemEtd, TrainedMemory
from cu_ray.models.cifar_resnet import CifarResNet
from cu_ray.models.resnet9 import ResNet9
from cu_ray.models.resnet18 import ResNet18
from cu_ray.models.wide_resnet import WideResNet
from cu_ray.stages.evaluate import Keeper
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.train import build_model
from cu_ray.types import OriginalSpec
from tests.protocol import fakes, reference
from tests.protocol.networks import lively, some_images
from tests.protocol.reference import preference
from tests.protocol.test_rem_definition import never_forgetting, require_updates
from tests.protocol.tiny import RECIPE, MemoryStore, tiny_dataset, trial_spec

DELETION = fakes.some_batches(70, [3, 2], in_deletion=True)
RETAIN = fakes.some_batches(71, [4, 3], in_deletion=False)
EVERYTHING = [
    replace(batch, in_deletion=torch.arange(len(batch)) % 3 == 1, indices=torch.arange(len(batch)) + start)
    for batch, start in zip(fakes.some_batches(72, [4, 4, 1]), (0, 4, 8), strict=True)
]
NUM = sum(map(len, EVERYTHING))
OWN = {2: 1, 8: 4}  # of the channels before the second convolution, of the features: the others are memory
RUNNING, LEARNING = (), (0, 1)
PLUGINS = [ResNet9(width=2), ResNet9(width=3), WideResNet(depth=10, width=1), CifarResNet(depth=8, width=4), ResNet18(width=2)]


def run(method):
    task = fakes.FakeTask(fakes.small_net(4), retain=RETAIN, deletion=DELETION, everything=EVERYTHING)
    return task, method.unlearn(task)


# ------------------------------------------------------------------------------------------------- written down anew


def trained_state():
    """The state as it was in training: after it, what reads memory was multiplied by the share of it that a sample saw."""
    state = reference.state_of(fakes.small_net(4))
    state["1.0.weight"] = state["1.0.weight"].clone()
    state["1.0.weight"][:, 1] = state["1.0.weight"][:, 1] / 0.2
    state["2.1.weight"] = state["2.1.weight"].clone()
    state["2.1.weight"][:, 4:] = state["2.1.weight"][:, 4:] / 0.2
    return state


def forward(state, images, seen, learning=RUNNING):
    """The logits. seen: what of the memory each sample sees, by the number of all channels; None where it is off."""

    def filtered(values, width):
        own = OWN[width]
        memory = torch.zeros(len(images), width - own) if seen is None else seen[width].double()
        return values * torch.cat([torch.ones(len(images), own), memory], dim=1).view(
            len(images), width, *[1] * (values.dim() - 2)
        )

    values = reference.convolve(images, state["0.0.weight"], state["0.0.bias"])
    values = filtered(reference.celu(reference.normalise(values, state, "0.1", 0 in learning)), 2)
    values = reference.convolve(values, state["1.0.weight"], state["1.0.bias"])
    values = reference.celu(reference.normalise(values, state, "1.1", 1 in learning))
    return filtered(values.flatten(1), 8) @ state["2.1.weight"].T + state["2.1.bias"]


def drawn(rows, share):
    """What the rows see of the memory: 1 channel before the second convolution, 4 features."""
    return {2: draw(100, 1, share, torch.device("cpu"))[rows], 8: draw(100, 4, share, torch.device("cpu"))[rows]}


def seen_by(batch):
    """In unlearning: the deletion set has a draw of its own, the first that the task's generator makes."""
    generator = torch.Generator().manual_seed(0)
    shared = {2: torch.rand(1, 1, generator=generator) < 0.2, 8: torch.rand(1, 4, generator=generator) < 0.2}
    own = drawn(batch.indices, 0.2)
    return {width: torch.where(batch.in_deletion[:, None], shared[width], own[width]) for width in own}


def erasing(batch, beta):
    before = forward(trained_state(), batch.images, None)
    return lambda state: -preference(forward(state, batch.images, None), before, batch.labels, beta)


def redirecting(batch, beta):
    def loss(state):
        before = forward(trained_state(), batch.images, seen_by(batch))
        value = preference(forward(state, batch.images, seen_by(batch), LEARNING), before, batch.labels, beta)
        found = batch.in_deletion
        if not found.any():
            return value
        without = forward(state, batch.images[found], None)
        return value - preference(without, before[found], batch.labels[found], beta)

    return loss


# -------------------------------------------------------------------------------------------------------------- tests


def test_the_original_is_trained_with_what_each_sample_sees_of_the_memory():
    """The share is .6 here: of so few channels a fifth is often none."""
    model = fakes.small_net(4).train()
    layers = takers(model, last_linear_layer(model[-1]))
    tied = TiedDropout.half_of(layers, 0.6, NUM, torch.device("cpu"))
    recipe = replace(fakes.RECIPE, steps=5)
    sgd, stream = fakes.NotingSgd(model, recipe, torch.device("cpu")), fakes.FixedStream("everything", EVERYTHING, [])
    while not sgd.done:
        sgd.epoch(tied.following(stream), cross_entropy)

    def learning(batch):
        return lambda state: reference.mean_cross_entropy(
            forward(state, batch.images, drawn(batch.indices, 0.6), LEARNING), batch.labels
        )

    losses = [learning(batch) for batch in [*EVERYTHING, *EVERYTHING[:2]]]
    expected = reference.descend(
        reference.state_of(fakes.small_net(4)),
        losses,
        lr=recipe.lr,
        num_steps=5,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    for computed, state in zip(sgd.states, expected, strict=True):
        fakes.assert_close(computed, state)
    assert {row.tolist()[0] for row in drawn(torch.arange(NUM), 0.6)[2]} == {True, False}, "the test would show little"
    images, mean = EVERYTHING[0].images, {2: torch.full((4, 1), 0.6), 8: torch.full((4, 4), 0.6)}
    model.eval()
    evaluated = forward(expected[-1], images, mean)
    torch.testing.assert_close(model(images), evaluated)  # as `keep: best_on_test` does in the midst of training
    tied.settle()
    torch.testing.assert_close(model(images), evaluated)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_every_update_follows_the_definition(beta, monkeypatch):
    erasure = [erasing(batch, beta) for batch in [*DELETION, *DELETION]]
    losses = [*erasure, *[redirecting(batch, beta) for batch in EVERYTHING], *erasure]
    never_forgetting(monkeypatch)
    task, model = run(RemEtd(beta=beta, lr=0.05, steps=11))
    expected = require_updates(task, trained_state(), losses)
    images = EVERYTHING[0].images
    turns = [7, 11]
    with torch.no_grad():
        ends = [forward(expected[turn - 1], images, None) for turn in turns]
    assert any(torch.allclose(model(images), end, rtol=1e-5, atol=1e-6) for end in ends)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda each: f"{type(each).__name__}-{getattr(each, 'width', '')}")
def test_with_its_memory_off_and_with_it_cut_off_every_model_is_the_same(plugin):
    original, images = lively(plugin.build((16, 16, 3), 5)), some_images((16, 16, 3))
    task = fakes.FakeTask(original, everything=EVERYTHING)
    task.blocks = plugin.blocks
    before = original(images)
    memory = TrainedMemory(task)
    torch.testing.assert_close(original(images), before, rtol=0, atol=0)
    memory.off()
    without = memory.model(images)
    assert not torch.allclose(without, before)
    batch = replace(EVERYTHING[0], images=images[:1].expand(4, -1, -1, -1))
    memory.on(batch)
    memory.model.eval()
    logits = memory.model(batch.images)
    assert not torch.allclose(logits, without[:1])
    torch.testing.assert_close(logits.float(), memory.reference_logits(batch))
    state = fakes.snapshot(memory.model)
    memory.cut_off(original)
    torch.testing.assert_close(original(images), without)
    assert fakes.same_bits(fakes.snapshot(memory.model), state)
    for layer in takers(original, last_linear_layer(plugin.blocks(original)[-1])):
        assert not layer.weight[:, own_channels(layer) :].any()


def test_what_a_row_sees_hangs_on_its_number_alone():
    few, many = draw(50, 64, 0.2, torch.device("cpu")), draw(5000, 64, 0.2, torch.device("cpu"))
    assert torch.equal(many[:50], few)
    assert not torch.equal(many[0], many[1])
    assert float(many.double().mean()) == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / many.numel()) ** 0.5)


def test_the_rows_are_set_while_a_batch_is_in_use_and_no_longer():
    model = fakes.small_net(4)
    tied = TiedDropout.half_of(takers(model, model[-1][-1]), 0.5, NUM, torch.device("cpu"))
    stream = fakes.FixedStream("everything", EVERYTHING, [])
    sgd = Sgd(model, replace(fakes.RECIPE, steps=2), torch.device("cpu"))
    rows = []

    def loss(logits, batch):
        rows.append(tied.rows_B.tolist())
        return cross_entropy(logits, batch)

    sgd.epoch(tied.following(stream), loss)  # the steps end within the pass
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tied.rows_B is None
    assert len(tied.following(stream)) == NUM


def test_the_stage_trains_the_method_s_originals_so_and_no_others():
    dataset, cpu = tiny_dataset(), torch.device("cpu")
    bench = Workbench(dataset, MemoryStore())
    spec = trial_spec(dataset, RemEtd(steps=6)).original
    model, _ = bench.original(spec)
    poisoned, data = bench.poisoned(spec.setting)
    again = build_model(spec.setting.model, poisoned, cpu, seed_for("initialise", spec.key)).train()
    tied = TiedDropout.half_of(takers(again, last_linear_layer(list(again.children())[-1])), 0.2, len(poisoned.labels), cpu)
    generator = torch.Generator().manual_seed(seed_for("batches", spec.key))
    found = torch.zeros(len(poisoned.labels), dtype=torch.bool)
    stream = RowStream(data.train, np.arange(len(poisoned.labels)), found, spec.setting.train.batch_size, generator)
    sgd = Sgd(again, spec.setting.train, cpu)
    while not sgd.done:
        sgd.epoch(tied.following(stream), cross_entropy)
    tied.settle()
    assert fakes.same_bits(fakes.snapshot(model), fakes.snapshot(again))
    assert not any(module._forward_pre_hooks for module in model.modules())
    ordinary = trial_spec(dataset, NoUnlearning()).original
    assert ordinary.key != spec.key
    assert ordinary.variant == ()
    record = bench.run_trial(trial_spec(dataset, RemEtd(steps=6)))
    assert record.ok, record.error


def test_a_row_sees_what_it_saw_in_training_also_where_a_part_of_the_deletion_set_is_held_out(monkeypatch):
    seen, on = [], TrainedMemory.on

    def noting(self, batch):
        on(self, batch)
        seen.append((batch, self.tied.rows_B, self.tied.drawn))

    monkeypatch.setattr(TrainedMemory, "on", noting)
    dataset = tiny_dataset()
    spec = trial_spec(dataset, RemEtd(steps=9), deletion_size=30, held_out=True, manipulation=Backdoor(size=30, target=1))
    record = Workbench(dataset, MemoryStore()).run_trial(spec)
    assert record.ok, record.error
    rows = torch.cat([batch.indices for batch, *_ in seen])
    assert int(rows.max()) >= len(rows.unique()), "a row beyond the number of samples that are left"
    for batch, chosen, tables in seen:
        rest = ~batch.in_deletion
        for width, table in tables.items():
            in_training = draw(len(dataset.train.labels), width, 0.2, torch.device("cpu"))
            assert torch.equal(table[chosen[rest]], in_training[batch.indices[rest]])


def test_of_an_original_whose_best_epoch_is_kept_that_one_is_settled(monkeypatch):
    scores, score = [], Keeper._score

    def noting(self, model):
        scores.append(score(self, model))
        return scores[-1]

    monkeypatch.setattr(Keeper, "_score", noting)
    dataset = tiny_dataset()
    bench = Workbench(dataset, MemoryStore())
    spec = trial_spec(dataset, RemEtd(steps=6), recipe=replace(RECIPE, steps=40, keep="best_on_test")).original
    model, _ = bench.original(spec)
    assert max(scores) > scores[-1], "the last is the best: the test would show little"
    poisoned, data = bench.poisoned(spec.setting)
    assert score(Keeper("best_on_test", poisoned, data, "fp32"), model) == max(scores)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"sharpness": 1}, "original_variant has 'sharpness', known is 'example_tied_dropout' alone"),
        ({"example_tied_dropout": 0.2, "more": 1}, "has 'example_tied_dropout', 'more', known is"),
        ({"example_tied_dropout": 20}, "example_tied_dropout is 20; a share is above 0 and at most 1"),
        ({"example_tied_dropout": "0.2"}, "is '0.2'; a share"),
    ],
)
def test_a_variant_that_is_no_dropout_is_refused_by_the_training_too(variant, message):
    dataset = tiny_dataset()
    spec = OriginalSpec(trial_spec(dataset, NoUnlearning()).original.setting, tuple(sorted(variant.items())))
    record = Workbench(dataset, MemoryStore()).run_original(spec)
    assert record.status == "failed"
    assert message in record.error
