"""What a method takes for granted and is not so: one failed row whose reason names it."""

from __future__ import annotations

import pytest

from cu_ray import plugins
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.stages.pipeline import Workbench
from cu_ray.types import Sizes
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

DATASET = tiny_dataset()
NEEDS_NO_RETAIN_SET = {"no_unlearning", "gradient_ascent", "npo", "cuts", "relabelling", "bad_teaching"}


def few_steps(name):
    cls = plugins.find("methods", name)
    return cls(**({"steps": 3} if "steps" in plugins.facts(cls) else {}))


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_where_everything_was_found_no_samples_are_left_to_retain(name):
    spec = trial_spec(DATASET, few_steps(name), deletion_size=60, manipulation=Backdoor(size=60, target=1))
    record = Workbench(DATASET, MemoryStore()).run_trial(spec)
    if name in NEEDS_NO_RETAIN_SET:
        assert record.ok, record.error
    else:
        assert record.status == "failed"
        assert record.error == f"AssumptionFailed in {name}: batches are needed from the retain set, which is empty"


@pytest.mark.parametrize("name", plugins.names("methods"))
@pytest.mark.parametrize(("deletion", "retain"), [(60, 0), (0, 60)])
def test_the_cost_without_samples_can_be_told(name, deletion, retain):
    assert plugins.find("methods", name)().cost(Sizes(deletion, retain, 16, 6)).forward >= 0


def test_where_nothing_was_found_there_is_no_deletion_set():
    spec = trial_spec(DATASET, few_steps("gradient_ascent"), deletion_size=0)
    record = Workbench(DATASET, MemoryStore()).run_trial(spec)
    assert record.error == "AssumptionFailed in gradient_ascent: batches are needed from the deletion set, which is empty"


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_two_samples_of_one_class_are_deletion_set_enough(name):
    record = Workbench(DATASET, MemoryStore()).run_trial(trial_spec(DATASET, few_steps(name), deletion_size=2))
    assert record.status in ("ok", "diverged"), record.error
