"""Bad teaching, update by update: which teacher speaks where, and how the divergence is averaged."""

from __future__ import annotations

import pytest
import torch

from cu_ray.methods.bad_teaching import BadTeaching
from tests.protocol import fakes, reference

EVERYTHING = fakes.some_batches(20, [5, 5, 3])
STEPS, LR = 7, 0.4


def run():
    random_teacher = fakes.small_net(9)
    task = fakes.FakeTask(fakes.small_net(4), everything=EVERYTHING, fresh=random_teacher)
    return task, random_teacher, BadTeaching(steps=STEPS, lr=LR).unlearn(task)


def expected_states():
    good, bad = reference.state_of(fakes.small_net(4)), reference.state_of(fakes.small_net(9))

    def loss_on(batch):
        def loss(state):
            logits = reference.forward(state, batch.images, (0, 1))
            taught = [reference.forward(dict(teacher), batch.images) for teacher in (good, bad)]
            target = torch.stack([taught[int(found)][row] for row, found in enumerate(batch.in_deletion)])
            return reference.summed_divergence(target, logits) / (len(batch) * fakes.NUM_CLASSES)

        return loss

    losses = [loss_on(EVERYTHING[step % 3]) for step in range(STEPS)]
    return reference.descend(good, losses, lr=LR, num_steps=STEPS, momentum=0.9, weight_decay=0.05)


def test_the_batches_hold_samples_of_both_kinds():
    for batch in EVERYTHING:
        assert 0 < int(batch.in_deletion.sum()) < len(batch)


def test_every_update_follows_the_definition():
    task, _, model = run()
    expected = expected_states()
    for computed, state in zip(task.states, expected, strict=True):
        fakes.assert_close(computed, state)
    fakes.assert_close(fakes.snapshot(model), expected[-1])


def test_the_stream_is_the_whole_training_set_and_the_student_is_in_train_mode():
    task, _, _ = run()
    assert {name for name, _, _ in task.log} == {"everything"}
    assert all(all(modes.values()) for modes in task.sgds[0].modes)
    assert task.offers == 3


def test_the_random_teacher_stays_as_it_is_in_eval_mode_and_gets_no_gradient():
    _, teacher, model = run()
    assert fakes.same_bits(fakes.snapshot(teacher), fakes.snapshot(fakes.small_net(9)))
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model is not teacher


def test_a_teacher_given_in_train_mode_is_used_in_eval_mode():
    """What a task hands out is in eval mode; the definition holds whatever the mode was."""
    teacher = fakes.small_net(9).train()
    task = fakes.FakeTask(fakes.small_net(4).train(), everything=EVERYTHING, fresh=teacher)
    BadTeaching(steps=STEPS, lr=LR).unlearn(task)
    fakes.assert_close(task.states[-1], expected_states()[-1])


@pytest.mark.parametrize(("given", "used"), [(None, fakes.RECIPE.lr), (0.01, 0.01)])
def test_the_rate_is_the_original_ones_unless_given(given, used):
    task = fakes.FakeTask(fakes.small_net(4), everything=EVERYTHING, fresh=fakes.small_net(9))
    BadTeaching(steps=2, lr=given).unlearn(task)
    assert task.sgds[0].recipe.lr == used
    assert BadTeaching().steps == 1000
