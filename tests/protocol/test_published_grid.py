"""The sweep files of the published grid hold its points, no more and no fewer."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from pathlib import Path

import pytest

from cu_ray import config
from cu_ray.plugins import name_of
from cu_ray.sweep import plan as plans
from cu_ray.sweep import sampling
from cu_ray.sweep.hardware import Hardware

FOLDER = Path(__file__).parent.parent.parent / "sweeps" / "paper"
FRACTIONS = tuple(tenths / 10 for tenths in range(1, 11))
BACKDOOR = {"patch": 3, "target": 0}
ALPHAS, ONE_MORE = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10), (0.0001,)
SSD_ALPHAS, RATIOS = (0.1, 1, 10, 50, 100, 500, 1e3, 1e4, 1e5, 1e6), (0.1, 0.5, 1, 5, 10)

# data set, model, manipulation, its settings, sizes, fractions, steps of the original, of retraining, of the others, k, alphas
CIFAR10, CIFAR100 = ("cifar10", "resnet9"), ("cifar100", "wide_resnet")
SHORT, LONG = (4000, 1000, (2, 4)), (6000, 1500, (5, 13))
CELLS = {
    "cifar10_backdoor": (CIFAR10, "backdoor", BACKDOOR, (100, 500, 1000), FRACTIONS, 4000, SHORT, ALPHAS),
    "cifar10_confusion": (
        CIFAR10,
        "interclass_confusion",
        {"classes": (3, 5)},
        (500, 2500, 5000),
        FRACTIONS,
        4000,
        SHORT,
        ALPHAS,
    ),
    "cifar100_backdoor": (CIFAR100, "backdoor", BACKDOOR, (100, 500, 1000), FRACTIONS, 6000, LONG, ALPHAS),
    "cifar100_confusion": (
        CIFAR100,
        "interclass_confusion",
        {"classes": (47, 52)},
        (100, 250, 500),
        FRACTIONS,
        6000,
        LONG,
        ALPHAS,
    ),
    "random_label_swap_cifar10": (CIFAR10, "random_label_swap", {}, (5000,), (1.0,), 5500, SHORT, ONE_MORE + ALPHAS),
    "random_label_swap_cifar100": (CIFAR100, "random_label_swap", {}, (5000,), (1.0,), 6000, LONG, ONE_MORE + ALPHAS),
}
OWN = {"pcam_backdoor": (("pcam", "resnet9"), "backdoor", BACKDOOR, (100, 500, 1000), FRACTIONS, 4000, SHORT, ALPHAS)}


@functools.cache
def plan(name):
    sweep = config.load(FOLDER / f"{name}.yaml")
    sources = {dataset: plans.Source.expected(dataset) for dataset in sweep.datasets}
    assert {train.precision for train in sweep.trains} == {"published"}
    return plans.make(Hardware("cuda", frozenset()).settle(sweep), sources)


def points(study):
    return [sampling.point(study, index, (), ()) for index in range(study.method.budget)]


def planned(name):
    """(size, fraction, method, hyperparameters that are given) of every trial."""
    return [
        (study.settings[0].manipulation.size, fraction, name_of(study.method.cls), frozenset(point.items()))
        for study in plan(name).studies
        for fraction in (study.fractions or (None,))
        for point in points(study)
    ]


def published(name):
    """The same, from the grid's description."""
    _, _, _, sizes, fractions, _, (retraining, steps, ks), alphas = {**CELLS, **OWN}[name]
    grid = [("exact_unlearning", {"k": None, "steps": retraining}), ("bad_teaching", {"steps": steps})]
    grid += [("exact_unlearning", {"k": k, "steps": steps}) for k in ks]
    grid += [("catastrophic_forgetting", {"k": k, "steps": steps}) for k in (None, *ks)]
    grid += [("scrub", {"alpha": alpha, "steps": steps, "lr": 0.0025, "msteps": 100}) for alpha in alphas]
    grid += [("ssd", {"selection_weight": a, "relative_dampening": r}) for a, r in itertools.product(SSD_ALPHAS, RATIOS)]
    trials = [
        (size, fraction, method, frozenset(given.items()))
        for size, fraction, (method, given) in itertools.product(sizes, fractions, grid)
    ]
    return trials + [(size, None, "no_unlearning", frozenset()) for size in sizes]


def without_defaults(trial, reference):
    """The trial without hyperparameters that the reference does not speak of: those have the value that a method gives them."""
    size, fraction, method, given = trial
    spoken = {name for _, _, other, items in reference if other == method for name, _ in items}
    return size, fraction, method, frozenset((name, value) for name, value in given if name in spoken)


@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_a_file_holds_exactly_the_points_of_its_cells(name):
    expected = published(name)
    assert Counter(without_defaults(trial, expected) for trial in planned(name)) == Counter(expected)


@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_a_file_has_the_published_data_model_manipulation_and_recipe(name):
    (dataset, model), manipulation, settings, sizes, fractions, steps, *_ = {**CELLS, **OWN}[name]
    made = plan(name)
    assert made.fractions == fractions
    (shared,) = {(name_of(each.dataset), name_of(each.model)) for study in made.studies for each in study.settings}
    assert shared == (dataset, model)
    assert [spec.setting.manipulation.size for spec in made.originals()] == list(sizes)
    for spec in made.originals():
        train, manipulated = spec.setting.train, spec.setting.manipulation
        assert (train.steps, train.lr, train.batch_size, train.momentum, train.weight_decay) == (steps, 0.025, 512, 0.9, 5e-4)
        assert (train.keep, train.precision) == ("last", "fp16")
        assert name_of(manipulated) == manipulation
        assert {each: getattr(manipulated, each) for each in settings} == settings


def test_what_no_file_gives_has_the_published_default():
    for study in plan("cifar10_backdoor").studies:
        for point in points(study):
            method = study.method.cls(**point)
            if name_of(method) == "ssd":
                assert (method.selection_share, method.importance_batch_size) == (None, 512)
            if name_of(method) == "scrub":
                assert method.temperature == 4
            if name_of(method) in ("exact_unlearning", "catastrophic_forgetting", "bad_teaching"):
                assert method.lr is None


def test_the_grid_has_its_7932_distinct_trials_and_12_originals_and_2():
    trials = {name: [trial for trial in planned(name) if trial[2] != "no_unlearning"] for name in CELLS}
    assert [len(each) for each in trials.values()] == [1950] * 4 + [66] * 2
    assert sum(len(set(each)) for each in trials.values()) == 7932
    assert [len(plan(name).originals()) for name in CELLS] == [3] * 4 + [1] * 2


def test_every_trial_of_a_file_has_a_key_of_its_own():
    keys = [
        trial.key
        for study in plan("cifar10_backdoor").studies
        for point in points(study)
        for trial in study.trials(point, study.settings)
    ]
    assert len(keys) == len(set(keys)) == 1950 + 3
