"""SCRUB, update by update: signs, temperature, order of passes, one optimiser."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from cu_ray.methods.scrub import Scrub
from tests.protocol import fakes, reference

DELETION, RETAIN = fakes.some_batches(10, [3, 2]), fakes.some_batches(11, [4, 4, 3])


def expected_states(original, order, *, alpha, temperature, lr, num_steps):
    """The states after each step; the order names the passes' batches, like D0 R1."""
    teacher = reference.state_of(original)

    def loss_on(kind, number):
        batch = (DELETION if kind == "D" else RETAIN)[number]

        def loss(state):
            logits = reference.forward(state, batch.images, (0, 1))
            teacher_logits = reference.forward(dict(teacher), batch.images)
            divergence = reference.summed_divergence(teacher_logits / temperature, logits / temperature) / len(batch)
            value = reference.mean_cross_entropy(logits, batch.labels) + alpha * temperature**2 * divergence
            return -value if kind == "D" else value

        return loss

    losses = [loss_on(step[0], int(step[1])) for step in order.split()]
    recipe = fakes.RECIPE
    return reference.descend(
        teacher, losses, lr=lr, num_steps=num_steps, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def run(method):
    task = fakes.FakeTask(fakes.small_net(4), retain=RETAIN, deletion=DELETION)
    return task, method.unlearn(task)


PASS = "D0 D1 R0 R1 R2"


@pytest.mark.parametrize(
    ("msteps", "steps", "order"),
    [
        (6, 12, f"{PASS} {PASS} R0 R1"),  # after 5 steps still below 6: ascent again; after 10 not
        (5, 9, f"{PASS} R0 R1 R2 R0"),  # 5 steps are not below 5
        (1, 6, f"{PASS} R0"),  # a pass that has begun is a full pass
        (0, 4, "R0 R1 R2 R0"),
        (100, 6, f"{PASS} D0"),  # the steps end within an ascent
    ],
)
def test_every_update_follows_the_definition(msteps, steps, order):
    method = Scrub(alpha=0.7, msteps=msteps, steps=steps, lr=0.05, temperature=4.0)
    task, model = run(method)
    taken = [f"{name[0].upper()}{number}" for name, number, _ in task.log]
    assert " ".join(taken[:steps]) == order  # a batch that is fetched after the last step is not used
    expected = expected_states(fakes.small_net(4), order, alpha=0.7, temperature=4.0, lr=0.05, num_steps=steps)
    assert len(task.states) == steps
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)
    fakes.assert_close(fakes.snapshot(model), expected[-1])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_another_temperature_follows_the_definition_too(temperature):
    task, _ = run(Scrub(alpha=2.0, msteps=1, steps=5, lr=0.02, temperature=temperature))
    expected = expected_states(fakes.small_net(4), PASS, alpha=2.0, temperature=temperature, lr=0.02, num_steps=5)
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)


@pytest.mark.parametrize("alpha", [0.0, 50.0])
def test_an_ascent_raises_cross_entropy_and_divergence_both(alpha):
    """Almost alone the one, almost alone the other: each is larger after a short step on its batch."""
    method, (batch, *_) = Scrub(alpha=alpha, msteps=1, steps=1, lr=1e-5), DELETION
    task, _ = run(method)
    teacher, losses = reference.state_of(fakes.small_net(4)), []
    for state in (teacher, task.states[0]):
        logits = reference.forward(dict(state), batch.images, (0, 1))
        divergence = reference.summed_divergence(reference.forward(dict(teacher), batch.images) / 4, logits / 4)
        losses.append(reference.mean_cross_entropy(logits, batch.labels) if alpha == 0 else divergence)
    assert float(losses[1] - losses[0]) > 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_sums_over_classes_averages_over_the_batch_and_has_t_squared(temperature):
    generator = torch.Generator().manual_seed(6)
    student, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).unbind()
    total = 0.0
    for row in range(5):
        p = [math.exp(float(z) / temperature) for z in teacher[row]]
        q = [math.exp(float(z) / temperature) for z in student[row]]
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    computed = Scrub(temperature=temperature).divergence(student, teacher)
    assert float(computed) == pytest.approx(temperature**2 * total / 5, rel=1e-9)


def test_batch_norm_is_in_train_mode_in_ascent_and_descent_and_counts_each_step():
    original = fakes.small_net(4)
    task, _ = run(Scrub(msteps=1, steps=5, lr=0.01))
    assert all(all(modes.values()) for modes in task.sgds[0].modes)
    assert [int(state["0.1.num_batches_tracked"]) for state in task.states] == [1, 2, 3, 4, 5]
    means = [original.state_dict()["0.1.running_mean"], *(state["0.1.running_mean"] for state in task.states)]
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(means))


def test_one_optimiser_one_schedule_and_an_offer_after_every_pass_over_the_retain_set():
    task, _ = run(Scrub(msteps=6, steps=12, lr=0.05))
    assert len(task.sgds) == 1
    assert (task.sgds[0].recipe.steps, task.sgds[0].recipe.lr) == (12, 0.05)
    assert task.offers == 3


def test_the_published_values_are_the_defaults():
    method = Scrub()
    assert (method.lr, method.msteps, method.steps, method.temperature) == (0.0025, 100, 1000, 4.0)
