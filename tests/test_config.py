"""A sweep file is read as it is meant, or refused with all its faults: where, what was given, what is allowed, nearest name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cu_ray import config, plugins, yaml_file
from cu_ray.config import Options, Span
from cu_ray.config.methods import spaced
from cu_ray.datasets import Dataset
from cu_ray.errors import Faults, UserError
from cu_ray.methods import Method
from cu_ray.plugins import Search
from cu_ray.types import Cost, DatasetFacts, TrainRecipe

PLAIN = {  # one line each: a section's line is its place here, from 1
    "name": "plain",
    "dataset": "fashion_mnist_small",
    "model": "{name: resnet9, width: 2}",
    "manipulation": "{name: backdoor, size: 100}",
    "methods": "{scrub: {}}",
}
LINES = {name: number for number, name in enumerate(PLAIN, start=1)}
NEXT_LINE = len(PLAIN) + 1


def text_of(**sections: str) -> str:
    """The plain sweep file with other or further sections (None leaves one out), a line each."""
    return "".join(f"{name}: {value}\n" for name, value in (PLAIN | sections).items() if value is not None)


def parsed(**sections: str) -> config.Sweep:
    return config.parse(text_of(**sections))


def faults_of(**sections: str) -> list[str]:
    return faults_in(text_of(**sections))


def faults_in(text: str) -> list[str]:
    with pytest.raises(Faults) as caught:
        config.parse(text, "my.yaml")
    faults = caught.value.faults
    assert str(caught.value) == "\n  ".join([f"my.yaml: {len(faults)} fault{'s' * (len(faults) > 1)}", *faults])
    return faults


def method_of(settings: str, name: str = "scrub", **sections: str) -> config.MethodPlan:
    return parsed(methods=f"{{{name}: {settings}}}", **sections).methods[0]


@dataclass(frozen=True)
class Small(Dataset):
    """Images of 8 x 8: too small for ResNet-9."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "too small"

    def facts(self):
        return DatasetFacts(50, 20, (8, 8, 1), ("a", "b"))

    def load(self):
        raise AssertionError("a file is checked without images")


@dataclass(frozen=True)
class Listing(Method):
    """Has a hyperparameter that is a list, one of texts, and one that must be given."""

    version: ClassVar[int] = 1
    needed: int
    weights: tuple[float, float] = (1.0, 1.0)
    mode: str = "plain"
    flag: bool = False
    width: Annotated[int, Search(1, 8)] = 2
    made: tuple[int, ...] = field(default=())

    def unlearn(self, task):
        return task.original

    def cost(self, sizes):
        return Cost()


LISTING = f"'{__name__}:Listing'"


# ------------------------------------------------------------------------------------------------- what is understood


def test_a_plain_file_is_read_with_its_defaults():
    sweep = parsed()
    assert (sweep.name, sweep.source) == ("plain", "sweep")
    assert sweep.fractions == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert sweep.seeds == (0,)
    assert [plugins.name_of(each) for each in (*sweep.datasets, *sweep.models, *sweep.detections)] == [
        "fashion_mnist_small",
        "resnet9",
        "uniform",
    ]
    assert sweep.trains == (TrainRecipe(),)
    assert sweep.search == config.SearchSection()
    assert str(sweep.folder) == "results/plain"


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("1E3", 1000.0), ("-1e-3", -1e-3), ("2.5e-3", 2.5e-3), ("1", 1.0)]
)
def test_numbers_are_numbers_however_they_are_written(written, value):
    if value > 0:
        assert parsed(train=f"{{lr: {written}}}").trains[0].lr == value
    else:
        assert f"{value!r} is not allowed" in faults_of(train=f"{{lr: {written}}}")[0]


def test_class_names_become_indices():
    sweep = parsed(manipulation="{name: backdoor, size: 100, target: bag}")
    assert sweep.manipulations[0][1].target == 8
    sweep = parsed(manipulation="{name: interclass_confusion, size: 100, classes: [shirt, 3]}")
    assert sweep.manipulations[0][1].classes == (6, 3)


def test_lists_given_to_scalars_fan_out_in_order():
    sweep = parsed(manipulation="{name: backdoor, size: [100, 200], target: [bag, 3]}")
    found = [(each.size, each.target) for _, each in sweep.manipulations]
    assert found == [(100, 8), (100, 3), (200, 8), (200, 3)]


def test_a_list_field_takes_a_list_as_its_value_and_a_list_of_lists_fans_out():
    one = parsed(manipulation="{name: interclass_confusion, size: 100, classes: [1, 2]}")
    assert [each.classes for _, each in one.manipulations] == [(1, 2)]
    two = parsed(manipulation="{name: interclass_confusion, size: [100, 200], classes: [[1, 2], [3, 4]]}")
    assert [(each.size, each.classes) for _, each in two.manipulations] == [
        (100, (1, 2)),
        (100, (3, 4)),
        (200, (1, 2)),
        (200, (3, 4)),
    ]


def test_sections_take_lists_of_names_and_mappings():
    sweep = parsed(
        model="[resnet9, {name: resnet9, width: [2, 4]}]",
        manipulation="[{name: backdoor, size: 100}, {name: random_label_swap, size: [50, 60]}]",
        train="{steps: [100, 200]}",
    )
    assert [each.width for each in sweep.models] == [64, 2, 4]
    assert [(plugins.name_of(each), each.size) for _, each in sweep.manipulations] == [
        ("backdoor", 100),
        ("random_label_swap", 50),
        ("random_label_swap", 60),
    ]
    assert [each.steps for each in sweep.trains] == [100, 200]


def test_every_manipulation_is_settled_for_every_data_set():
    sweep = parsed(dataset="[fashion_mnist_small, cifar10]", manipulation="{name: backdoor, size: [10, 20]}")
    assert [(plugins.name_of(dataset), each.size) for dataset, each in sweep.manipulations] == [
        ("fashion_mnist_small", 10),
        ("fashion_mnist_small", 20),
        ("cifar10", 10),
        ("cifar10", 20),
    ]


def test_a_method_is_searched_over_its_own_ranges():
    plan = method_of("{}")
    assert plan.space == {"alpha": Span(1e-3, 10, log=True, integer=False)}
    assert plan.fixed == {"msteps": 100, "steps": 1000, "lr": 0.0025, "temperature": 4.0}
    assert (plan.sampler, plan.trials, plan.keep, plan.budget) == ("tpe", 50, "last", 50)


def test_values_fix_lists_choose_and_ranges_span():
    plan = method_of("{alpha: 0.5, steps: [10, 20, 10], lr: {low: 0.01, high: 1}, msteps: {low: 1, high: 9, log: true}}")
    assert plan.fixed == {"alpha": 0.5, "temperature": 4.0}
    assert plan.space == {
        "msteps": Span(1, 9, log=True, integer=True),
        "steps": Options((10, 20)),
        "lr": Span(0.01, 1.0, log=False, integer=False),
    }


def test_a_file_of_nothing_but_values_has_one_point():
    assert method_of("{alpha: 0.5}").budget == 1
    assert method_of("null", name="no_unlearning").budget == 1


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("{low: 0.001, high: 10, log: true, num: 5}", (0.001, 0.01, 0.1, 1.0, 10.0)),
        ("{low: 1, high: 2, num: 3}", (1.0, 1.5, 2.0)),
        ("{low: 0, high: 1, num: 2}", (0.0, 1.0)),
    ],
)
def test_num_makes_a_range_a_grid(given, values):
    plan = method_of(f"{{alpha: {given}, sampler: grid}}")
    assert plan.space == {"alpha": Options(values)}
    assert plan.budget == len(values)
    assert plan.grid == [{"alpha": value} for value in values]


def test_num_for_an_integer_makes_integers_each_once():
    assert method_of("{steps: {low: 1, high: 4, num: 9}}").space["steps"] == Options((1, 2, 3, 4))


def test_a_grid_has_all_combinations_the_last_changing_fastest():
    plan = method_of("{alpha: [1, 2], steps: [3, 4], sampler: grid}")
    assert [tuple(point.values()) for point in plan.grid] == [(1.0, 3), (1.0, 4), (2.0, 3), (2.0, 4)]


def test_points_are_taken_as_given_over_the_fixed_values():
    plan = method_of("{steps: 7, points: [{alpha: 1}, {alpha: 2, steps: 8}, {}]}")
    assert [(point["alpha"], point["steps"]) for point in plan.points] == [(1.0, 7), (2.0, 8), (0.1, 7)]
    assert plan.space == {}
    assert plan.budget == 3


def test_one_of_two_alternatives_silences_the_other():
    by_share, by_weight = method_of("{}", name="ssd"), method_of("{selection_weight: 10}", name="ssd")
    assert "selection_share" in by_share.space
    assert by_share.fixed["selection_weight"] is None
    assert by_weight.fixed["selection_share"] is None
    assert by_weight.fixed["selection_weight"] == 10.0
    searched = method_of("{selection_weight: {low: 1, high: 10}, relative_dampening: 1}", name="ssd")
    assert list(searched.space) == ["selection_weight"]
    assert searched.fixed["selection_share"] is None


def test_alternatives_may_differ_from_point_to_point():
    plan = method_of("{points: [{selection_weight: 10}, {selection_share: 0.1}, {}]}", name="ssd")
    found = [(point["selection_weight"], point["selection_share"]) for point in plan.points]
    assert found == [(10.0, None), (None, 0.1), (None, 0.01)]


def test_what_a_method_reserves_overrules_the_search_section():
    plan = method_of("{sampler: random, trials: 3, keep: best_on_test}", search="{sampler: qmc, trials: 9}")
    assert (plan.sampler, plan.trials, plan.keep) == ("random", 3, "best_on_test")
    plan = method_of("{}", search="{sampler: qmc, trials: 9}")
    assert (plan.sampler, plan.trials) == ("qmc", 9)


def test_a_method_from_outside_may_have_list_text_and_required_hyperparameters():
    plan = method_of("{needed: 3, weights: [1, 2], mode: other, flag: true}", name=LISTING)
    assert plan.fixed == {"needed": 3, "weights": (1.0, 2.0), "mode": "other", "flag": True, "made": ()}
    assert plan.space == {"width": Span(1, 8, log=False, integer=True)}
    plan = method_of("{needed: [3, 4], weights: [[1, 2], [3, 4]], width: 2}", name=LISTING)
    assert plan.space == {"needed": Options((3, 4)), "weights": Options(((1.0, 2.0), (3.0, 4.0)))}


def test_merged_mappings_are_understood():
    text = text_of(methods=None) + "methods:\n  scrub: &few {steps: 5, lr: 0.1}\n  bad_teaching: {<<: *few, lr: 0.2}\n"
    plans = config.parse(text).methods
    assert [(plan.fixed["steps"], plan.fixed["lr"]) for plan in plans] == [(5, 0.1), (5, 0.2)]


@pytest.mark.parametrize("name", ["a", "A-b_c.d", "2024.1"])
def test_names_of_letters_digits_and_marks_are_names(name):
    assert parsed(name=repr(name)).name == name


def test_the_shipped_sweep_files_are_right():
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "sweeps")
    files = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".yaml")]
    assert len(files) >= 2
    for file in files:
        assert config.load(file).methods


# -------------------------------------------------------------------------------------------------- one fault at a time

SMALL = f"'{__name__}:Small'"
ONE_FAULT = [
    # sections
    ("sede", "3", ["unknown section", "Allowed: controls, dataset, ", "Did you mean 'seeds'?"]),
    ("name", "'../x'", ["'../x' is not allowed", "no path"]),
    ("name", "a/b", ["'a/b' is not allowed"]),
    ("name", "..", ["'..' is not allowed"]),
    ("name", "''", ["'' is not allowed"]),
    ("name", "3", ["3 is not allowed"]),
    # names of plug-ins
    ("dataset", "fashion", ["'fashion' is not among the datasets", "Allowed: cifar10, cifar100, fashion_mnist, "]),
    ("dataset", "fashion_mnist_smal", ["Did you mean 'fashion_mnist_small'?"]),
    ("dataset", "{name: cifar}", ["dataset.name", "'cifar' is not among the datasets", "Did you mean 'cifar10'?"]),
    ("dataset", "{folder: x}", ["the name is missing"]),
    ("dataset", "3", ["3 is not allowed. A name or a mapping is needed"]),
    ("dataset", "[]", ["an empty list: give at least one"]),
    ("dataset", "{name: cifar10, folder: 3}", ["dataset.folder", "3 is not allowed. Allowed: a text"]),
    ("detection", "unifrom", ["'unifrom' is not among the detections", "Did you mean 'uniform'?"]),
    ("detection", "no_such_module:Fancy", ["'no_such_module:Fancy' cannot be imported", "No module named"]),
    ("detection", "':Fancy'", ["cannot be imported"]),
    ("detection", "'..:Fancy'", ["cannot be imported"]),
    ("model", "resnet99", ["'resnet99' is not among the models", "Did you mean 'resnet9'?"]),
    ("model", "{name: resnet9, widht: 3}", ["model.widht", "unknown setting", "Allowed: width", "Did you mean 'width'?"]),
    ("model", "{name: resnet9, width: 0}", ["model.width", "0 is not allowed", "an integer, at least 1"]),
    ("model", "{name: resnet9, width: 2.0}", ["2.0 is not allowed", "an integer"]),
    ("model", "{name: resnet9, width: true}", ["True is not allowed", "an integer"]),
    ("model", "{name: resnet9, width: wide}", ["'wide' is not allowed", "an integer"]),
    ("model", "{name: resnet9, width: null}", ["None is not allowed", "an integer"]),
    ("model", "{name: resnet9, width: []}", ["model.width", "an empty list: give at least one value"]),
    # manipulations
    ("manipulation", "backdoor", ["the setting 'size' is missing", "an integer, at least 1"]),
    ("manipulation", "{name: backdoor, size: 0}", ["manipulation.size", "0 is not allowed", "at least 1"]),
    ("manipulation", "{name: backdoor, size: 6001}", ["manipulation.size", "6001 manipulated samples", "6000 training samples"]),
    ("manipulation", "{name: backdoor, size: 100, patch: 29}", ["manipulation.patch", "29 pixels is larger", "of 28"]),
    ("manipulation", "{name: backdoor, size: 100, target: bagg}", ["manipulation.target", "'bagg'", "Did you mean 'bag'?"]),
    ("manipulation", "{name: backdoor, size: 100, target: 10}", ["manipulation.target", "10 is no class"]),
    ("manipulation", "{name: backdoor, size: 100, target: -1}", ["manipulation.target", "-1 is no class"]),
    ("manipulation", "{name: interclass_confusion, size: 99}", ["manipulation.size", "99 is odd"]),
    ("manipulation", "{name: interclass_confusion, size: 10, classes: [1, 1]}", ["manipulation.classes", "one class twice"]),
    (
        "manipulation",
        "{name: interclass_confusion, size: 10, classes: [1]}",
        ["manipulation.classes", "[1] is not allowed", "a list"],
    ),
    (
        "manipulation",
        "{name: interclass_confusion, size: 10, classes: [bag, shoe]}",
        ["manipulation.classes", "'shoe' is no class"],
    ),
    ("manipulation", "{name: interclass_confusion, size: 10, classes: bag}", ["manipulation.classes", "'bag' is not allowed"]),
    # training
    ("train", "{step: 3}", ["train.step", "unknown setting", "Did you mean 'steps'?"]),
    ("train", "{steps: 1.5}", ["train.steps", "1.5 is not allowed", "an integer, at least 1"]),
    ("train", "{steps: '3'}", ["train.steps", "'3' is not allowed", "an integer"]),
    ("train", "{steps: true}", ["train.steps", "True is not allowed"]),
    ("train", "{lr: 0}", ["train.lr", "0 is not allowed", "above 0"]),
    ("train", "{lr: true}", ["train.lr", "True is not allowed", "a number"]),
    ("train", "{lr: .nan}", ["train.lr", "nan is not allowed"]),
    ("train", "{lr: .inf}", ["train.lr", "inf is not allowed"]),
    ("train", "{momentum: 1.1}", ["train.momentum", "1.1 is not allowed", "at least 0 and at most 1"]),
    ("train", "{keep: frist}", ["train.keep", "'frist' is not allowed", "Allowed: best_on_test, last"]),
    ("train", "{precision: bf61}", ["train.precision", "'bf61' is not allowed", "Did you mean 'bf16'?"]),
    ("train", "{steps: []}", ["train.steps", "an empty list"]),
    ("train", "[]", ["an empty list"]),
    ("train", "3", ["3 is not allowed"]),
    ("train", "0", ["0 is not allowed"]),
    # fractions and seeds
    ("deletion_fractions", "[]", ["an empty list: give at least one value"]),
    ("deletion_fractions", "[0]", ["deletion_fractions[0]", "0.0 is not allowed", "above 0, at most 1"]),
    ("deletion_fractions", "[0.5, 1.5]", ["deletion_fractions[1]", "1.5 is not allowed", "above 0, at most 1"]),
    ("deletion_fractions", "[-0.5]", ["deletion_fractions[0]", "-0.5 is not allowed"]),
    ("deletion_fractions", "[.nan]", ["deletion_fractions[0]", "nan is not allowed"]),
    ("deletion_fractions", "[half]", ["deletion_fractions[0]", "'half' is not allowed", "Allowed: numbers above 0, at most 1."]),
    ("deletion_fractions", "[0.5, 0.50]", ["deletion_fractions[1]", "0.5 is given twice"]),
    ("deletion_fractions", "[0.5, 0.001]", ["deletion_fractions[1]", "0.001 of 100", "an empty deletion set"]),
    ("seeds", "[]", ["an empty list"]),
    ("seeds", "[0, 1.5]", ["seeds[1]", "1.5 is not allowed"]),
    ("seeds", "[0, -1]", ["seeds[1]", "-1 is not allowed", "Allowed: integers, not negative, below 2^63."]),
    ("seeds", f"[0, {2**63}]", ["seeds[1]", f"{2**63} is not allowed", "Allowed: integers, not negative, below 2^63."]),
    ("seeds", "[010, 1]", [f"seeds[0] (line {NEXT_LINE}): 010 would be read as 8: write 10 or 8, or '010' in quotes for a text"]),
    ("seeds", "[3, 0_10]", ["seeds[1]", "0_10 would be read as 8: write 10 or 8"]),
    ("train", "{lr: 1:30}", ["train.lr", "1:30 would be read as 90: write 90, or '1:30' in quotes for a text"]),
    ("train", "{lr: 1:30.5}", ["train.lr", "1:30.5 would be read as 90.5: write 90.5"]),
    ("train", "{steps: 1_0}", ["train.steps", "1_0 would be read as 10: write 10"]),
    ("train", "{lr: 1_0.5}", ["train.lr", "1_0.5 would be read as 10.5: write 10.5"]),
    ("name", "yes", ["name", "True is not allowed", "a bare yes, no, on or off is no text in YAML: write it in quotes"]),
    ("name", "2024", ["name", "2024 is not allowed", "A number, a date or a bare yes", "write it in quotes"]),
    ("name", "2024-05-01", ["name", "A number, a date or a bare yes", "write it in quotes"]),
    ("controls", "{unlearning_seeds: 1001}", ["controls.unlearning_seeds", "1001 is not allowed", "at most 1000"]),
    ("runtime", "{address: ''}", ["runtime.address", "'' is not allowed", "the address of a Ray"]),
    ("seeds", "[true]", ["seeds[0]", "True is not allowed"]),
    ("seeds", "first", ["'first' is not allowed"]),
    ("seeds", "[3, 3]", ["seeds[1]", "3 is given twice"]),
    ("seeds", "{a: 1}", ["{'a': 1} is not allowed"]),
    # methods
    ("methods", "[scrub]", ["a mapping is needed", "{} for the defaults"]),
    ("methods", "scrub", ["a mapping is needed"]),
    ("methods", "{}", ["a mapping is needed"]),
    ("methods", "{scurb: {}}", ["methods.scurb", "'scurb' is not among the methods", "Did you mean 'scrub'?"]),
    ("methods", "{mine.fancy.Fancy: {}}", ["is not among the methods", "module:Class, here mine.fancy:Fancy"]),
    ("methods", "{'no_such_module:Fancy': {}}", ["'no_such_module:Fancy' cannot be imported"]),
    ("methods", "{'yaml:YAMLError': {}}", ["'yaml:YAMLError' is not a dataclass derived from Method"]),
    ("methods", "{scrub: 3}", ["methods.scrub", "3 is not allowed. A mapping is needed"]),
    ("methods", "{scrub: {alhpa: 3}}", ["methods.scrub.alhpa", "unknown hyperparameter", "Did you mean 'alpha'?"]),
    ("methods", "{scrub: {trails: 3}}", ["methods.scrub.trails", "unknown hyperparameter", "Did you mean 'trials'?"]),
    ("methods", "{scrub: {alpha: high}}", ["methods.scrub.alpha", "'high' is not allowed", "a number, at least 0"]),
    ("methods", "{scrub: {alpha: true}}", ["methods.scrub.alpha", "True is not allowed"]),
    ("methods", "{scrub: {alpha: -1}}", ["methods.scrub.alpha", "-1 is not allowed", "at least 0"]),
    ("methods", "{scrub: {alpha: null}}", ["methods.scrub.alpha", "None is not allowed"]),
    ("methods", "{scrub: {alpha: []}}", ["methods.scrub.alpha", "an empty list: give at least one value"]),
    ("methods", "{scrub: {alpha: [1, x]}}", ["methods.scrub.alpha[1]", "'x' is not allowed"]),
    ("methods", "{scrub: {steps: 2.5}}", ["methods.scrub.steps", "2.5 is not allowed", "an integer, at least 1"]),
    ("methods", "{scrub: {alpha: {low: 1}}}", ["methods.scrub.alpha", "a range needs `low` and `high`"]),
    (
        "methods",
        "{scrub: {alpha: {low: 1, high: 2, logg: true}}}",
        ["methods.scrub.alpha.logg", "unknown part of a range", "Did you mean 'log'?"],
    ),
    ("methods", "{scrub: {alpha: {low: 2, high: 1}}}", ["methods.scrub.alpha", "low (2.0) must be below high (1.0)"]),
    ("methods", "{scrub: {alpha: {low: 1, high: 1}}}", ["methods.scrub.alpha", "low (1.0) must be below high (1.0)"]),
    ("methods", "{scrub: {alpha: {low: 0, high: 1, log: true}}}", ["a logarithmic range must start above 0, not at 0.0"]),
    ("methods", "{scrub: {alpha: {low: 0, high: 1, log: 3}}}", ["methods.scrub.alpha.log", "3 is not allowed", "true or false"]),
    ("methods", "{scrub: {alpha: {low: 0, high: 1, num: 1}}}", ["methods.scrub.alpha.num", "1 is not allowed", "at least 2"]),
    ("methods", "{scrub: {alpha: {low: 0, high: 1, num: true}}}", ["methods.scrub.alpha.num", "True is not allowed"]),
    ("methods", "{scrub: {alpha: {low: -1, high: 1}}}", ["methods.scrub.alpha.low", "-1 is not allowed", "at least 0"]),
    ("methods", "{scrub: {alpha: {low: x, high: 1}}}", ["methods.scrub.alpha.low", "'x' is not allowed", "a number"]),
    ("methods", "{scrub: {steps: {low: 1, high: 2.5}}}", ["methods.scrub.steps.high", "2.5 is not allowed", "an integer"]),
    ("methods", "{scrub: {sampler: tep}}", ["methods.scrub.sampler", "'tep' is not allowed", "Did you mean 'tpe'?"]),
    ("methods", "{scrub: {sampler: grid}}", ["methods.scrub.alpha", "a grid needs values"]),
    ("methods", "{scrub: {trials: 0}}", ["methods.scrub.trials", "0 is not allowed", "at least 1"]),
    ("methods", "{scrub: {trials: many}}", ["methods.scrub.trials", "'many' is not allowed", "an integer"]),
    ("methods", "{scrub: {keep: best}}", ["methods.scrub.keep", "'best' is not allowed", "Allowed: best_on_test, last"]),
    ("methods", "{scrub: {alpha: 1, trials: 3}}", ["methods.scrub.trials", "there is nothing to sample here"]),
    ("methods", "{scrub: {points: [{alpha: 1}], trials: 3}}", ["methods.scrub.trials", "there is nothing to sample here"]),
    ("methods", "{scrub: {alpha: [1, 2], sampler: grid, trials: 3}}", ["methods.scrub.trials", "nothing to sample here"]),
    ("methods", "{no_unlearning: {trials: 3}}", ["methods.no_unlearning.trials", "nothing to sample here"]),
    ("methods", "{scrub: {points: []}}", ["methods.scrub.points", "a list of mappings is needed"]),
    ("methods", "{scrub: {points: [3]}}", ["methods.scrub.points", "a list of mappings is needed"]),
    ("methods", "{scrub: {points: {alpha: 1}}}", ["methods.scrub.points", "a list of mappings is needed"]),
    ("methods", "{scrub: {points: [{}, {alhpa: 1}]}}", ["methods.scrub.points[1].alhpa", "unknown", "Did you mean 'alpha'?"]),
    ("methods", "{scrub: {points: [{alpha: x}]}}", ["methods.scrub.points[0].alpha", "'x' is not allowed"]),
    ("methods", "{scrub: {points: [{alpha: [1, 2]}]}}", ["methods.scrub.points[0].alpha", "[1, 2] is not allowed"]),
    ("methods", "{scrub: {alpha: [1, 2], points: [{}]}}", ["methods.scrub.alpha", "a range beside explicit points"]),
    ("methods", "{exact_unlearning: {k: 3}}", ["methods.exact_unlearning.k", "3 is not allowed", "1, 2, 4, 5, 7, 8, 9"]),
    ("methods", "{exact_unlearning: {k: [1, 3]}}", ["methods.exact_unlearning.k", "3 is not allowed"]),
    ("methods", "{exact_unlearning: {points: [{k: 1}, {k: 6}]}}", ["methods.exact_unlearning", "6 is not allowed"]),
    ("methods", "{exact_unlearning: {k: {low: 1, high: 4}}}", ["methods.exact_unlearning.k", "3 is not allowed"]),
    ("methods", "{ssd: {selection_share: 0.1, selection_weight: 3}}", ["methods.ssd.selection_share", "null for the other"]),
    ("methods", "{ssd: {selection_weight: null}}", ["methods.ssd.selection_share", "give selection_share or selection_weight"]),
    ("methods", "{ssd: {selection_share: 0}}", ["methods.ssd.selection_share", "0 is not allowed", "above 0 and at most 1"]),
    ("methods", f"{{{LISTING}: {{}}}}", ["the hyperparameter 'needed' is missing", "an integer"]),
    (
        "methods",
        f"{{{LISTING}: {{needed: 1, weights: [1]}}}}",
        [".weights", "[1] is not allowed", "a list of a number, a number"],
    ),
    ("methods", f"{{{LISTING}: {{needed: 1, mode: 3}}}}", [".mode", "3 is not allowed", "a text"]),
    ("methods", f"{{{LISTING}: {{needed: 1, flag: 1}}}}", [".flag", "1 is not allowed", "true or false"]),
    # search and runtime
    (
        "search",
        "{sampler: pte}",
        ["search.sampler", "'pte' is not allowed", "Allowed: gp, grid, nsga2, qmc, random, tpe", "Did you mean 'tpe'?"],
    ),
    ("search", "{sampelr: tpe}", ["search.sampelr", "unknown setting", "Did you mean 'sampler'?"]),
    ("search", "{objective: orakle}", ["search.objective", "'orakle' is not allowed", "Did you mean 'oracle'?"]),
    ("search", "{trials: 0}", ["search.trials", "0 is not allowed", "at least 1"]),
    ("search", "{lag: 0}", ["search.lag", "0 is not allowed", "at least 1"]),
    ("search", "{defender: 1}", ["search.defender", "1 is not allowed", "true or false"]),
    ("search", "[tpe]", ["['tpe'] is not allowed. A mapping is needed"]),
    ("search", "[]", ["[] is not allowed. A mapping is needed"]),
    ("search", "false", ["False is not allowed. A mapping is needed"]),
    (
        "runtime",
        "{gpus_per_trial: some}",
        ["runtime.gpus_per_trial", "'some' is not allowed", "Allowed: a number at least 0.001 and at most 1, auto"],
    ),
    ("runtime", "{workers: 0}", ["runtime.workers", "0 is not allowed", "at least 1"]),
    ("runtime", "{device: gpu}", ["runtime.device", "'gpu' is not allowed", "Allowed: auto, cpu, cuda"]),
    ("runtime", "{tracker: mlfow}", ["runtime.tracker", "'mlfow' is not allowed", "Did you mean 'mlflow'?"]),
    ("runtime", "{output: 3}", ["runtime.output", "3 is not allowed", "a text"]),
    ("runtime", "{output: ''}", ["runtime.output", "'' is not allowed. Allowed: a folder or a URI"]),
    ("runtime", "{storage: ''}", ["runtime.storage", "'' is not allowed. Allowed: a folder or a URI"]),
    ("runtime", "{trial_time_limit: 5}", ["runtime.trial_time_limit", "Allowed: a text or null, like '24h'."]),
    # numbers too large for any computation
    ("train", f"{{steps: {'1' * 400}}}", ["train.steps", "is not allowed"]),
    ("train", f"{{lr: {'1' * 400}}}", ["train.lr", "is not allowed"]),
]


@pytest.mark.parametrize(
    ("section", "given", "expected"), ONE_FAULT, ids=[f"{section}: {given[:60]}" for section, given, _ in ONE_FAULT]
)
def test_a_fault_is_one_message_with_path_line_what_was_given_and_what_is_allowed(section, given, expected):
    faults = faults_of(**{section: given})
    assert len(faults) == 1, faults
    assert faults[0].startswith(section), "the message starts with the YAML path"
    assert f" (line {LINES.get(section, NEXT_LINE)}): " in faults[0]
    for part in expected:
        assert part in faults[0]


def test_an_image_too_small_for_the_model_is_refused():
    faults = faults_of(dataset=SMALL, manipulation="{name: backdoor, size: 10}")
    assert faults == ["model (line 3): resnet9 takes images of at least 11 x 11 pixels, not 8 x 8"]


@pytest.mark.parametrize("section", list(PLAIN))
def test_a_missing_section_is_named(section):
    assert f"the section {section!r} is missing" in faults_of(**{section: None})


@pytest.mark.parametrize("section", ["dataset", "model", "manipulation", "methods", "detection"])
def test_a_section_left_empty_is_refused(section):
    assert any(fault.startswith(section) or repr(section) in fault for fault in faults_of(**{section: ""}))


@pytest.mark.parametrize("text", ["", "3", "[a, b]", "just a text", "null"])
def test_a_file_that_is_no_mapping_is_refused(text):
    assert faults_in(text) == ["a sweep file is a mapping: name, dataset, model, manipulation, methods, ..."]


# ----------------------------------------------------------------------------------------------- many faults, and places


def test_all_faults_of_a_file_are_reported_at_once():
    faults = faults_of(
        sede="1",
        name="'../x'",
        dataset="cifar",
        model="{name: resnet9, width: 0}",
        manipulation="{name: backdoor, size: 0, targte: 3}",
        methods="{scurb: {}, scrub: {alhpa: 1, steps: x}, ssd: {selection_share: 0.1, selection_weight: 3}}",
        train="{lr: 0, momentum: 2}",
        deletion_fractions="[0.5, x]",
        seeds="[-1]",
        search="{sampler: pte}",
        runtime="{device: gpu}",
    )
    paths = {fault.split(" ")[0].rstrip(":") for fault in faults}
    assert paths == {
        "sede",
        "name",
        "dataset",
        "model.width",
        "manipulation.size",
        "manipulation.targte",
        "methods.scurb",
        "methods.scrub.alhpa",
        "methods.scrub.steps",
        "methods.ssd.selection_share",
        "train.lr",
        "train.momentum",
        "deletion_fractions[1]",
        "seeds[0]",
        "search.sampler",
        "runtime.device",
    }
    assert len(faults) == len(paths)


def test_the_line_is_that_of_the_value_in_a_file_of_many_lines():
    text = text_of(methods=None) + "methods:\n  scrub:\n    alpha:\n      low: 1\n      high: x\n    points: 3\n"
    faults = faults_in(text)
    assert [fault.split(":")[0] for fault in faults] == ["methods.scrub.alpha.high (line 9)", "methods.scrub.points (line 10)"]


@pytest.mark.parametrize(
    ("detection", "fractions"), [("single_sample", "[0.1, 0.5]"), ("{name: from_file, file: found.npy}", "[0.5, 0.52, 0.1]")]
)
def test_what_a_detection_finds_is_what_it_says_it_finds(detection, fractions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("found.npy", np.arange(1000))
    given = {"deletion_fractions": fractions, "manipulation": "{name: backdoor, size: 4}"}
    assert parsed(detection=detection, **given).detections
    both = faults_of(detection=f"[{detection}, uniform]", **given)
    assert both and all("of 4 manipulated samples uniform finds" in fault for fault in both)


def test_a_list_of_samples_is_taken_in_parts_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("found.npy", np.arange(10))
    faults = faults_of(detection="{name: from_file, file: found.npy}", deletion_fractions="[0.5, 0.52, 0.96, 1.0]")
    assert [fault.partition(": ")[2] for fault in faults] == [
        "at 0.52 of 100 manipulated samples from_file finds the same 5 samples as at 0.5",
        "at 1.0 of 100 manipulated samples from_file finds the same 10 samples as at 0.96",
    ]


@pytest.mark.parametrize(("fractions", "place"), [("[x, 2]", "deletion_fractions[1]"), ("[2, 0.001]", "deletion_fractions[1]")])
def test_the_place_of_a_fraction_is_right_behind_another_fault(fractions, place):
    assert faults_of(deletion_fractions=fractions)[1].startswith(place)


def test_each_of_several_points_and_sizes_is_checked():
    faults = faults_of(manipulation="{name: backdoor, size: [100, 7000, 8000]}")
    assert ["7000" in fault or "8000" in fault for fault in faults] == [True, True]
    faults = faults_of(deletion_fractions="[0.01, 0.1]", manipulation="{name: backdoor, size: [5, 100]}")
    assert faults == [
        f"deletion_fractions[{index}] (line {NEXT_LINE}): at {fraction} of 5 manipulated samples uniform finds nothing, an empty "
        "deletion set"
        for index, fraction in enumerate(["0.01", "0.1"])
    ]


def test_a_duplicate_key_is_a_fault_wherever_it_is():
    text = text_of(methods=None) + "seeds: [1]\nmethods:\n  scrub: {steps: 1, steps: 2}\nseeds: [2]\n"
    faults = faults_in(text)
    assert {fault.split(":")[0] for fault in faults} == {
        "seeds (line 5)",
        "seeds (line 8)",
        "methods.scrub.steps (line 7)",
    }
    assert all("this key is given more than once" in fault for fault in faults)
    assert len(faults) == 3, "one is of two keys in one line"


@pytest.mark.parametrize(
    ("written", "read"), [("0x10", 16), ("0", 0), ("07", 7), ("+7", 7), ("'1_0'", "1_0"), ("010.5", 10.5), ("1e3", 1e3)]
)
def test_numbers_that_are_what_they_look_like_are_read(written, read):
    assert yaml_file.parse(f"value: {written}", "it").value == {"value": read}


def test_a_key_that_overrules_a_merged_one_is_no_duplicate():
    text = text_of(methods="{scrub: {<<: {steps: 3}, steps: 4}}")
    assert config.parse(text).methods[0].fixed["steps"] == 4


# ------------------------------------------------------------------------------------------------- not YAML, not a file


@pytest.mark.parametrize(
    "text",
    [
        "name: [1, 2",
        "name: 'open",
        "a: b: c",
        "\tname: x",
        "name: *nowhere",
        "name: !!python/name:os.system",
        "name: !mine x",
        "name: x\n---\nname: y",
        "name: x\x00",
        "name: \x07",
        "seeds: 2001-99-99",
        "seeds: 0x_",
        "seeds: !!int many",
        "seeds: !!int ''",
        "seeds: !!float many",
        "seeds: !!bool maybe",
        "seeds: !!timestamp soon",
        f"seeds: {'1' * 5000}",
        "seeds: &a [*a]",
        "seeds: &a {b: *a}",
        "seeds: " + "[" * 3000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_what_is_not_yaml_is_a_fault_of_the_file(text):
    faults = faults_in(text)
    assert len(faults) == 1
    assert "\n" not in faults[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: 1\nb: [1, 2",
            "line 2, column 9: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence, line 2)",
        ),
        ("a: 1\n b: 2", "line 2, column 3: mapping values are not allowed here"),
        ("a: {b: 1\n\nc: 2", "line 3, column 2: expected ',' or '}', but got ':' (while parsing a flow mapping, line 1)"),
        ("name: *nowhere", "line 1, column 7: found undefined alias 'nowhere'"),
        ("a: 1\nname: \x07", "line 2, column 7: character #x0007: special characters are not allowed"),
        ("a: !s3://me:secret@x 1", "line 1, column 4: could not determine a constructor for the tag '!s3://..."),
    ],
)
def test_where_and_why_it_is_not_yaml_is_said_once(text, said):
    assert faults_in(text) == [f"not YAML: {said}"]


def test_a_range_that_is_wrong_is_not_said_to_be_none():
    assert len(faults_of(methods="{scrub: {alpha: {low: 2, high: 1}, trials: 2}}")) == 1


def test_a_text_that_yaml_cannot_read_runs_nothing(tmp_path):
    faults_in(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert not (tmp_path / "made").exists()


def test_the_message_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text_of(seeds="[]"))
    with pytest.raises(Faults) as caught:
        config.load(file)
    assert str(caught.value) == f"{file}: 1 fault\n  seeds (line {NEXT_LINE}): an empty list: give at least one value"


def test_a_file_that_cannot_be_read_is_one_message(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    for path, reason in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "latin.yaml", "utf-8"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            config.load(path)
        assert str(caught.value).startswith(f"{path} cannot be read: ")


# ------------------------------------------------------------------------------------------ what the objective needs


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"deletion_fractions": "[0.1, 0.5]"}, "at deletion fraction 0.5 there are 10"),
        (
            {"deletion_fractions": "[0.5, 1.0]", "methods": "{scrub: {points: [{}, {alpha: 1}]}}"},
            "at deletion fraction 1 there are 20",
        ),
        (
            {"manipulation": "{name: backdoor, size: 200}", "search": "{objective: defender, scope: across_fractions}"},
            "at deletion fraction 0.1 there are 20",
        ),
        (
            {"manipulation": "[{name: backdoor, size: 10}, {name: backdoor, size: 22}]", "deletion_fractions": "1.0"},
            "at deletion fraction 1 there are 22",
        ),
    ],
    ids=["a fraction", "given points", "all fractions together", "several manipulations"],
)
def test_an_objective_that_can_choose_nowhere_is_a_fault_before_anything_runs(sections, expected):
    few = {"manipulation": "{name: backdoor, size: 20}", "search": "{objective: defender}", **sections}
    (fault,) = faults_of(**few)
    assert re.match(r"search\.objective \(line \d+\): defender needs at least 23 samples found; ", fault)
    assert f"{expected}. Possible here: published, oracle, oracle_validation, rem_proxy, potion_stop" in fault


@pytest.mark.parametrize(
    "sections",
    [
        {"methods": "{scrub: {alpha: 1}}"},
        {"search": "{objective: rem_proxy}"},
        {"search": "{defender: true}"},
        {"manipulation": "{name: backdoor, size: 23}"},
        {"manipulation": "[{name: backdoor, size: 20}, {name: backdoor, size: 200}]"},
    ],
    ids=["nothing to choose", "another objective", "only asked for besides", "enough", "enough somewhere"],
)
def test_an_objective_that_can_choose_somewhere_is_no_fault(sections):
    parsed(**{"manipulation": "{name: backdoor, size: 20}", "search": "{objective: defender}"} | sections)


def test_an_objective_that_needs_true_labels_is_a_fault_where_none_are_known(tmp_path):
    (tmp_path / "rows.csv").write_text("index\n" + "".join(f"{row}\n" for row in range(30)))
    own = f"{{name: from_file, file: {tmp_path / 'rows.csv'}}}"
    (fault,) = faults_of(manipulation=own)
    why = (
        "oracle_validation needs true labels, which from_file does not know here. Possible here: defender, rem_proxy, potion_stop"
    )
    assert fault == f"search.objective: {why}"
    (fault,) = faults_of(manipulation=own, search="{objective: oracle}")
    assert fault.startswith(f"search.objective (line {NEXT_LINE}): oracle needs true labels")
    (fault,) = faults_of(manipulation=own, deletion_fractions="0.1")
    assert fault.endswith("Possible here: rem_proxy, potion_stop")
    for fine in ({"search": "{objective: defender}"}, {"methods": "{scrub: {alpha: 1}}"}):
        parsed(manipulation=own, **fine)
    parsed(manipulation=f"[{own}, {PLAIN['manipulation']}]")


def test_it_is_told_with_all_other_faults():
    faults = faults_of(manipulation="{name: backdoor, size: 20}", search="{objective: defender}", seeds="x", detection="uniform")
    assert [fault.split()[0].rstrip(":") for fault in faults] == ["seeds", "search.objective"]


# ----------------------------------------------------------------------------------------- restrictions and one method


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        text_of(methods="{scrub: {}, ssd: {}, no_unlearning: {}}", deletion_fractions="[0.1, 0.5, 1.0]", seeds="[0, 1]")
    )
    return path


def restricted(file, only=(), seeds=()):
    sweep = config.load(file, only=only, seeds=seeds)
    return [plugins.name_of(plan.cls) for plan in sweep.methods], sweep.fractions, sweep.seeds


def test_without_restrictions_everything_is_there(file):
    assert restricted(file) == (["scrub", "ssd", "no_unlearning"], (0.1, 0.5, 1.0), (0, 1))


def test_methods_fractions_and_seeds_can_be_restricted(file):
    assert restricted(file, ["method=ssd"])[0] == ["ssd"]
    assert restricted(file, ["method=ssd,method=scrub", "fraction=0.5"])[:2] == (["ssd", "scrub"], (0.5,))
    assert restricted(file, ["seed=0"])[2] == (0,)


def test_a_part_from_which_the_objective_cannot_choose_runs_as_it_does_in_the_whole(file):
    """Of 100 samples 10 are found at 0.1: too few to hold a fifth of them out, but the other fractions have enough."""
    file.write_text(f"{file.read_text()}\nsearch: {{objective: defender}}\n")
    assert restricted(file, ["fraction=0.5"])[1] == (0.5,)
    assert restricted(file, ["method=no_unlearning", "fraction=0.1"])[0] == ["no_unlearning"]  # there is nothing to choose
    assert restricted(file, ["fraction=0.1"])[1] == (0.1,)


def test_an_objective_that_can_choose_on_one_of_several_manipulations_is_none_that_cannot():
    """The one of which the truth is known is too small for it, the other is not."""
    text = text_of(search="{objective: defender}", deletion_fractions="[0.1]")
    few, many = "{name: backdoor, size: 20}", "{name: backdoor, size: 400}"
    assert config.parse(text.replace("{name: backdoor, size: 100}", f"[{few}, {many}]")).search.objective == "defender"
    with pytest.raises(Faults, match=r"defender needs at least 23 samples found; at deletion fraction 0\.1 there are 2"):
        config.parse(text.replace("{name: backdoor, size: 100}", few))


def test_a_restriction_that_would_make_other_searches_is_refused(file):
    text = file.read_text()
    with pytest.raises(UserError, match="the search is on seed 0"):
        restricted(file, ["seed=1"])
    file.write_text(f"{text}\nsearch: {{seeds: all}}\n")
    assert restricted(file, ["seed=1"])[2] == (1,)
    for setting in ("scope: across_fractions", "warm_start: neighbour"):
        file.write_text(f"{text}\nsearch: {{{setting}}}\n")
        with pytest.raises(UserError, match=setting):
            restricted(file, ["fraction=0.5"])


def test_controls_belong_to_no_method(file):
    file.write_text(file.read_text() + "\ncontrols: {never_manipulated: true, unlearning_seeds: 2}\n")
    assert config.load(file).controls.originals == ("never_manipulated",)
    only = config.load(file, only=["method=ssd"]).controls
    assert (only.originals, only.unlearning_seeds) == ((), 2)


@pytest.mark.parametrize("written", ["1", "1.0", "1.00"])
def test_a_fraction_is_recognised_however_it_is_written(file, written):
    assert restricted(file, [f"fraction={written}"])[1] == (1.0,)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_further_seed_that_no_table_holds_is_refused(file, seed):
    with pytest.raises(UserError, match=rf"--seeds {seed} is not allowed\. Allowed: integers, not negative, below 2\^63"):
        restricted(file, seeds=(seed,))
    assert restricted(file, seeds=(2**63 - 1,))[2] == (0, 1, 2**63 - 1)


def test_further_seeds_are_added_once(file):
    assert restricted(file, seeds=(7, 1, 7))[2] == (0, 1, 7)
    assert restricted(file, ["seed=0"], seeds=(7,))[2] == (0, 7)


def test_a_further_seed_can_be_the_only_one(file):
    file.write_text(f"{file.read_text()}\nsearch: {{seeds: all}}\n")
    assert restricted(file, ["seed=7"], seeds=(7,))[2] == (7,)
    with pytest.raises(UserError, match=r"--only seed=8: '8' is no seed of .*Allowed: 0, 1, 7"):
        restricted(file, ["seed=8"], seeds=(7,))


@pytest.mark.parametrize(
    ("only", "seeds"),
    [
        ([], (2, 3)),
        (["method=ssd"], ()),
        (["method=ssd,method=scrub", "fraction=0.5", "seed=0"], (2, 3)),
        (["fraction=1,fraction=0.1,fraction=1"], ()),
        (["method=plugin_text:Mine"], (1,)),
    ],
)
def test_the_text_asks_for_what_was_asked_for(file, only, seeds):
    imports = "from dataclasses import dataclass\nfrom cu_ray.methods.no_unlearning import NoUnlearning\n\n\n"
    (file.parent / "plugin_text.py").write_text(f"{imports}@dataclass(frozen=True)\nclass Mine(NoUnlearning):\n    version = 1\n")
    methods = "{scrub: {alpha: [1e-3, 0.1]}, ssd: {trials: 3}, no_unlearning:, plugin_text:Mine: {}}"
    controls = "{never_manipulated: true, unlearning_seeds: 2}"
    file.write_text(text_of(methods=methods, deletion_fractions="[0.1, 0.5, 1]", seeds="[0, 1]", controls=controls))
    whole, asked = config.load(file), config.load(file, only=only, seeds=seeds)
    again = config.parse(asked.text)
    for name in ("methods", "fractions", "seeds", "controls", "search", "datasets", "manipulations", "trains"):
        assert getattr(again, name) == getattr(asked, name), name
    assert again.text == asked.text != whole.text
    assert config.load(file, only=["seed=0", "seed=1"]).text == whole.text  # nothing is left out


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("methdo=ssd", "'methdo' cannot be restricted. Allowed: fraction, method, seed. Did you mean 'method'?"),
        ("ssd", "'ssd' cannot be restricted"),
        ("method=sdd", "'sdd' is no method of"),
        ("method=bad_teaching", "Allowed: no_unlearning, scrub, ssd"),
        ("fraction=0.2", "'0.2' is no fraction of"),
        ("seed=9", "'9' is no seed of"),
        ("method=", "'' is no method of"),
    ],
)
def test_a_restriction_to_nothing_is_refused(file, wish, expected):
    with pytest.raises(UserError) as caught:
        config.load(file, only=[wish])
    assert f"--only {wish}: " in str(caught.value)
    assert expected in str(caught.value)


def test_one_method_is_read_for_a_sweep():
    plan = config.parse_methods("ssd: {selection_weight: 3, relative_dampening: 0.5}", "cu-ray try", parsed())
    assert plan.cls is plugins.find("methods", "ssd")
    assert plan.fixed["selection_weight"] == 3.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sdd: {}", "Did you mean 'ssd'?"),
        ("ssd: {selection_share: x}", "'x' is not allowed"),
        ("exact_unlearning: {k: 3}", "3 is not allowed"),
        ("[]", "a mapping is needed"),
        ("", "a mapping is needed"),
    ],
)
def test_faults_of_one_method_name_where_they_were_given(text, expected):
    with pytest.raises(Faults) as caught:
        config.parse_methods(text, "cu-ray try", parsed())
    assert str(caught.value).startswith("cu-ray try: 1 fault\n")
    assert expected in str(caught.value)


@pytest.mark.timeout(3)
@pytest.mark.parametrize("name", ["a[b", "a.b[", "[", "a]b"])
def test_a_method_name_with_a_bracket_is_refused_and_not_searched_for_ever(name):
    with pytest.raises(Faults, match="is not among the methods"):
        config.parse_methods(f"'{name}': {{}}", "cu-ray try", parsed())


# ------------------------------------------------------------------------------------------------------- anything at all

THOROUGH = settings(derandomize=True, database=None, deadline=None, max_examples=150)

NAMES = [
    "name",
    "dataset",
    "model",
    "manipulation",
    "train",
    "detection",
    "deletion_fractions",
    "seeds",
    "methods",
    "search",
    "runtime",
    "size",
    "patch",
    "target",
    "classes",
    "width",
    "steps",
    "lr",
    "alpha",
    "k",
    "low",
    "high",
    "log",
    "num",
    "points",
    "trials",
    "sampler",
    "keep",
    "scrub",
    "ssd",
    "exact_unlearning",
    "backdoor",
    "interclass_confusion",
    "resnet9",
    "uniform",
    "fashion_mnist_small",
    "tpe",
    "grid",
    "selection_share",
    "selection_weight",
]
texts = st.text(max_size=6) | st.sampled_from(NAMES)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates() | st.binary(max_size=3)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(0, 9), inner, max_size=4),
    max_leaves=15,
)


def understood_or_refused(text: str) -> None:
    """Reading either works or ends in a UserError: any other error fails the test."""
    try:
        config.parse(text)
    except UserError as error:
        assert str(error)


@THOROUGH
@given(anything)
@example({"methods": {"scrub": {"points": [{}]}}})
def test_any_value_is_a_sweep_or_a_users_mistake(value):
    understood_or_refused(yaml.safe_dump(value))


@THOROUGH
@given(st.sampled_from([*PLAIN, "train", "detection", "deletion_fractions", "seeds", "search", "runtime"]), anything)
def test_any_value_of_a_section_is_understood_or_a_users_mistake(section, value):
    plain = yaml.safe_load(text_of())
    understood_or_refused(yaml.safe_dump({**plain, section: value}))


@THOROUGH
@given(st.sampled_from(["scrub", "ssd", "exact_unlearning"]), st.dictionaries(st.sampled_from(NAMES), anything, max_size=4))
def test_any_hyperparameters_are_understood_or_a_users_mistake(name, given):
    understood_or_refused(yaml.safe_dump({**yaml.safe_load(text_of()), "methods": {name: given}}))


@THOROUGH
@given(st.text(max_size=30))
def test_any_text_is_a_users_mistake(text):
    with pytest.raises(UserError):
        config.parse(text)


@THOROUGH
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 20), st.booleans())
def test_a_grid_runs_from_low_to_high_and_rises(low, high, num, log):
    low, high = sorted((low, high))
    if high < low * 1.001:
        return
    values = spaced(low, high, num, log=log, integer=False)
    assert values == sorted(set(values))
    assert len(values) <= num
    assert values[0] == pytest.approx(low, rel=1e-5)
    assert values[-1] == pytest.approx(high, rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(
    ("runtime", "variable", "expected"),
    [
        (None, None, "~/.cache/cu-ray"),
        (None, "/shared/cu-ray", "/shared/cu-ray"),
        ("{device: cpu}", "s3://bucket/cu-ray", "s3://bucket/cu-ray"),
        ("{storage: mine}", "/shared/cu-ray", "mine"),
        (None, "", "~/.cache/cu-ray"),
    ],
)
def test_originals_lie_where_the_file_says_else_where_the_machine_says(runtime, variable, expected, monkeypatch):
    monkeypatch.delenv(config.STORAGE_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(config.STORAGE_VARIABLE, variable)
    sweep = parsed(runtime=runtime)
    assert sweep.runtime.storage == expected
    assert config.with_runtime(sweep, storage="elsewhere").runtime.storage == "elsewhere"


def test_a_storage_of_the_machine_that_cannot_be_one_is_told_by_its_variable(monkeypatch):
    monkeypatch.setenv(config.STORAGE_VARIABLE, "ftp://there")
    (fault,) = faults_of()
    assert "runtime.storage" in fault
    assert "CU_RAY_STORAGE of the environment: ftp:// is no place that can be written to" in fault
