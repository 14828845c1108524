"""EU-k and CF-k: what is re-initialised, what is frozen, and every update."""

from __future__ import annotations

import itertools

import pytest
import torch

from cu_ray.errors import FieldFault
from cu_ray.learning.layers import initialise, last_layers, num_weight_layers, train_only
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.models.resnet9 import ResNet9
from tests.protocol import fakes, reference

RETAIN = fakes.some_batches(30, [4, 4, 2])
STEPS, LR = 6, 0.2
LAYERS_OF_SMALL_NET = {1: (2,), 2: (1, 2), 3: (0, 1, 2), None: (0, 1, 2)}  # k to blocks
BLOCKS_OF_RESNET9 = {1: 1, 2: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, None: 7}  # k to the number of blocks at the output


def run(method):
    task = fakes.FakeTask(fakes.small_net(4), retain=RETAIN)
    return task, method.unlearn(task)


def expected_states(start, blocks):
    def loss_on(batch):
        return lambda state: reference.mean_cross_entropy(reference.forward(state, batch.images, blocks), batch.labels)

    losses = [loss_on(RETAIN[step % 3]) for step in range(STEPS)]
    return reference.descend(start, losses, lr=LR, num_steps=STEPS, momentum=0.9, weight_decay=0.05, blocks=blocks)


@pytest.mark.parametrize("k", [1, 2, 3, None])
def test_every_update_of_cf_k_follows_the_definition(k):
    task, model = run(CatastrophicForgetting(k=k, steps=STEPS, lr=LR))
    expected = expected_states(reference.state_of(fakes.small_net(4)), LAYERS_OF_SMALL_NET[k])
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)
    fakes.assert_close(fakes.snapshot(model), expected[-1])
    assert task.reinitialised == []


@pytest.mark.parametrize("k", [1, 2, 3, None])
def test_every_update_of_eu_k_follows_the_definition_from_new_weights(k):
    task, model = run(ExactUnlearning(k=k, steps=STEPS, lr=LR))
    start = {name: tensor.clone() for name, tensor in task.after_reinitialising.items()}
    expected = expected_states(start, LAYERS_OF_SMALL_NET[k])
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)
    fakes.assert_close(fakes.snapshot(model), expected[-1])


@pytest.mark.parametrize("k", [1, 2, 3, None])
@pytest.mark.parametrize("method", [ExactUnlearning, CatastrophicForgetting])
def test_only_the_retain_set_is_seen_and_frozen_blocks_are_in_eval_mode_to_the_bit(method, k):
    task, _ = run(method(k=k, steps=STEPS, lr=LR))
    assert {name for name, _, _ in task.log} == {"retain"}
    trained, before = LAYERS_OF_SMALL_NET[k], fakes.snapshot(fakes.small_net(4))
    for modes, state in zip(task.sgds[0].modes, task.states, strict=True):
        for block in range(3):
            assert all(mode == (block in trained) for name, mode in modes.items() if name.startswith(str(block)))
        for name, tensor in state.items():
            assert torch.equal(tensor, before[name]) == (int(name[0]) not in trained), name
    assert task.offers == 2


def test_eu_k_takes_steps_and_rate_of_the_original_by_default_and_cf_k_a_thousand_steps():
    task, _ = run(ExactUnlearning())
    assert (task.sgds[0].recipe.steps, task.sgds[0].recipe.lr) == (fakes.RECIPE.steps, fakes.RECIPE.lr)
    task, _ = run(CatastrophicForgetting(steps=2))
    assert task.sgds[0].recipe.lr == fakes.RECIPE.lr
    assert CatastrophicForgetting().steps == 1000


# ------------------------------------------------------------------------------------------------------------ ResNet-9


def small_resnet9():
    model = ResNet9(width=2).build((12, 12, 1), 4)
    initialise([model], seed=7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)  # away from every initial value
    return model.eval()


@pytest.mark.parametrize(("k", "num_blocks"), BLOCKS_OF_RESNET9.items())
def test_the_last_k_layers_of_resnet9_are_these_blocks(k, num_blocks):
    blocks = ResNet9().blocks(small_resnet9())
    assert last_layers(blocks, k) == blocks[7 - num_blocks :]
    ExactUnlearning(k=k).check(ResNet9().layers_per_block())
    CatastrophicForgetting(k=k).check(ResNet9().layers_per_block())


@pytest.mark.parametrize("k", [3, 6, 10, 100])
@pytest.mark.parametrize("method", [ExactUnlearning, CatastrophicForgetting])
def test_a_k_that_splits_a_block_of_resnet9_is_refused(method, k):
    with pytest.raises(FieldFault, match="1, 2, 4, 5, 7, 8, 9, or null"):
        method(k=k).check(ResNet9().layers_per_block())
    with pytest.raises(ValueError, match=str(k)):
        last_layers(ResNet9().blocks(small_resnet9()), k)


@pytest.mark.parametrize(("k", "num_blocks"), BLOCKS_OF_RESNET9.items())
def test_eu_k_gives_exactly_the_last_blocks_of_resnet9_new_weights(k, num_blocks):
    model = small_resnet9()
    before = fakes.snapshot(model)
    images = fakes.some_batches(1, [4], channels=1, side=12)
    task = fakes.FakeTask(model.double(), retain=images)
    ExactUnlearning(k=k, steps=1).unlearn(task)
    renewed = task.after_reinitialising
    for name, tensor in renewed.items():
        new = int(name.split(".")[0]) >= 7 - num_blocks
        assert torch.equal(tensor.to(before[name].dtype), before[name]) != new, name
        if new and name.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert torch.count_nonzero(tensor) == 0, name
        if new and (name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1)):
            assert torch.equal(tensor, torch.ones_like(tensor)), name


def test_layers_are_counted_as_convolutions_and_linear_layers():
    model = small_resnet9()
    counts = [num_weight_layers(block) for block in ResNet9().blocks(model)]
    assert tuple(counts) == ResNet9().layers_per_block()
    assert list(itertools.accumulate(reversed(counts))) == [1, 2, 4, 5, 7, 8, 9]
    assert num_weight_layers(model) == 9


def test_train_only_undoes_what_was_trained_before():
    model = fakes.small_net(1).train()
    train_only(model, [model[2]])
    assert [module.training for module in model] == [False, False, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 8 + [True] * 2


# ------------------------------------------------------------------------------------------------------ initialisation


def test_initialisation_is_pytorchs_default_with_bias_zero():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 5), torch.nn.BatchNorm2d(40), torch.nn.Linear(300, 50))
    initialise([model], seed=3)
    for layer, fan_in in ((model[0], 75), (model[2], 300)):
        bound = fan_in**-0.5  # uniform in +-1 / sqrt(fan in)
        weights = layer.weight.detach()
        assert 0.98 * bound < float(weights.abs().max()) <= bound
        assert float(weights.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert torch.count_nonzero(layer.bias) == 0


def test_initialisation_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    states = []
    for seed, global_seed in ((3, 0), (3, 99), (4, 0)):
        model = fakes.small_net(0)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        initialise([model], seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(fakes.snapshot(model))
    assert fakes.same_bits(states[0], states[1])
    assert not torch.equal(states[0]["0.0.weight"], states[2]["0.0.weight"])
