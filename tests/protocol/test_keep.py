"""`keep: best_on_test`: the best model offered is kept, and looking at models costs the method nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.stages.pipeline import Workbench
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
