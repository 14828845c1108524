"""Whole trials on a tiny data set: cost, privacy of the original, and results that depend on the trial alone."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from cu_ray import places
from cu_ray.errors import StoreFailed
from cu_ray.identity import seed_for
from cu_ray.learning.layers import train_only
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.methods import Method
from cu_ray.methods.bad_teaching import BadTeaching
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.scrub import Scrub
from cu_ray.methods.ssd import Ssd
from cu_ray.models import Model
from cu_ray.stages import pipeline, poison, warm
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.train import build_model
from cu_ray.types import Augmentation, Cost, OriginalSpec, Sizes
from tests.protocol import fakes, reference
from tests.protocol.tiny import RECIPE, MemoryStore, tiny_dataset, trial_spec

DATASET = tiny_dataset()
PLAIN = tiny_dataset(Augmentation())  # nothing is drawn but the order
COUNTED = {"forward": 0, "backward": 0}


class CountBackward(torch.autograd.Function):
    """Passes everything on and counts the images that come back."""

    @staticmethod
    def forward(ctx, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient):
        COUNTED["backward"] += len(gradient)
        return gradient


class Counting(torch.nn.Sequential):
    """Counts the images that come in."""

    def forward(self, images):
        COUNTED["forward"] += len(images)
        return CountBackward.apply(super().forward(images))


@dataclass(frozen=True)
class SmallNet(Model):
    """The net of the reference."""

    version: ClassVar[int] = 1

    def build(self, image_shape, num_classes):
        return Counting(*fakes.small_net(0, side=image_shape[0], num_classes=num_classes, dtype=torch.float32))

    def blocks(self, model):
        return list(model.children())

    def layers_per_block(self):
        return (1, 1, 1)


def on_small_net(spec, **recipe):
    setting = replace(spec.original.setting, model=SmallNet(), train=replace(RECIPE, **recipe))
    return replace(spec, original=OriginalSpec(setting))


@pytest.fixture(scope="module")
def store():
    """One store, so that originals are trained once."""
    return MemoryStore()


# ---------------------------------------------------------------------------------------------------------------- cost

# deletion set 9, retain set 51 = 16 + 16 + 16 + 3, training set 60 = 16 + 16 + 16 + 12
COSTS = {
    NoUnlearning(): Cost(0, 0),
    ExactUnlearning(steps=5): Cost(51 + 16, 51 + 16),
    ExactUnlearning(k=1): Cost(51 + 32, 51 + 32),  # six steps, as the original
    CatastrophicForgetting(k=2, steps=7): Cost(51 + 48, 51 + 48),
    BadTeaching(steps=6): Cost(3 * (60 + 32), 60 + 32),
    Scrub(steps=11, msteps=6): Cost(2 * (9 + 51 + 9 + 51 + 16), 9 + 51 + 9 + 51 + 16),
    Scrub(steps=11, msteps=5): Cost(2 * (9 + 51 + 51 + 32), 9 + 51 + 51 + 32),
    Scrub(steps=6, msteps=99): Cost(2 * (9 + 51 + 9), 9 + 51 + 9),
    Ssd(importance_batch_size=16): Cost(60, 60),
}


@pytest.mark.parametrize("method", COSTS, ids=repr)
def test_the_stated_cost_is_what_is_counted_and_what_a_hand_counts(method, store):
    sizes = Sizes(9, 51, 16, 6) if method.uses_deletion_set else Sizes(0, 60, 16, 6)
    assert method.cost(sizes) == COSTS[method]
    record = Workbench(DATASET, store).run_trial(trial_spec(DATASET, method))
    assert record.status == "ok", record.error
    assert Cost(record.facts["images_forward"], record.facts["images_backward"]) == COSTS[method]


@pytest.mark.parametrize("method", COSTS, ids=repr)
def test_the_meter_counts_what_the_model_itself_counts(method):
    bench, spec = Workbench(DATASET, MemoryStore()), on_small_net(trial_spec(DATASET, method))
    bench.original(spec.original)
    COUNTED.update(forward=0, backward=0)
    result = bench.unlearned(spec)
    assert result.cost == result.spent == Cost(**COUNTED) == COSTS[method]


def test_what_a_memo_saves_is_not_spent_but_still_costs():
    bench = Workbench(DATASET, MemoryStore())
    results = [bench.unlearned(trial_spec(DATASET, Ssd(selection_share=share))) for share in (0.1, 0.2)]
    assert [result.cost for result in results] == [Cost(60, 60)] * 2
    assert [result.spent for result in results] == [Cost(60, 60), Cost()]


@pytest.mark.parametrize("method", [ExactUnlearning(), BadTeaching(steps=6), Scrub(steps=11), Ssd()], ids=repr)
def test_the_held_out_part_costs_nothing(method, store):
    spec = trial_spec(DATASET, method, deletion_size=25, held_out=True, manipulation=Backdoor(size=40, target=1))
    result = Workbench(DATASET, store).unlearned(spec)
    assert result.cost == method.cost(Sizes(20, 35, 16, 6))


def test_choosing_on_the_test_set_is_not_counted_as_the_methods_cost(store):
    method = CatastrophicForgetting(steps=7)
    result = Workbench(DATASET, store).unlearned(trial_spec(DATASET, method, keep="best_on_test"))
    assert result.cost == method.cost(Sizes(9, 51, 16, 6))


# ----------------------------------------------------------------------------------------------- independence of trials

METHODS = [
    *(method for method in COSTS if method != Scrub(steps=6, msteps=99)),
    Ssd(selection_share=0.3, relative_dampening=0.5, importance_batch_size=16),  # shares the memo of the one before
]
SPECS = [trial_spec(DATASET, method) for method in METHODS] + [
    trial_spec(DATASET, Scrub(steps=7), deletion_size=4),
    trial_spec(DATASET, Ssd(selection_share=0.05), deletion_size=4),
    trial_spec(DATASET, BadTeaching(steps=3), seed=1),
    trial_spec(DATASET, ExactUnlearning(k=4, steps=3), manipulation=RandomLabelSwap(size=20)),
]


def result_of(bench, spec):
    """All that must repeat: scores, notes, cost, weights."""
    record = bench.run_trial(spec)
    assert record.status == "ok", record.error
    facts = {name: record.facts[name] for name in ("images_forward", "images_backward", "changed_share", "deletion_size")}
    return record.key, record.scores, record.notes, facts, fakes.snapshot(bench.unlearned(spec).model)


def assert_same(first, second):
    assert first[:4] == second[:4]
    assert fakes.same_bits(first[4], second[4])


@pytest.fixture(scope="module")
def results(store):
    """Every trial in a workbench of its own."""
    return {spec.key: result_of(Workbench(DATASET, store), spec) for spec in SPECS}


def test_a_trial_repeats_to_the_bit_in_a_fresh_workbench_with_an_empty_store(results):
    for spec in SPECS:
        assert_same(result_of(Workbench(DATASET, MemoryStore()), spec), results[spec.key])


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_neither_order_nor_what_is_cached_matters(order, results):
    specs = {
        "forwards": SPECS,
        "backwards": SPECS[::-1],
        "shuffled": [SPECS[index] for index in np.random.default_rng(0).permutation(len(SPECS))],
    }[order]
    bench = Workbench(DATASET, MemoryStore())
    for spec in specs:
        torch.manual_seed(len(order))  # nor does the global generator
        assert_same(result_of(bench, spec), results[spec.key])


def test_trials_leave_the_global_generators_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for spec in SPECS:
        Workbench(DATASET, MemoryStore()).run_trial(spec)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_original_stays_as_it_was(method, store):
    bench, spec = Workbench(DATASET, store), trial_spec(DATASET, method)
    original, _ = bench.original(spec.original)
    before = fakes.snapshot(original)
    result = bench.unlearned(spec)
    again, trained = bench.original(spec.original)
    assert again is original
    assert not trained
    assert result.model is not original
    assert fakes.same_bits(fakes.snapshot(original), before)
    assert not any(module.training for module in original.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in original.parameters())
    assert not original._forward_hooks
    unchanged = isinstance(method, NoUnlearning)
    assert fakes.same_bits(fakes.snapshot(result.model), before) == unchanged
    assert (result.changed_share == 0) == unchanged


class Shift(torch.nn.Module):
    """A parameter that is no layer's, as position embeddings are."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.randn(1))

    def reset_parameters(self):
        torch.nn.init.normal_(self.shift)

    def forward(self, images):
        return images + self.shift


@dataclass(frozen=True)
class ShiftedNet(SmallNet):
    def build(self, image_shape, num_classes):
        first, *others = super().build(image_shape, num_classes)
        return torch.nn.Sequential(torch.nn.Sequential(Shift(), first), *others)


def test_parameters_outside_any_layer_are_a_function_of_the_seed_too():
    spec, states = trial_spec(DATASET, NoUnlearning()), []
    spec = replace(spec, original=OriginalSpec(replace(spec.original.setting, model=ShiftedNet())))
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        states.append(fakes.snapshot(Workbench(DATASET, MemoryStore()).original(spec.original)[0]))
    assert fakes.same_bits(*states)


@dataclass(frozen=True)
class DroppingNet(SmallNet):
    """Its dropout, which lies between blocks, draws from the generator that a process shares."""

    def build(self, image_shape, num_classes):
        first, *others = super().build(image_shape, num_classes)
        return torch.nn.Sequential(first, torch.nn.Dropout(0.5), *others)

    def blocks(self, model):
        return [each for each in model.children() if not isinstance(each, torch.nn.Dropout)]


@pytest.mark.parametrize("method", [ExactUnlearning(steps=3), Scrub(steps=3, msteps=1)], ids=lambda method: type(method).__name__)
def test_dropout_is_a_function_of_the_trial(method):
    """Not of the process that runs it, nor of the trials that ran there before."""
    states = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        spec = trial_spec(DATASET, method)
        spec = replace(spec, original=OriginalSpec(replace(spec.original.setting, model=DroppingNet())))
        bench = Workbench(DATASET, MemoryStore())
        states.append([fakes.snapshot(bench.original(spec.original)[0]), fakes.snapshot(bench.unlearned(spec).model)])
        assert torch.equal(torch.get_rng_state(), before)
    assert all(fakes.same_bits(*pair) for pair in zip(*states, strict=True))


def test_retraining_all_layers_trains_what_lies_between_them_as_the_original_was_trained():
    model = DroppingNet().build((12, 12, 1), 4)
    train_only(model, DroppingNet().blocks(model))
    assert all(module.training for module in model.modules())
    train_only(model, DroppingNet().blocks(model)[1:])
    modes = [module.training for module in model.children()]
    assert modes == [False, False, *[True] * (len(modes) - 2)]


def test_an_unlearned_model_is_in_eval_mode(store):
    for spec in SPECS:
        assert not any(module.training for module in Workbench(DATASET, store).unlearned(spec).model.modules())


def test_another_seed_is_another_original_and_another_set(store):
    bench, specs = Workbench(DATASET, store), [trial_spec(DATASET, NoUnlearning(), seed=seed) for seed in (0, 1)]
    first, second = (bench.original(spec.original)[0] for spec in specs)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    sets = [bench.poisoned(spec.original.setting)[0].corruption.indices.tolist() for spec in specs]
    assert sets[0] != sets[1]


# ----------------------------------------------------------------------------------------------- what a method is given

SEEN = {}


@dataclass(frozen=True)
class Probe(Method):
    """Looks at all that it is given."""

    version: ClassVar[int] = 1

    def unlearn(self, task):
        for name in ("retain", "deletion", "everything"):
            batches = list(getattr(task, name).epoch())
            for field in ("indices", "labels", "in_deletion"):
                SEEN[f"{name} {field}"] = torch.cat([getattr(batch, field) for batch in batches]).tolist()
        models = [task.fresh(), task.fresh()]
        SEEN["fresh"] = [fakes.snapshot(model) for model in models]
        SEEN["training"] = [module.training for model in [task.original, *models] for module in model.modules()]
        return task.original

    def cost(self, sizes):
        return Cost()


def probed(store, **spec):
    SEEN.clear()
    bench = Workbench(DATASET, store)
    spec = trial_spec(DATASET, Probe(), **spec)
    bench.unlearned(spec)
    return bench, spec


@pytest.mark.parametrize(
    ("manipulation", "size", "held_out", "given"),
    [
        (Backdoor(size=15, target=1), 9, False, 9),
        (RandomLabelSwap(size=40), 40, True, 32),
        (RandomLabelSwap(size=40), 20, True, 20),
    ],
)
def test_a_method_sees_the_deletion_set_and_the_rest_with_labels_as_given(manipulation, size, held_out, given, store):
    bench, spec = probed(store, manipulation=manipulation, deletion_size=size, held_out=held_out)
    poisoned, _ = bench.poisoned(spec.original.setting)
    deletion, retain, everything = (set(SEEN[f"{name} indices"]) for name in ("deletion", "retain", "everything"))
    assert deletion <= set(poisoned.corruption.indices.tolist())
    assert (len(deletion), len(retain)) == (given, 60 - size)
    assert not deletion & retain
    assert everything == deletion | retain
    for name in ("retain", "deletion", "everything"):
        rows = SEEN[f"{name} indices"]
        assert len(rows) == len(set(rows))
        assert SEEN[f"{name} labels"] == poisoned.labels[rows].tolist()
        assert SEEN[f"{name} in_deletion"] == [row in deletion for row in rows]


def test_fresh_models_are_new_each_time_in_eval_mode_and_the_same_again(store):
    probed(store)
    first = SEEN["fresh"]
    assert not fakes.same_bits(*first)
    assert not any(SEEN["training"])
    probed(MemoryStore())
    assert all(fakes.same_bits(before, after) for before, after in zip(first, SEEN["fresh"], strict=True))


@dataclass(frozen=True)
class Decays(Method):
    """Lets weight decay alone work on the original."""

    version: ClassVar[int] = 1
    steps: int | None = None
    lr: float | None = None

    def unlearn(self, task):
        sgd = task.sgd(task.original, steps=self.steps, lr=self.lr)
        while not sgd.done:
            sgd.epoch(task.everything, lambda logits, batch: (logits * 0).sum())
        SEEN["steps"] = sgd.num_steps
        return task.original


@pytest.mark.parametrize(("given", "used"), [(0.5, 0.5), (None, 0.05)])
def test_an_optimisation_takes_the_rate_that_is_given_and_else_the_original_ones(given, used, store):
    spec = trial_spec(DATASET, Decays(steps=1, lr=given), recipe=replace(RECIPE, weight_decay=0.1))
    bench = Workbench(DATASET, store)
    before, after = fakes.snapshot(bench.original(spec.original)[0]), bench.unlearned(spec).model
    for name, parameter in after.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - used * 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("given", "made"), [(2, 2), (9, 9), (None, 6)])
def test_an_optimisation_makes_the_steps_that_are_given_and_else_the_original_ones(given, made, store):
    Workbench(DATASET, store).unlearned(trial_spec(DATASET, Decays(steps=given)))
    assert SEEN["steps"] == made


# ------------------------------------------------------------------------------------- a whole trial against definitions


def normalised(poisoned, rows):
    """The training images of these rows in float64, normalised, the manipulated ones with the patch."""
    images = (PLAIN.train.pixels[rows][..., 0] / 255 - 0.4) / 0.3
    peak = ((PLAIN.train.pixels / 255 - 0.4) / 0.3).max()
    for image, row in zip(images, rows, strict=True):
        if row in poisoned.corruption.indices:
            image[9:, 9:] = peak
    return torch.from_numpy(images)[:, None], torch.from_numpy(poisoned.labels[rows])


def loss_on(images, labels, learning):
    return lambda state: reference.mean_cross_entropy(reference.forward(state, images, learning), labels)


def test_an_original_is_trained_on_all_manipulated_data_by_the_recipe():
    """With one batch an epoch, where order does not matter."""
    spec = on_small_net(trial_spec(PLAIN, NoUnlearning()), steps=5, batch_size=60, lr=0.1, weight_decay=0.01).original
    bench = Workbench(PLAIN, MemoryStore())
    model, trained = bench.original(spec)
    assert trained
    poisoned, data = bench.poisoned(spec.setting)
    start = reference.state_of(build_model(SmallNet(), poisoned, data.device, seed_for("initialise", spec.key)))
    loss = loss_on(*normalised(poisoned, np.arange(60)), (0, 1))
    expected = reference.descend(start, [loss] * 5, lr=0.1, num_steps=5, momentum=0.9, weight_decay=0.01)[-1]
    fakes.assert_close(fakes.snapshot(model), expected, rtol=1e-4, atol=1e-4)
    moved = torch.linalg.vector_norm(expected["2.1.weight"] - start["2.1.weight"])
    assert moved > 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_importances_of_a_trial_are_of_the_original_in_fp32_whatever_the_precision(precision):
    store = MemoryStore()
    spec = on_small_net(trial_spec(PLAIN, Ssd(selection_share=0.1)), precision=precision)
    bench = Workbench(PLAIN, store)
    result = bench.unlearned(spec)
    ((arrays, _),) = [entry for (kind, _), entry in store.entries.items() if kind == "memos"]
    poisoned, _ = bench.poisoned(spec.original.setting)
    state, names = reference.state_of(bench.original(spec.original)[0]), reference.parameter_names()
    # which rows were found: those that a probe of the same deletion set sees
    SEEN.clear()
    bench.unlearned(replace(spec, method=Probe()))
    for name in ("deletion", "retain"):
        rows = np.sort(SEEN[f"{name} indices"])
        found = reference.gradients(dict(state), loss_on(*normalised(poisoned, rows), ()), names)
        expected = torch.cat([found[each].flatten() for each in names]) ** 2
        # far closer than bfloat16's 8 bits would come
        torch.testing.assert_close(torch.from_numpy(arrays[name]).double(), expected, rtol=2e-3, atol=1e-7)
    ratios = arrays["deletion"] / arrays["retain"]
    alpha = result.notes["selection_weight"]
    assert result.notes["selected_share"] == pytest.approx((ratios > alpha).mean(), abs=1.5 / len(ratios))


def test_a_metric_that_is_no_number_is_a_failed_trial_and_never_a_score(monkeypatch, store):
    monkeypatch.setattr("cu_ray.metrics.acc_corr.AccCorr.measure", lambda self, outcome: float("nan"))
    record = Workbench(DATASET, store).run_trial(trial_spec(DATASET, METHODS[0]))
    assert record.status == "failed"
    assert "acc_corr gave nan" in record.error
    assert record.scores == {}


def test_a_worker_makes_room_before_it_takes_in_more(monkeypatch, store):
    monkeypatch.setitem(warm.KEPT, "data", 2)
    on_device, at_once = weakref.WeakSet(), []

    def upload(poisoned, device, like):
        data = poison.upload(poisoned, device, like)
        on_device.add(data)
        at_once.append(len(on_device))
        return data

    monkeypatch.setattr(pipeline, "upload", upload)
    bench = Workbench(DATASET, store)
    for seed in (0, 1, 2, 3, 3, 2, 0):
        bench.poisoned(trial_spec(DATASET, METHODS[0], seed=seed).original.setting)
    assert at_once == [1, 2, 2, 2, 2]


class SlowStore(MemoryStore):
    """Takes half a second for a memo, as one far away."""

    def load(self, kind, key):
        """An entry, in its time."""
        time.sleep(0.5 if kind == "memos" else 0)
        return super().load(kind, key)

    def save(self, kind, key, tensors, metadata):
        """Kept, in its time."""
        time.sleep(0.5 if kind == "memos" else 0)
        super().save(kind, key, tensors, metadata)


def test_what_a_trial_takes_alone_does_not_depend_on_where_memos_are_kept_nor_on_who_made_them():
    store, spec = SlowStore(), trial_spec(DATASET, Ssd(selection_share=0.1))
    Workbench(DATASET, MemoryStore()).run_trial(spec)  # warmed up
    for least in (1.0, 0.5):  # the first looks for the memo and keeps it, the second finds it
        facts = Workbench(DATASET, store).run_trial(spec).facts
        assert facts["unlearn_seconds_spent"] >= least
        assert facts["unlearn_seconds"] < 0.4


class FullStore(MemoryStore):
    """Has no room for entries of one kind, for as many tries."""

    def __init__(self, kind, tries=99):
        super().__init__()
        self._kind, self._tries = kind, tries

    def save(self, kind, key, tensors, metadata):
        """Kept, or not."""
        if kind == self._kind and self._tries:
            self._tries -= 1
            raise StoreFailed("runtime.storage: No space left on device")
        super().save(kind, key, tensors, metadata)


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr(places.time, "sleep", waited.append)
    return waited


def test_an_original_that_can_be_kept_after_a_moment_is_trained_once(pauses, store):
    spec = trial_spec(DATASET, METHODS[0])
    expected = Workbench(DATASET, store).run_trial(spec)
    assert Workbench(DATASET, FullStore("originals", tries=len(pipeline.PAUSES))).run_trial(spec).scores == expected.scores
    assert pauses == list(pipeline.PAUSES)


def test_an_original_that_cannot_be_kept_is_nobodys_failure(pauses):
    record = Workbench(DATASET, FullStore("originals")).run_trial(trial_spec(DATASET, METHODS[0]))
    assert record.status == "failed"
    assert record.facts["store_failed"]
    assert record.error == "StoreFailed: runtime.storage: No space left on device"


def test_a_memo_that_cannot_be_kept_is_computed_again_by_others_and_changes_nothing(store):
    spec = trial_spec(DATASET, Ssd(selection_share=0.05))
    expected = Workbench(DATASET, store).run_trial(spec)
    bench = Workbench(DATASET, FullStore("memos"))
    assert bench.run_trial(spec).scores == expected.scores
    again = bench.run_trial(trial_spec(DATASET, Ssd(selection_share=0.1)))
    assert again.ok
    assert again.facts["images_forward_spent"] == 0, "it is still at hand here"


def test_a_row_says_how_much_of_the_deletion_set_the_original_had_learned(store):
    """The same as a method that changes nothing leaves; of each deletion set its own; null where there is none."""
    bench, found = Workbench(DATASET, store), {}
    setting = {"manipulation": RandomLabelSwap(40), "recipe": replace(RECIPE, steps=30)}
    for size, held_out in ((9, False), (25, False), (25, True), (9, False)):
        methods = Ssd(selection_share=None, selection_weight=1e30), CatastrophicForgetting(steps=30, lr=0.5)
        specs = [trial_spec(DATASET, method, deletion_size=size, held_out=held_out, **setting) for method in methods]
        records = [bench.run_trial(spec) for spec in specs]
        assert records[0].scores["deletion_given"] == records[0].scores["deletion_given_before"]
        assert records[0].scores["deletion_given_before"] == records[1].scores["deletion_given_before"]
        assert found.setdefault((size, held_out), records[1].scores) == records[1].scores
    assert any(scores["deletion_given"] != scores["deletion_given_before"] for scores in found.values())
    assert len({scores["deletion_given_before"] for scores in found.values()}) > 1
    assert bench.run_trial(trial_spec(DATASET, NoUnlearning())).scores["deletion_given_before"] is None
