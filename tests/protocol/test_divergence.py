"""A model with a weight or a statistic that is not finite is `diverged`: a row with its reason, never a score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.plugins import name_of
from cu_ray.stages.pipeline import Workbench
from tests.protocol.tiny import RECIPE, MemoryStore, tiny_dataset, trial_spec

DATASET = tiny_dataset()


@dataclass(frozen=True)
class Breaks(NoUnlearning):
    """Puts a value into one entry of the state."""

    summary: ClassVar[str] = "breaks"
    entry: str = ""
    value: str = "0"

    def unlearn(self, task):
        with torch.no_grad():
            task.original.state_dict()[self.entry].view(-1)[0] = float(self.value)
        return task.original


@pytest.mark.parametrize("entry", ["0.0.weight", "6.2.weight", "0.1.running_var"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("keep", ["last", "best_on_test"])
def test_an_unlearned_model_that_is_not_finite_is_diverged(entry, value, keep):
    record = Workbench(DATASET, MemoryStore()).run_trial(trial_spec(DATASET, Breaks(entry, value), keep=keep))
    reason = f"{name_of(Breaks)} returned a model whose {entry} is not finite"
    assert (record.status, record.error, record.scores) == ("diverged", reason, {})


def test_an_original_that_the_last_step_breaks_is_diverged_and_not_stored():
    """The loss before that step was finite."""
    store = MemoryStore()
    recipe = replace(RECIPE, steps=1, lr=3e38, weight_decay=1e4)
    spec = trial_spec(DATASET, NoUnlearning(), recipe=recipe)
    for record in (Workbench(DATASET, store).run_original(spec.original), Workbench(DATASET, store).run_trial(spec)):
        assert record.status == "diverged"
        assert record.error.endswith("is not finite")
        assert record.scores == {}
    assert store.entries == {}
