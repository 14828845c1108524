"""Recorded steps give what plain ones give: the same bits and counts. What may not be recorded is not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from cu_ray.learning.graphs import MOST_KINDS, WARM_UPS, repeats
from cu_ray.learning.layers import initialise
from cu_ray.learning.meter import Meter
from cu_ray.learning.sgd import cross_entropy
from tests.learning.recording import FURTHER, METHODS, PlainSgd, RecordedSgd, trained, unlearned
from tests.protocol import fakes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(RecordedSgd, "made", [])
    monkeypatch.setattr(RecordedSgd, "how", {})


def replays():
    return sum(sgd.recorder.replays for sgd in RecordedSgd.made)


def recordings():
    return sum(sgd.recorder.recordings for sgd in RecordedSgd.made)


def some(seed, size=4):
    return fakes.some_batches(seed, [size])[0]


def both(steps, *, prepare=lambda model: None):
    """The states after `steps(sgd, model)` of the plain loop and of the one that records."""
    states = []
    for kind in (PlainSgd, RecordedSgd):
        model = fakes.small_net(1).train()
        prepare(model)
        steps(kind(model, replace(fakes.RECIPE, steps=1000), CPU), model)
        states.append(fakes.snapshot(model))
    return states


# ---------------------------------------------------------------------------------------------- the same numbers and counts


def test_training_has_the_same_bits_and_counts():
    plain, recorded = trained(PlainSgd), trained(RecordedSgd)
    assert replays() > 0
    assert fakes.same_bits(plain.state, recorded.state)
    assert plain.cost == recorded.cost


@pytest.mark.parametrize("method", (METHODS | FURTHER).values(), ids=METHODS | FURTHER)
def test_methods_have_the_same_bits_and_counts(method):
    plain, recorded = unlearned(method, PlainSgd), unlearned(method, RecordedSgd)
    assert all(sgd.recorder.replays > 0 for sgd in RecordedSgd.made)
    assert replays() >= 12, "of 24 steps: all but the first of each kind"
    assert fakes.same_bits(plain.state, recorded.state)
    assert plain.cost == recorded.cost


def test_each_replay_reads_its_own_batch_and_rate_and_leaves_loss_and_gradients():
    def steps(sgd, model):
        for number in range(8):
            sgd.step(some(number), cross_entropy)
            seen.append((float(sgd._last_loss), [each.grad.clone() for each in model.parameters()]))

    seen = []
    plain, recorded = both(steps)
    assert fakes.same_bits(plain, recorded)
    assert replays() == 8 - WARM_UPS
    for (loss, gradients), (other_loss, others) in zip(seen[:8], seen[8:], strict=True):
        assert loss == other_loss
        assert all(map(torch.equal, gradients, others))


@pytest.mark.parametrize("how", [{}, {"fault": RuntimeError("operation not permitted")}], ids=["recorded", "failed to record"])
def test_steps_in_fp16_are_recorded_too_and_those_that_overflow_are_left_out(monkeypatch, how):
    overflowing = (1, WARM_UPS + 2)

    @repeats
    def loss(logits, batch):
        return cross_entropy(logits, batch) * (1 + 1e35 * batch.in_deletion.sum())

    def outcome(kind):
        model = fakes.small_net(1, dtype=torch.float32).train()
        sgd, seen = kind(model, replace(fakes.RECIPE, precision="fp16"), CPU), []
        for number in range(8):
            before = [each.clone() for each in model.parameters()]
            batch = fakes.some_batches(number, [4], in_deletion=number in overflowing)[0]
            sgd.step(replace(batch, images=batch.images.float()), loss)
            changed = not all(map(torch.equal, before, model.parameters()))
            seen.append((changed, sgd._scaler.get_scale(), sgd._scaler._get_growth_tracker(), float(sgd._last_loss)))
        return seen, fakes.snapshot(model)

    monkeypatch.setattr(RecordedSgd, "how", how)
    (plain, state), (recorded, other) = map(outcome, (PlainSgd, RecordedSgd))
    assert plain == recorded
    assert [changed for changed, *_ in plain] == [number not in overflowing for number in range(8)]
    assert all(math.isfinite(loss) for *_, loss in plain)
    assert [scale for _, scale, *_ in plain] == [65536.0] + 4 * [32768.0] + 3 * [16384.0]
    assert fakes.same_bits(state, other)
    assert replays() == (0 if how else 8 - WARM_UPS)


def test_each_loss_and_each_size_is_recorded_by_itself():
    @repeats
    def negative(logits, batch):
        return -cross_entropy(logits, batch)

    def steps(sgd, model):
        for number in range(8):
            for loss, size in ((cross_entropy, 4), (negative, 4), (cross_entropy, 3)):
                sgd.step(some(number, size), loss)

    plain, recorded = both(steps)
    assert fakes.same_bits(plain, recorded)
    assert (recordings(), replays()) == (3, 3 * (8 - WARM_UPS))


def test_no_more_than_a_few_kinds_of_steps_are_recorded():
    def steps(sgd, model):
        for number in range(2 * MOST_KINDS):
            for again in range(8):
                sgd.step(some(again, 2 + number), cross_entropy)

    plain, recorded = both(steps)
    assert fakes.same_bits(plain, recorded)
    assert recordings() == MOST_KINDS


# --------------------------------------------------------------------------------------- what changes between two steps


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.eval(),
        lambda model: model[0].requires_grad_(False),
        lambda model: model[1].__setitem__(0, fakes.small_net(9)[1][0]),
        lambda model: initialise([model[2]], 5),
        lambda model: [each.data.mul_(0.5) for each in model.parameters()],
        lambda model: setattr(model[2][1].weight, "data", model[2][1].weight.data.clone()),
        lambda model: model.load_state_dict(fakes.small_net(7).state_dict()),
        lambda model: model[0].register_forward_hook(lambda _, args, output: output * 2),
        lambda model: model.append(torch.nn.CELU()),
        lambda model: setattr(model[0][1], "momentum", 0.5),
        lambda model: setattr(model[2], "forward", lambda inputs, own=model[2].forward: own(inputs) * 2),
    ],
    ids=[
        "modes",
        "freezing",
        "another module",
        "new weights",
        "weights in place",
        "weights elsewhere",
        "loaded",
        "a hook",
        "one more",
        "a setting",
        "a forward function",
    ],
)
def test_what_a_method_changes_between_two_steps_is_seen(change):
    def steps(sgd, model):
        for number in range(14):
            if number == 6:
                change(model)
            sgd.step(some(number), cross_entropy)

    plain, recorded = both(steps)
    assert fakes.same_bits(plain, recorded)
    assert replays() > 0


# ------------------------------------------------------------------------------------------------------------ what is plain


def test_a_loss_that_promises_nothing_is_called_at_each_step():
    calls = []

    def steps(sgd, model):
        def loss(logits, batch):
            calls.append(sgd.num_steps)
            return cross_entropy(logits, batch) * (1 + sgd.num_steps)

        for number in range(8):
            sgd.step(some(number), loss)

    plain, recorded = both(steps)
    assert fakes.same_bits(plain, recorded)
    assert calls == 2 * list(range(8))
    assert recordings() == 0


class Unsteady(torch.nn.Module):
    """Does something else each time."""

    def forward(self, inputs):
        return inputs * random.random()


@repeats
class Steady(torch.nn.Module):
    """Keeps its promise."""

    def forward(self, inputs):
        return inputs * 2


@pytest.mark.parametrize(
    ("prepare", "recorded"),
    [
        (lambda model: None, True),
        (lambda model: model.append(Steady()), True),
        (Meter().watch, True),
        (lambda model: model.append(Unsteady()), False),
        (lambda model: model[0].register_forward_hook(lambda *given: None), False),
        (lambda model: model[0].register_forward_pre_hook(lambda *given: None), False),
        (lambda model: setattr(model[2], "forward", model[2].forward), False),
    ],
    ids=["torch's modules", "promised", "a meter", "not promised", "a hook", "a hook before", "another forward"],
)
def test_models_are_recorded_where_all_their_parts_repeat(prepare, recorded):
    model = fakes.small_net(1).train()
    prepare(model)
    sgd = RecordedSgd(model, fakes.RECIPE, CPU)
    for number in range(8):
        sgd.step(some(number), cross_entropy)
    assert (recordings() > 0) == recorded


def test_images_that_ask_for_gradients_get_them():
    sgd = RecordedSgd(fakes.small_net(1).train(), fakes.RECIPE, CPU)
    for number in range(8):
        batch = some(number)
        batch.images.requires_grad_()
        sgd.step(batch, cross_entropy)
        assert batch.images.grad.abs().sum() > 0


@pytest.mark.parametrize("how", [{"can_be_recorded": False}, {"fault": RuntimeError("operation not permitted")}])
def test_where_recording_cannot_be_or_fails_all_goes_on_plainly_and_it_is_not_tried_again(monkeypatch, how):
    monkeypatch.setattr(RecordedSgd, "how", how)
    plain, recorded = (unlearned(METHODS["SCRUB"], kind) for kind in (PlainSgd, RecordedSgd))
    assert fakes.same_bits(plain.state, recorded.state)
    assert plain.cost == recorded.cost
    assert (recordings(), replays()) == (int("fault" in how), 0)


def test_a_fault_of_the_loss_itself_is_raised():
    batches, calls = [some(number) for number in range(8)], []

    @repeats
    def loss(logits, batch):
        calls.append(1)
        if len(calls) > WARM_UPS:
            raise ValueError("not this one")
        return cross_entropy(logits, batch)

    sgd = RecordedSgd(fakes.small_net(1).train(), fakes.RECIPE, CPU)
    with pytest.raises(ValueError, match="not this one"):
        for batch in batches:
            sgd.step(batch, loss)
    assert sgd.num_steps == WARM_UPS
