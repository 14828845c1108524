"""Which canaries a plan needs: each kind once, at its most demanding, on its largest deletion set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import pytest

from cu_ray.lazy import torch
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search, name_of
from cu_ray.sweep.canaries import canaries, canary_key, kind_of
from cu_ray.types import Cost, OriginalSpec, Sizes, TrialSpec, UnlearningTask
from tests.sweep.simulator import SCRUB, SSD_GRID, plan

OWN = "tests.sweep.own_plugins:OtherOriginal"
SHAPED = f"{__name__}:Shaped"


@dataclass(frozen=True)
class Shaped(Method):
    """A method of which some hyperparameters shape the computation."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "has layers, a switch and a rate"
    layers: Annotated[int | None, Bound(low=1)] = None
    switch: bool = False
    rate: Annotated[float, Search(0.1, 1), Bound(low=0)] = 0.5

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original."""
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        """Nothing."""
        return Cost()


def told(plan):
    """The canaries, an original by its name, a trial by its method's."""
    return [name_of(spec.method) if isinstance(spec, TrialSpec) else "original" for spec in canaries(plan)]


def shapes(settings, *fields):
    """The values of these fields in a method's canaries."""
    specs = [spec for spec in canaries(plan({SHAPED: settings})) if isinstance(spec, TrialSpec)]
    return [tuple(getattr(spec.method, field) for field in fields) for spec in specs]


def test_each_method_and_the_original_once_whatever_the_seeds_sizes_and_fractions():
    made = plan(
        {"no_unlearning": {}, "scrub": SCRUB, "ssd": SSD_GRID},
        manipulation={"name": "backdoor", "size": [50, 100]},
        train={"steps": [20, 30], "batch_size": 16, "lr": [0.1, 0.01]},
        deletion_fractions=[0.1, 1.0, 0.5],
        seeds=[0, 1],
        search={"seeds": "each"},
    )
    assert told(made) == ["original", "no_unlearning", "scrub", "ssd"]
    assert [spec.deletion_size for spec in canaries(made)[1:]] == [0, 100, 100]


def test_of_a_study_over_several_fractions_the_largest_is_taken():
    made = plan({"scrub": SCRUB}, deletion_fractions=[0.1, 1.0, 0.5], search={"scope": "across_fractions"})
    assert [spec.deletion_size for spec in canaries(made)[1:]] == [100]


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"name": "resnet9", "width": [2, 4]}},
        {"manipulation": [{"name": "backdoor", "size": 100}, {"name": "random_label_swap", "size": 100}]},
        {"train": {"steps": 20, "batch_size": [16, 32]}},
        {"train": {"steps": 20, "precision": ["bf16", "fp32"]}},
        {"train": {"steps": 20, "momentum": [0, 0.9]}},
        {"train": {"steps": 20, "keep": ["last", "best_on_test"]}},
    ],
    ids=str,
)
def test_what_takes_other_memory_has_canaries_of_its_own(sections):
    assert sorted(told(plan({"scrub": SCRUB}, **sections))) == ["original", "original", "scrub", "scrub"]


def test_an_original_of_another_variant_has_one_of_its_own():
    assert told(plan({"scrub": SCRUB, OWN: {}})) == ["original", "scrub", "original", OWN]


def test_controls_need_no_more():
    made = plan({"no_unlearning": {}}, controls={"never_manipulated": True, "trigger_only": True}, seeds=[0, 1])
    assert told(made) == ["original", "no_unlearning"]


def test_given_weights_are_not_trained():
    made = plan({"scrub": SCRUB})
    given = [replace(study, settings=tuple(replace(each, weights="x") for each in study.settings)) for study in made.studies]
    assert told(replace(made, studies=tuple(given))) == ["scrub"]


def test_a_range_of_rates_is_taken_at_its_middle():
    assert shapes({"rate": {"low": 0.2, "high": 0.4}}, "rate") == [(pytest.approx(0.3),)]


def test_numbers_of_things_are_taken_at_both_ends_and_what_is_no_number_always():
    assert sorted(shapes({"layers": {"low": 2, "high": 9}}, "layers")) == [(2,), (9,)]
    assert shapes({"layers": [4, 1, 2, 3]}, "layers") == [(4,), (1,)]
    assert shapes({"layers": [4, None, 2, 3]}, "layers") == [(4,), (None,), (2,)]
    assert shapes({"switch": [True, False]}, "switch") == [(True,), (False,)]
    both = shapes({"layers": [1, 2, 3], "switch": [True, False]}, "layers", "switch")
    assert {layers for layers, _ in both} >= {1, 3}
    assert {switch for _, switch in both} == {True, False}


def test_of_given_points_those_that_differ_in_shape_are_taken():
    points = [{"layers": 2, "rate": rate} for rate in (0.1, 0.2, 0.3)] + [{"layers": 9}, {"layers": None}, {"layers": 5}]
    assert shapes({"points": points}, "layers", "rate") == [(2, 0.1), (9, 0.5), (None, 0.5)]


def test_the_published_grid_needs_few():
    made = plan(
        {
            "no_unlearning": {},
            "exact_unlearning": {"points": [{"k": None, "steps": 4000}, {"k": 2, "steps": 1000}, {"k": 4, "steps": 1000}]},
            "catastrophic_forgetting": {"k": [None, 2, 4], "steps": 1000, "sampler": "grid"},
            "scrub": {"alpha": [0.001, 0.1, 10], "steps": 1000, "sampler": "grid"},
            "ssd": {"selection_weight": [0.1, 1, 1e6], "relative_dampening": [0.1, 1], "sampler": "grid"},
        }
    )
    assert len(canaries(made)) == 10
    assert {spec.method.k for spec in canaries(made) if hasattr(getattr(spec, "method", None), "k")} == {None, 2, 4}


def test_a_kind_is_what_takes_the_same_time_for_an_image():
    original, scrub, ssd = canaries(plan({"scrub": SCRUB, "ssd": SSD_GRID}, seeds=[0, 1], deletion_fractions=[0.1, 0.5]))
    assert isinstance(original, OriginalSpec)
    assert len({kind_of(spec) for spec in (original, scrub, ssd)}) == 3
    other = replace(scrub, deletion_size=3, method=replace(scrub.method, alpha=9.0, steps=77), unlearning_seed=4)
    assert kind_of(other) == kind_of(scrub)
    assert kind_of(replace(scrub, keep="best_on_test")) != kind_of(scrub)


def test_the_key_of_a_canary_says_device_deletion_set_and_shape_and_no_rates(monkeypatch):
    _, scrub = canaries(plan({"scrub": SCRUB}))
    key = canary_key(scrub, "A")
    assert key != canary_key(scrub, "B")
    assert key != canary_key(replace(scrub, deletion_size=49), "A")
    assert key != canary_key(replace(scrub, method=replace(scrub.method, msteps=3)), "A")
    assert key == canary_key(replace(scrub, method=replace(scrub.method, alpha=9.0)), "A")
    monkeypatch.setattr("cu_ray.sweep.canaries.metadata.version", lambda _: "another")
    assert key != canary_key(scrub, "A")
