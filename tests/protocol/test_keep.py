"""`keep: best_on_test`: the best model offered is kept, and looking at models costs the method nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.stages.pipeline import Workbench
from tests.protocol import fakes
from tests.protocol.tiny import RECIPE, MemoryStore, tiny_dataset, trial_spec

DATASET = tiny_dataset()


def test_keeping_the_best_counts_no_further_images():
    last = trial_spec(DATASET, CatastrophicForgetting(steps=5))
    bench = Workbench(DATASET, MemoryStore())
    costs = [bench.unlearned(spec).cost for spec in (last, replace(last, keep="best_on_test"))]
    assert costs[0] == costs[1]


@dataclass(frozen=True)
class GetsWorse(NoUnlearning):
    """Offers the original, then a model with all weights 0, and returns that."""

    summary: ClassVar[str] = "gets worse"

    def unlearn(self, task):
        task.offer(task.original)
        with torch.no_grad():
            for parameter in task.original.parameters():
                parameter.zero_()
        task.offer(task.original)
        return task.original


@pytest.mark.parametrize(("keep", "zero"), [("last", True), ("best_on_test", False)])
def test_the_best_offered_is_kept_or_the_last(keep, zero):
    bench = Workbench(DATASET, MemoryStore())
    spec = trial_spec(DATASET, GetsWorse(), keep=keep, recipe=replace(RECIPE, steps=80))
    parameters = list(bench.unlearned(spec).model.parameters())
    original, _ = bench.original(spec.original)
    assert all(not parameter.any() for parameter in parameters) == zero
    assert all(map(torch.equal, parameters, original.parameters())) != zero


class Observed:
    """Stands for the predictions on the test set: notes each model that is looked at, and scores them as told."""

    seen: ClassVar[list] = []
    told: ClassVar[list] = []

    def __init__(self, model, poisoned, data, precision):
        self.seen.append(fakes.snapshot(model))

    def metrics(self, counted):
        assert counted.all()  # the whole test set, not one of its halves
        return dict(zip(("acc_corr", "acc_retain"), self.told[len(self.seen) - 1], strict=True))


@pytest.fixture
def observed(monkeypatch):
    Observed.seen.clear()
    Observed.told[:] = [(0.9, 0.1), (0.5, 0.8), (0.1, 0.95), (0.5, 0.8)]
    monkeypatch.setattr("cu_ray.stages.evaluate.TestPredictions", Observed)
    return Observed


SHORT = replace(RECIPE, steps=4, batch_size=60)  # an epoch is one step


def test_the_best_original_by_the_mean_of_both_accuracies_is_kept_with_its_statistics_the_first_of_equals(observed):
    bench, spec = (
        Workbench(DATASET, MemoryStore()),
        trial_spec(DATASET, NoUnlearning(), recipe=replace(SHORT, keep="best_on_test")),
    )
    original = fakes.snapshot(bench.original(spec.original)[0])
    assert len(observed.seen) == 4
    assert fakes.same_bits(original, observed.seen[1])
    assert not any(fakes.same_bits(original, other) for other in (observed.seen[0], *observed.seen[2:]))


def test_what_is_kept_of_the_original_and_of_a_method_are_two_choices(observed):
    """And a trial starts from the kept original, whether it was trained just now or lay in the store."""
    store, method = MemoryStore(), CatastrophicForgetting(steps=4)
    last, best = (trial_spec(DATASET, method, recipe=replace(SHORT, keep=keep)) for keep in ("last", "best_on_test"))
    results = [fakes.snapshot(Workbench(DATASET, store).unlearned(best).model) for _ in range(2)]
    assert len(observed.seen) == 4  # of the original alone, which was trained once
    assert fakes.same_bits(*results)
    observed.seen.clear()
    kept = fakes.snapshot(Workbench(DATASET, store).unlearned(replace(last, keep="best_on_test")).model)
    assert len(observed.seen) == 4  # of the method alone
    assert fakes.same_bits(kept, observed.seen[1])
