"""The learning-rate schedule and the update rule, step by step."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cu_ray.errors import ContractBroken, Diverged
from cu_ray.learning.sgd import Momentum, Sgd, cross_entropy, images_seen, learning_rate_factor
from cu_ray.types import Batch, TrainRecipe
from tests.protocol import fakes, reference

CPU = torch.device("cpu")


class OneWeight(torch.nn.Module):
    """A model whose every logit is its one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, images):
        return self.weight.expand(len(images), 1)


def run_all_steps(sgd, stream, loss):
    while not sgd.done:
        sgd.epoch(stream, loss)


@pytest.mark.parametrize("num_steps", [1, 10, 99, 100, 101, 250, 4000])
def test_each_step_moves_by_the_published_rate(num_steps):
    model = OneWeight()
    recipe = TrainRecipe(steps=num_steps, lr=0.025, momentum=0.0, weight_decay=0.0, precision="fp32")
    stream, seen = fakes.FixedStream("all", fakes.some_batches(0, [2] * 7), []), []

    def loss(logits, batch):
        seen.append(model.weight.item())
        return logits.mean()  # its gradient is 1

    run_all_steps(Sgd(model, recipe, CPU), stream, loss)
    moves = -np.diff([*seen, model.weight.item()]) / 0.025
    warm_up = num_steps // 100
    expected = [(t + 1) / (warm_up + 1) if t < warm_up else 1 - (t - warm_up) / (1.25 * num_steps) for t in range(num_steps)]
    np.testing.assert_allclose(moves, expected, rtol=1e-9)


def test_there_is_no_step_after_the_last():
    """The schedule's line would go on below 0, and up the loss."""
    model = OneWeight()
    sgd = Sgd(model, TrainRecipe(steps=4, precision="fp32"), CPU)
    batch = fakes.some_batches(0, [2])[0]
    for _ in range(4):
        sgd.step(batch, lambda logits, batch: logits.mean())
    before = model.weight.item()
    with pytest.raises(ContractBroken, match="all 4 steps are made: ask `done` before each"):
        sgd.step(batch, lambda logits, batch: logits.mean())
    assert model.weight.item() == before


def test_the_rate_peaks_after_the_warm_up_and_ends_near_a_fifth():
    factors = [learning_rate_factor(step, 4000) for step in range(4000)]
    assert factors[0] == pytest.approx(1 / 41)
    assert factors[39] == pytest.approx(40 / 41)
    assert factors.index(max(factors)) == 40
    assert factors[40] == 1.0
    assert factors[-1] == pytest.approx(1 - 3959 / 5000)
    assert [learning_rate_factor(step, 99) for step in (0, 98)] == pytest.approx([1.0, 1 - 98 / 123.75])


@pytest.mark.parametrize("num_steps", [1, 3, 4, 7, 12])
def test_n_steps_are_exactly_n_optimiser_steps(num_steps):
    model, calls = OneWeight(), []
    sgd = Sgd(model, TrainRecipe(steps=num_steps, precision="fp32"), CPU)
    stream = fakes.FixedStream("all", fakes.some_batches(0, [3, 3, 2]), [])

    def loss(logits, batch):
        calls.append(len(batch))
        return logits.mean()

    run_all_steps(sgd, stream, loss)
    assert sgd.num_steps == num_steps
    assert calls == ([3, 3, 2] * num_steps)[:num_steps]  # the partial batch is kept
    before = model.weight.item()
    sgd.epoch(stream, loss)
    assert len(calls) == num_steps
    assert model.weight.item() == before


def test_momentum_and_weight_decay_follow_the_update_rule_on_a_linear_model():
    """With gradients written out: dW = mean over the batch of (p - onehot) x, in NumPy."""
    model = torch.nn.Linear(4, 3).double()
    batches = fakes.some_batches(3, [5, 5, 2], channels=1, side=2)
    weight, bias = (each.detach().numpy().copy() for each in (model.weight, model.bias))
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    recipe = TrainRecipe(steps=6, lr=0.3, momentum=0.9, weight_decay=0.1, precision="fp32")
    sgd = Sgd(torch.nn.Sequential(torch.nn.Flatten(), model), recipe, CPU)
    for step in range(6):
        batch = batches[step % 3]
        inputs = batch.images.flatten(1).numpy()
        scores = np.exp(inputs @ weight.T + bias)
        errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[batch.labels.numpy()]
        velocity_w = 0.9 * velocity_w + errors.T @ inputs / len(inputs) + 0.1 * weight
        velocity_b = 0.9 * velocity_b + errors.mean(axis=0) + 0.1 * bias
        rate = 0.3 * (1 - step / 7.5)
        weight, bias = weight - rate * velocity_w, bias - rate * velocity_b
        sgd.step(batch, cross_entropy)
        np.testing.assert_allclose(model.weight.detach(), weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.bias.detach(), bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_weights_in_halves_and_slices_of_others_move_as_by_torch(kind, momentum):
    recipe = TrainRecipe(steps=3, lr=0.1, momentum=momentum, weight_decay=0.01, precision="fp32")
    models, images = [], torch.randn(8, 40, generator=torch.Generator().manual_seed(1)).to(kind)
    for _ in range(2):
        torch.manual_seed(0)
        layer = torch.nn.Linear(40, 40, bias=False)
        layer.weight = torch.nn.Parameter(torch.randn(50, 80).to(kind)[:40, ::2])
        models.append(layer)
    ours = Momentum(models[0], recipe, CPU, fused=False)
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=momentum, weight_decay=0.01, foreach=True)
    start = models[0].weight.detach().clone()
    for _ in range(3):
        for model, optimiser in zip(models, (ours, theirs), strict=True):
            optimiser.zero_grad()
            model(images).float().square().mean().backward()
            optimiser.step()
    assert torch.equal(models[0].weight, models[1].weight)
    assert not torch.equal(models[0].weight, start)


def test_of_parameters_some_of_which_have_no_gradient_each_has_its_own_velocity():
    models, recipe = [], TrainRecipe(steps=4, lr=0.1, momentum=0.9, weight_decay=0.01, precision="fp32")
    for _ in range(2):
        torch.manual_seed(0)
        models.append(torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3)))
    ours = Momentum(models[0], recipe, CPU, fused=False)
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        for layers, optimiser in zip(models, (ours, theirs), strict=True):
            optimiser.zero_grad()
            (layers[2] if step % 2 else layers[1])(torch.ones(2, 3)).square().sum().backward()
            optimiser.step()
    for given, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_that_lie_in_memory_in_another_order_move_as_all_do(momentum):
    """The update is made on the memory as it lies."""
    torch.manual_seed(0)
    model, images = torch.nn.Conv2d(3, 4, 2).double(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = torch.nn.Sequential(copy.deepcopy(model).to(memory_format=layout), torch.nn.Flatten())
        sgd = Sgd(network, TrainRecipe(steps=9, lr=0.1, momentum=momentum, precision="fp32"), CPU)
        for _ in range(3):
            batch = Batch(images.to(memory_format=layout), torch.arange(5), torch.arange(5), torch.zeros(5, dtype=torch.bool))
            sgd.step(batch, lambda logits, batch: logits.square().mean())
        assert network[0].weight.is_contiguous(memory_format=layout)
        moved.append([parameter.detach() for parameter in network.parameters()])
    for given, expected in zip(*moved, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-7)  # losses are of 32 bits


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_without_any_gradient_moves_nothing(fused):
    model = OneWeight()
    optimiser = Momentum(model, TrainRecipe(steps=1, precision="fp32"), CPU, fused=fused)
    optimiser.step()
    assert model.weight.item() == 0


def test_training_imports_nothing_of_torch_compile():
    """It is .7 s and 74 MB of each worker."""
    program = """
import sys
from cu_ray.methods.scrub import Scrub
from cu_ray.stages.pipeline import Workbench
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

dataset = tiny_dataset()
record = Workbench(dataset, MemoryStore()).run_trial(trial_spec(dataset, Scrub(steps=9)))
assert record.ok, record.error
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=300)


def test_all_parameters_decay_and_statistics_move_in_a_net_with_batch_norm():
    model, batches = fakes.small_net(1).train(), fakes.some_batches(2, [6, 6, 3])
    sgd = fakes.NotingSgd(model, replace(fakes.RECIPE, steps=7), CPU)
    start = reference.state_of(model)
    run_all_steps(sgd, fakes.FixedStream("all", batches, []), cross_entropy)

    def loss_on(batch):
        return lambda state: reference.mean_cross_entropy(reference.forward(state, batch.images, (0, 1)), batch.labels)

    losses = [loss_on(batches[step % 3]) for step in range(7)]
    expected = reference.descend(start, losses, lr=0.2, num_steps=7, momentum=0.9, weight_decay=0.05)
    for computed, state in zip(sgd.states, expected, strict=True):
        fakes.assert_close(computed, state)


def test_without_gradient_every_parameter_shrinks_by_weight_decay_alone():
    model = fakes.small_net(1)
    before = fakes.snapshot(model)
    sgd = Sgd(model, TrainRecipe(steps=1, lr=0.5, momentum=0.9, weight_decay=0.2, precision="fp32"), CPU)
    (batch,) = fakes.some_batches(0, [2])
    sgd.step(batch, lambda logits, batch: (logits * 0).sum())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.5 * 0.2), rtol=1e-12, atol=0)


def test_the_loss_sees_float32_logits_and_frozen_parameters_stay():
    model = fakes.small_net(1)
    model[0].requires_grad_(False)
    before, kinds = fakes.snapshot(model), []

    def loss(logits, batch):
        kinds.append(logits.dtype)
        return cross_entropy(logits, batch)

    Sgd(model, fakes.RECIPE, CPU).step(fakes.some_batches(0, [4])[0], loss)
    assert kinds == [torch.float32]
    changed = {name for name, tensor in fakes.snapshot(model).items() if not torch.equal(tensor, before[name])}
    assert changed == set(reference.parameter_names((1, 2)))


def test_cross_entropy_is_the_batch_mean_against_given_labels():
    (batch,) = fakes.some_batches(5, [7])
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(cross_entropy(logits, batch)) == pytest.approx(
        float(reference.mean_cross_entropy(logits, batch.labels)), rel=1e-12
    )


def test_a_loss_that_is_not_finite_is_diverged():
    sgd = Sgd(OneWeight(), TrainRecipe(steps=3, precision="fp32"), CPU)
    with pytest.raises(Diverged):
        sgd.epoch(fakes.FixedStream("all", fakes.some_batches(0, [2]), []), lambda logits, batch: logits.mean() * math.nan)


def many_batches(count):
    """A long epoch of one small batch again and again."""
    return fakes.FixedStream("all", fakes.some_batches(0, [2]) * count, [])


@pytest.mark.parametrize("first_bad_step", [0, 1, 99, 100, 250, 998])
def test_in_a_long_epoch_divergence_is_noticed_within_a_hundred_steps(first_bad_step):
    sgd = Sgd(OneWeight(), TrainRecipe(steps=10_000, precision="fp32"), CPU)

    def loss(logits, batch):
        return logits.mean() * (math.nan if sgd.num_steps == first_bad_step else 1.0)

    with pytest.raises(Diverged, match=r"the loss was nan at step \d+"):
        sgd.epoch(many_batches(2000), loss)
    assert 0 < sgd.num_steps - first_bad_step <= 100


def test_the_loss_is_looked_at_once_in_a_hundred_steps_and_at_the_end_of_an_epoch(monkeypatch):
    """Each look makes the host wait for the device."""
    looks, isfinite = [], torch.isfinite
    sgd = Sgd(OneWeight(), TrainRecipe(steps=700, precision="fp32"), CPU)
    monkeypatch.setattr("cu_ray.learning.sgd.torch.isfinite", lambda value: looks.append(sgd.num_steps) or isfinite(value))
    run_all_steps(sgd, many_batches(330), lambda logits, batch: logits.mean())
    assert looks == [100, 200, 300, 330, 400, 500, 600, 660, 700, 700]


# ----------------------------------------------------------------------------------- fp16: loss scaling, as far as a CPU can


def test_in_fp16_a_step_whose_gradients_overflow_is_left_out_and_still_counts():
    """velocity 1, then 0.9 + 1: the step between has moved neither weight nor velocity, but the schedule."""
    model, (batch,) = OneWeight(), fakes.some_batches(0, [2])
    sgd = Sgd(model, TrainRecipe(steps=4, lr=0.5, momentum=0.9, weight_decay=0.0, precision="fp16"), CPU)
    weights = []
    for gradient in (1.0, 1e35, 1.0):  # times the scale, 2**16, it is more than float32 holds
        sgd.step(batch, lambda logits, batch, gradient=gradient: logits.mean() * gradient)
        weights.append(model.weight.item())
    assert weights == pytest.approx([-0.5, -0.5, -0.5 - 0.5 * (1 - 2 / 5) * 1.9], rel=1e-6)
    assert sgd.num_steps == 3
    sgd = Sgd(OneWeight(), TrainRecipe(steps=4, precision="fp32"), CPU)
    sgd.step(batch, lambda logits, batch: logits.mean() * 1e35)
    assert sgd._model.weight.item() == pytest.approx(-0.025 * 1e35)  # nothing is scaled or left out in other precisions


def test_in_fp16_gradients_that_it_could_not_hold_are_scaled_and_back():
    model, (batch,) = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 1)), fakes.some_batches(0, [2])
    before, tiny, kinds = model[1].bias.item(), 1e-9, []  # the least number of fp16 is 6e-8
    recipe = TrainRecipe(steps=9, lr=1e6, momentum=0.0, weight_decay=0.0, precision="fp16")
    model.register_forward_hook(lambda _, args, output: kinds.append(output.dtype))
    Sgd(model, recipe, CPU).step(replace(batch, images=batch.images.float()), lambda logits, batch: logits.mean() * tiny)
    assert model[1].bias.item() - before == pytest.approx(-1e6 * tiny, rel=1e-3)
    assert kinds == [torch.float16]


@pytest.mark.parametrize("num_images", [1, 4, 5, 12, 13])
@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_images_seen_counts_what_a_loop_over_batches_would(num_images, steps):
    sizes = [min(4, num_images - start) for start in range(0, num_images, 4)]
    assert images_seen(num_images, steps, 4) == sum((sizes * steps)[:steps])


def test_the_published_recipe_is_the_default():
    recipe = TrainRecipe()
    assert (recipe.steps, recipe.lr, recipe.batch_size) == (4000, 0.025, 512)
    assert (recipe.momentum, recipe.weight_decay, recipe.keep) == (0.9, 5e-4, "last")
