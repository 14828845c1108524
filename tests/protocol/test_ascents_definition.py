"""Gradient ascent, NPO, relabelling, SalUn and Cognac, update by update."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cu_ray.methods.cognac import Cognac
from cu_ray.methods.gradient_ascent import GradientAscent
from cu_ray.methods.npo import Npo, negative_preference
from cu_ray.methods.relabelling import Relabelling
from cu_ray.methods.salun import Salun, holder, in_turns
from tests.protocol import fakes, reference

DELETION, RETAIN = fakes.some_batches(20, [3, 2], in_deletion=True), fakes.some_batches(21, [4, 4, 3], in_deletion=False)
LEARNING = (0, 1)  # the blocks whose BatchNorm learns from the batch


def run(method, **given):
    task = fakes.FakeTask(fakes.small_net(4), **{"retain": RETAIN, "deletion": DELETION, **given})
    return task, method.unlearn(task)


def expected_states(losses, *, lr, num_steps):
    recipe = fakes.RECIPE
    start = reference.state_of(fakes.small_net(4))
    return reference.descend(
        start, losses, lr=lr, num_steps=num_steps, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def assert_follows(task, expected):
    assert len(task.states) == len(expected)
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)


def cross_entropy_on(batch, labels=None, learning=()):
    return lambda state: reference.mean_cross_entropy(
        reference.forward(state, batch.images, learning), batch.labels if labels is None else labels
    )


# --------------------------------------------------------------------------------------------------- gradient ascent, NPO


def test_gradient_ascent_raises_the_cross_entropy_of_the_deletion_set_alone():
    task, _ = run(GradientAscent(lr=0.05, steps=5), retain=())
    losses = [lambda state, batch=batch: -cross_entropy_on(batch)(state) for batch in [*DELETION, *DELETION, DELETION[0]]]
    assert_follows(task, expected_states(losses, lr=0.05, num_steps=5))


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_npo_descends_its_loss_with_the_original_as_reference(beta):
    original = reference.state_of(fakes.small_net(4))

    def loss_on(batch):
        def loss(state):
            logs, before = (
                reference.log_probabilities(reference.forward(dict(each), batch.images)) for each in (state, original)
            )
            total = 0
            for row, label in enumerate(batch.labels):
                difference = logs[row, int(label)] - before[row, int(label)]
                total = total + torch.log(1 / (1 + torch.exp(beta * difference)))
            return -2 / beta * total / len(batch)

        return loss

    task, _ = run(Npo(beta=beta, lr=0.3, steps=4), retain=())
    assert_follows(task, expected_states([loss_on(batch) for batch in [*DELETION, *DELETION]], lr=0.3, num_steps=4))


def test_npo_starts_as_an_ascent_and_fades_where_the_label_is_forgotten():
    """By hand: p = 1/2 and 1/4 under the original; equal models give (2 / beta) log 2."""
    same = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64))
    assert float(negative_preference(same, same, torch.tensor([0, 0]), 2.0)) == pytest.approx(math.log(2))
    forgotten = torch.log(torch.tensor([[1e-9, 1 - 1e-9]], dtype=torch.float64))
    assert float(negative_preference(forgotten, same[:1], torch.tensor([0]), 2.0)) == pytest.approx(0, abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- relabelling


def whole_training_set():
    """Two batches whose rows are numbered through; what is in the deletion set comes in a third and fourth, in other order."""
    mixed = [replace(batch, indices=torch.arange(4) + 4 * n) for n, batch in enumerate(fakes.some_batches(22, [4, 4]))]
    whole = [torch.cat([getattr(batch, name) for batch in mixed]) for name in ("images", "labels", "indices", "in_deletion")]
    found = [each[whole[3]].flip(0) for each in whole]
    assert 2 < len(found[1]) < 8
    return mixed, [type(mixed[0])(*(each[rows] for each in found)) for rows in (slice(0, 2), slice(2, None))]


def test_relabelling_gives_the_deletion_set_the_originals_second_choice():
    everything, deletion = whole_training_set()
    original, corrected = reference.state_of(fakes.small_net(4)), []
    for batch in everything:
        logits = reference.forward(dict(original), batch.images)
        labels = []
        for row, given in enumerate(batch.labels.tolist()):
            others = [label for label in range(fakes.NUM_CLASSES) if label != given]
            best = max(others, key=lambda label: float(logits[row, label]))
            labels.append(best if batch.in_deletion[row] else given)
        corrected.append(torch.tensor(labels))
    losses = [cross_entropy_on(everything[n % 2], corrected[n % 2], LEARNING) for n in range(5)]
    task, _ = run(Relabelling(lr=0.1, steps=5), everything=everything, deletion=deletion, retain=())
    assert_follows(task, expected_states(losses, lr=0.1, num_steps=5))
    assert [augment for name, _, augment in task.log if name == "deletion"] == [False, False]


# ----------------------------------------------------------------------------------------------------------------- SalUn


def expected_saliency():
    names, total = reference.parameter_names(), 0
    for batch in DELETION:
        found = reference.gradients(reference.state_of(fakes.small_net(4)), cross_entropy_on(batch), names)
        total = total + torch.cat([found[name].flatten() for name in names])
    return total.abs()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_salun_moves_the_most_salient_parameters_and_holds_the_others(share):
    labels, draws = torch.Generator().manual_seed(0), []

    def random_labels(batch):
        draws.append(torch.randint(fakes.NUM_CLASSES, batch.labels.shape, generator=labels))
        return draws[-1]

    saliency = expected_saliency()
    moved = saliency >= saliency.sort(descending=True).values[round(share * len(saliency)) - 1]
    state, names = reference.state_of(fakes.small_net(4)), reference.parameter_names()
    parts = dict(zip(names, moved.split([state[name].numel() for name in names]), strict=True))
    velocity = {name: torch.zeros_like(state[name]) for name in names}
    expected = []
    turn = [(DELETION[0], True), (DELETION[1], True), *((batch, False) for batch in RETAIN)]
    for step, (batch, random) in enumerate([*turn, *turn[:2]]):
        loss = cross_entropy_on(batch, random_labels(batch) if random else None, LEARNING)
        found = reference.gradients(state, loss, names)
        for name in names:
            velocity[name] = fakes.RECIPE.momentum * velocity[name] + found[name] + fakes.RECIPE.weight_decay * state[name]
            change = -0.05 * reference.rate_factor(step, 7) * velocity[name]
            state[name] = state[name] + torch.where(parts[name].view_as(change), change, 0)
        expected.append(dict(state))
    task, model = run(Salun(share=share, lr=0.05, steps=7))
    fakes.assert_close(fakes.snapshot(model), expected[-1])
    assert task.memo_calls == [("saliency", {})]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("moved_P", [torch.arange(128) % 3 == 0, torch.arange(128) % 3 != 0, torch.ones(128) == 1])
def test_held_weights_are_what_they_were_and_moved_ones_what_they_became_to_the_bit(moved_P, dtype):
    odd = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max, torch.finfo(dtype).tiny, -0.1], dtype=dtype
    )
    before, after = odd.repeat(8), odd.repeat_interleave(8)
    parameters = [torch.nn.Parameter(before.clone()), torch.nn.Parameter(before.view(2, 2, 4, 4).clone())]
    parameters[1].data = parameters[1].data.to(memory_format=torch.channels_last)
    hold = holder(parameters, moved_P)
    for _ in range(2):
        for parameter in parameters:
            parameter.data.copy_(after.view_as(parameter))
        hold()
        for parameter, moved in zip(parameters, moved_P.split(64), strict=True):
            assert torch.equal(bits(parameter.detach()).flatten(), torch.where(moved, bits(after), bits(before)))


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def test_salun_counts_the_images_of_its_turns():
    assert in_turns((5, 11), 7, 4) == 5 + 11 + 5  # 2 + 3 + 2 steps
    assert in_turns((5, 11), 3, 4) == 5 + 4


# ---------------------------------------------------------------------------------------------------------------- Cognac


def test_cognac_ascends_and_descends_by_turns_with_a_momentum_each():
    teacher, names, recipe = reference.state_of(fakes.small_net(4)), reference.parameter_names(), fakes.RECIPE

    def descent_on(batch):
        def loss(state):
            logits = reference.forward(state, batch.images, LEARNING)
            divergence = reference.summed_divergence(reference.forward(dict(teacher), batch.images), logits) / len(batch)
            return reference.mean_cross_entropy(logits, batch.labels) + 0.6 * divergence

        return loss

    state, velocities = dict(teacher), {kind: {name: torch.zeros_like(teacher[name]) for name in names} for kind in "ad"}
    for step in range(4):
        down = DELETION[step % 2], RETAIN[step % 3]
        for kind, lr, loss in (
            ("a", 0.02, lambda state, batch=down[0]: -cross_entropy_on(batch)(state)),
            ("d", 0.1, descent_on(down[1])),
        ):
            found, velocity = reference.gradients(state, loss, names), velocities[kind]
            for name in names:
                velocity[name] = recipe.momentum * velocity[name] + found[name] + recipe.weight_decay * state[name]
                state[name] = state[name] - lr * reference.rate_factor(step, 4) * velocity[name]
    task, model = run(Cognac(ascent_lr=0.02, lr=0.1, distillation=0.6, steps=4))
    fakes.assert_close(fakes.snapshot(model), state)
    assert [sgd.recipe.lr for sgd in task.sgds] == [0.02, 0.1]
