"""Selective synaptic dampening: importances, the dampening rule, and the choice of alpha."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cu_ray.errors import FieldFault
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.methods._dampening import selection_threshold
from cu_ray.methods.ssd import Ssd
from tests.protocol import fakes, reference

SAMPLES = fakes.some_batches(40, [4, 4, 3])


def expected_importance(model, batches):
    """Mean over batches of the squared gradient of the batch-mean cross-entropy, with BatchNorm's running statistics."""
    state, names, total = reference.state_of(model), reference.parameter_names(), 0
    for batch in batches:
        found = reference.gradients(
            state,
            lambda working, batch=batch: reference.mean_cross_entropy(reference.forward(working, batch.images), batch.labels),
            names,
        )
        total = total + torch.cat([found[name].flatten() for name in names]) ** 2
    return total / len(batches)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 500])
def test_importances_follow_the_definition_at_every_batch_size(batch_size):
    model = fakes.small_net(4)
    computed = squared_gradient_importance(model, fakes.FixedStream("all", SAMPLES, []), batch_size)
    expected = expected_importance(model, fakes.resplit(SAMPLES, batch_size))
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-9)  # the derivative of CELU has a float32 constant


def test_importances_of_a_linear_model_in_numpy():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3).double())
    batches = fakes.some_batches(41, [5, 3], side=2)
    weight, bias = (each.detach().numpy() for each in model[1].parameters())
    total = np.zeros(15)
    for batch in batches:
        inputs = batch.images.flatten(1).numpy()
        scores = np.exp(inputs @ weight.T + bias)
        errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[batch.labels.numpy()]
        total += np.concatenate([(errors.T @ inputs / len(inputs)).ravel(), errors.mean(axis=0)]) ** 2
    stream = fakes.FixedStream("all", batches, [])
    computed = squared_gradient_importance(model, stream, 5)
    np.testing.assert_allclose(computed.numpy(), total / 2, rtol=1e-9)


def test_parameters_that_do_not_learn_or_are_not_used_have_no_importance():
    """And the others that which they would have anyway: SGD leaves such parameters alone, too."""
    model = fakes.small_net(4)
    stream = fakes.FixedStream("all", SAMPLES, [])
    expected = squared_gradient_importance(model, stream, 4)
    size = model[1][0].weight.numel()
    begin = sum(each.numel() for each in model[0].parameters())
    model[1][0].weight.requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    computed = squared_gradient_importance(model, stream, 4)
    expected[begin : begin + size] = 0
    torch.testing.assert_close(computed, torch.cat([torch.zeros(3, dtype=torch.float64), expected]))


def test_importances_depend_on_the_batch_size():
    model, stream = fakes.small_net(4), fakes.FixedStream("all", SAMPLES, [])
    by_size = [float(squared_gradient_importance(model, stream, size).sum()) for size in (1, 4, 11)]
    assert by_size[0] > 1.2 * by_size[1]
    assert by_size[1] > 1.2 * by_size[2]


def test_measuring_importance_uses_eval_mode_and_augmented_images_and_changes_nothing():
    model, log = fakes.small_net(4).train(), []
    before = fakes.snapshot(model)
    squared_gradient_importance(model, fakes.FixedStream("all", SAMPLES, log), 4)
    assert fakes.same_bits(fakes.snapshot(model), before)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [augment for _, _, augment in log] == [True] * 3


# ----------------------------------------------------------------------------------------------------------- dampening


def random_importances(num_parameters, seed=0):
    deletion, retain = torch.rand(2, num_parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deletion, retain = deletion**3, retain**3
    retain[::7] = 0  # never dampened to anything but 0
    deletion[::5] = 0  # matters not at all to the deletion set; both are 0 for some
    return {"deletion": deletion, "retain": retain}


def run(method, importances=None, **given):
    model = fakes.small_net(4)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    memo = importances or random_importances(num_parameters)
    task = fakes.FakeTask(model, memo=memo, **given)
    return task, method.unlearn(task), memo


def dampened(importances, alpha, lam):
    """The parameters after the rule, one by one, in the order of the model's parameters; and how many were selected."""
    state, position, selected = reference.state_of(fakes.small_net(4)), 0, 0
    for name in reference.parameter_names():
        flat = state[name].flatten()
        for element in range(len(flat)):
            forget, retain = (float(importances[kind][position]) for kind in ("deletion", "retain"))
            if forget > alpha * retain:
                flat[element] *= min(lam * retain / forget, 1.0)
                selected += 1
            position += 1
        state[name] = flat.view_as(state[name])
    return state, selected, position


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 5.0])
def test_the_dampening_rule_parameter_by_parameter(alpha, ratio):
    task, model, memo = run(Ssd(selection_share=None, selection_weight=alpha, relative_dampening=ratio))
    expected, selected, count = dampened(memo, alpha, ratio * alpha)
    fakes.assert_close(fakes.snapshot(model), expected, rtol=1e-12, atol=0)
    assert task.notes["selected_share"] == pytest.approx(selected / count)
    assert task.notes["selection_weight"] == alpha
    assert 0 < selected < count


def test_batch_norm_parameters_are_dampened_and_buffers_are_not():
    num_parameters = sum(parameter.numel() for parameter in fakes.small_net(4).parameters())
    everything = {"deletion": torch.full((num_parameters,), 4.0), "retain": torch.full((num_parameters,), 1.0)}
    _, model, _ = run(Ssd(selection_share=None, selection_weight=2.0, relative_dampening=0.5), everything)
    before = fakes.small_net(4).state_dict()
    for name, tensor in model.state_dict().items():
        factor = 0.25 if name in reference.parameter_names() else 1
        assert torch.equal(tensor, before[name] * factor), name


@pytest.mark.parametrize("ratio", [1.0, 1.5, 3.0, 10.0])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 7.0])
def test_relative_dampening_of_at_least_one_repeats_the_point_r_alpha_to_the_bit(alpha, ratio):
    _, first, _ = run(Ssd(selection_share=None, selection_weight=alpha, relative_dampening=ratio))
    _, second, _ = run(Ssd(selection_share=None, selection_weight=ratio * alpha, relative_dampening=1.0))
    assert fakes.same_bits(fakes.snapshot(first), fakes.snapshot(second))


def test_the_50_published_points_are_39_models():
    """On importances whose ratios lie everywhere between the published alphas, so that nothing else coincides."""
    num_parameters = sum(parameter.numel() for parameter in fakes.small_net(4).parameters())
    memo = {"deletion": torch.logspace(-3, 9, num_parameters, dtype=torch.float64), "retain": torch.ones(num_parameters)}
    alphas, ratios = (0.1, 1, 10, 50, 100, 500, 1e3, 1e4, 1e5, 1e6), (0.1, 0.5, 1, 5, 10)
    models = set()
    for alpha, ratio in itertools.product(alphas, ratios):
        _, model, _ = run(Ssd(selection_share=None, selection_weight=alpha, relative_dampening=ratio), memo)
        models.add(b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters()))
    assert len(models) == 39


@pytest.mark.parametrize("share", [0.01, 0.1, 0.35, 0.9])
def test_the_selection_share_takes_the_quantile_of_the_ratios(share):
    deletion, retain = torch.rand(2, 1001, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.01
    ratios = (deletion / retain).numpy()
    alpha = selection_threshold(deletion, retain, share)
    assert alpha == np.quantile(ratios, 1 - share, method="lower")
    assert int((ratios > alpha).sum()) == pytest.approx(share * 1001, abs=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("unknown", [0, 100])
def test_the_threshold_is_the_ratio_at_its_rank_to_the_bit_with_nan_as_the_largest(unknown, share, dtype):
    deletion, retain = torch.rand(2, 30_001, generator=torch.Generator().manual_seed(6), dtype=dtype) ** 4
    retain[::400], deletion[::6], deletion[1:unknown] = 0, 0, torch.nan
    ratios = torch.where(deletion == 0, 0, deletion / retain).sort().values
    expected = ratios[int((1 - share) * 30_000)]
    if expected.isinf():
        expected = ratios[-1] if unknown else ratios[~ratios.isinf()][-1]
    np.testing.assert_array_equal(selection_threshold(deletion, retain, share), float(expected))


def test_parameters_that_matter_to_neither_set_count_as_ratio_zero_and_only_to_deletion_as_infinite():
    deletion, retain = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    thresholds = [selection_threshold(deletion, retain, share) for share in (1.0, 0.75, 0.5, 0.25)]
    assert thresholds == [0.0, 0.0, 1.0, 2.0]


def test_a_share_is_the_same_as_its_recorded_alpha():
    by_share, first, memo = run(Ssd(selection_share=0.2, relative_dampening=0.3))
    alpha = by_share.notes["selection_weight"]
    _, second, _ = run(Ssd(selection_share=None, selection_weight=alpha, relative_dampening=0.3))
    assert fakes.same_bits(fakes.snapshot(first), fakes.snapshot(second))
    assert by_share.notes["selected_share"] == pytest.approx(0.2, abs=1.5 / len(memo["retain"]))


def test_exactly_one_of_share_and_weight_is_given():
    for both in ({"selection_share": 0.1, "selection_weight": 1.0}, {"selection_share": None, "selection_weight": None}):
        with pytest.raises(FieldFault):
            Ssd(**both)


def test_importances_are_taken_on_the_deletion_and_on_the_retain_set_and_used_in_their_places():
    deletion, retain = fakes.some_batches(42, [3, 2]), fakes.some_batches(43, [5, 5])
    model = fakes.small_net(4)
    task = fakes.FakeTask(model, deletion=deletion, retain=retain)
    method = Ssd(selection_share=None, selection_weight=0.9, relative_dampening=0.4, importance_batch_size=4)
    method.unlearn(task)
    expected = {
        name: expected_importance(fakes.small_net(4), fakes.resplit(batches, 4))
        for name, batches in (("deletion", deletion), ("retain", retain))
    }
    fakes.assert_close(fakes.snapshot(model), dampened(expected, 0.9, 0.36)[0], atol=1e-9)
    assert task.memo_calls == [("importances", {"importance_batch_size": 4})]
    assert {name for name, _, _ in task.log} == {"deletion", "retain"}


def test_the_memo_is_not_changed_and_depends_on_the_batch_size_alone():
    memo = random_importances(sum(parameter.numel() for parameter in fakes.small_net(4).parameters()))
    copies = {name: tensor.clone() for name, tensor in memo.items()}
    run(Ssd(selection_share=0.1, relative_dampening=0.5), memo)
    assert all(torch.equal(memo[name], copies[name]) for name in memo)
    assert Ssd.memo_fields == ("importance_batch_size",)
    assert Ssd().importance_batch_size == 512


def test_where_the_quantile_is_infinite_just_the_infinite_ratios_are_selected():
    deletion, retain = torch.ones(4), torch.tensor([0.0, 0.0, 1.0, 0.5])
    threshold = selection_threshold(deletion, retain, 0.25)
    assert threshold == 2
    assert (deletion > threshold * retain).tolist() == [True, True, False, False]
