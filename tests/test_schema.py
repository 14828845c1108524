"""The JSON Schema of a sweep file allows what `config` allows, name by name and value by value."""

from __future__ import annotations

import dataclasses
import json
import re

import jsonschema
import pytest
from click.testing import CliRunner

from cu_ray import config, plugins, yaml_file
from cu_ray.cli import main
from cu_ray.errors import UserError
from cu_ray.schema import OF_PLUGINS, OF_SETTINGS, schema
from cu_ray.types import TrainRecipe
from tests import by_hand, sweeps
from tests.test_docs import ROOT, block

FILES = sorted([*(ROOT / "sweeps").rglob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")], key=str)


@pytest.fixture(scope="module")
def validator():
    """Of what `cu-ray schema` prints."""
    said = CliRunner().invoke(main, ["schema"])
    assert said.exit_code == 0, said.output
    printed = json.loads(said.output)
    jsonschema.Draft7Validator.check_schema(printed)
    return jsonschema.Draft7Validator(printed)


def faults(validator, value):
    return [error.message for error in validator.iter_errors(value)]


# ---------------------------------------------------------------------------------------------------------- what is allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_sweep_file_of_the_repository_is_allowed(validator, file):
    assert faults(validator, yaml_file.parse(file.read_text(), str(file)).value) == []


def test_the_examples_of_the_page_and_of_the_tests_are_allowed(validator):
    for text in (
        block("docs/sweep-file.md", "yaml"),
        sweeps.SMALL.format(fractions=[1], seeds=0, trials=3, more="", storage="x"),
    ):
        assert faults(validator, yaml_file.parse(text, "text").value) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"dataset": ["cifar10", {"name": "npz", "file": "own.npz"}]},
        {"dataset": {"name": ["mnist", "cifar10"]}},
        {"dataset": "my_lab:Data", "model": {"name": "my_lab.models:Net", "anything": 3}},
        {"manipulation": {"name": "interclass_confusion", "size": [100, 200], "classes": [[3, "cat"], [0, 1]]}},
        {"manipulation": {"name": "interclass_confusion", "size": 5, "classes": [3, "cat"]}},
        {"manipulation": {"name": "from_file", "file": "bad.csv", "affected_classes": ["cat", 4, "dog"]}},
        {"train": None, "search": None, "controls": None, "runtime": None},
        {"train": [{"steps": 10}, {"steps": [20, 30], "lr": 1}]},
        {"runtime": {"gpus_per_trial": 0.5, "workers": None, "trial_time_limit": None}},
        {"evidence": True, "seeds": [0, 3], "deletion_fractions": 1},
        {"methods": {"scrub": None, "ssd": {"selection_share": None, "selection_weight": {"low": 1, "high": 9, "log": True}}}},
        {"methods": {"my_lab.fancy:Fancy": {"strength": {"low": 0, "high": 1}}}},
        {"methods": {"exact_unlearning": {"points": [{"k": None, "steps": 3}, {"k": 2, "steps": 1}], "keep": "best_on_test"}}},
        {"methods": {"scrub": {"alpha": [0.1, 1], "msteps": {"low": 1, "high": 9, "num": 3}, "sampler": "grid"}}},
        {"detection": ["uniform", {"name": "false_positives", "rate": [0.1, 0.2]}]},
    ],
    ids=str,
)
def test_what_the_page_says_can_be_given_is_allowed(validator, sections):
    assert faults(validator, {**by_hand.SWEEP, **sections}) == []


# ------------------------------------------------------------------------------------------------------------ what is not


@pytest.mark.parametrize(
    "sections",
    [
        {"methds": {}},
        {"name": "../up"},
        {"name": None},
        {"dataset": "cifar11"},
        {"dataset": "npz"},
        {"dataset": {"name": "cifar10", "foldr": "x"}},
        {"dataset": []},
        {"model": {"name": "resnet9", "width": 0}},
        {"model": {"width": 3}},
        {"manipulation": "backdoor"},
        {"manipulation": {"name": "backdoor", "size": 10, "position": "middle"}},
        {"manipulation": {"name": "interclass_confusion", "size": 5, "classes": [1, 2, 3]}},
        {"train": {"step": 3}},
        {"train": {"precision": "fp8"}},
        {"train": {"momentum": 1.5}},
        {"deletion_fractions": [0]},
        {"deletion_fractions": []},
        {"seeds": [-1]},
        {"seeds": [0.5]},
        {"methods": {}},
        {"methods": {"scrubb": {}}},
        {"methods": {"scrub": {"alhpa": 1}}},
        {"methods": {"scrub": {"alpha": "much"}}},
        {"methods": {"scrub": {"alpha": -1}}},
        {"methods": {"scrub": {"alpha": {"low": 1}}}},
        {"methods": {"scrub": {"alpha": {"low": 1, "high": 2, "logarithmic": True}}}},
        {"methods": {"scrub": {"alpha": {"low": 1, "high": 2, "num": 1}}}},
        {"methods": {"scrub": {"points": [{"alhpa": 1}]}}},
        {"methods": {"scrub": {"sampler": "best"}}},
        {"search": {"objective": "oracel"}},
        {"search": {"trials": 0}},
        {"controls": {"unlearning_seeds": 0}},
        {"original": {"weight": "x"}},
        {"runtime": {"gpus_per_trial": "all"}},
        {"runtime": {"workers": 0}},
        {"evidence": "yes"},
        {"extends": ["a.yaml"]},
    ],
    ids=str,
)
def test_wrong_names_and_values_are_rejected_as_they_are_by_the_command(validator, sections):
    value = {**by_hand.SWEEP, **sections}
    assert faults(validator, value) != []
    with pytest.raises(UserError):
        config.parse(json.dumps(value))


@pytest.mark.parametrize("section", ["name", "dataset", "model", "manipulation", "methods"])
def test_a_section_that_is_missing_is_noted_unless_another_file_may_have_it(validator, section):
    value = {name: given for name, given in by_hand.SWEEP.items() if name != section}
    assert faults(validator, value) != []
    assert (faults(validator, {**value, "extends": "other.yaml"}) == []) == (section != "name")


# -------------------------------------------------------------------------------------------------- it agrees with `config`

VALUES = [None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1.5, 100_000, "auto", "last", "bottom_right", "x", [], {}]

REFUSED = r"(is not allowed\.(?! Allowed for this model)|an empty list|a range needs)"


def setting_of(section, name, value):
    """A sweep with one setting of a section."""
    if section == "methods":
        method, _, setting = name.partition(".")
        return {**by_hand.SWEEP, "methods": {method: {setting: value}}}
    kind = OF_PLUGINS.get(section)
    if kind is None:
        return {**by_hand.SWEEP, section: {name: value}}
    plugin, _, setting = name.partition(".")
    required = {"size": 10, "file": "x.npz", "folder": "x"}
    needs = {each.name: required[each.name] for each in plugins.facts(plugins.find(kind, plugin)).values() if each.required}
    return {**by_hand.SWEEP, section: {"name": plugin, **needs, setting: value}}


def every_setting():
    for section, cls in {"train": TrainRecipe, **OF_SETTINGS}.items():
        yield from ((section, name) for name in plugins.facts(cls))
    for section, kind in {**OF_PLUGINS, "methods": "methods"}.items():
        for plugin in plugins.names(kind):
            yield from ((section, f"{plugin}.{name}") for name in plugins.facts(plugins.find(kind, plugin)))


def typed(section, name, value):
    """Whether `config` takes the value for the setting, whatever else it finds amiss."""
    where = f"methods.{name}" if section == "methods" else f"{section}.{name.rpartition('.')[2]}"
    try:
        config.parse(json.dumps(setting_of(section, name, value)))
    except UserError as error:
        return not re.search(rf"^ *{re.escape(where)}\S* \(line 1\): .*{REFUSED}", str(error), re.M)
    return True


@pytest.mark.parametrize("setting", sorted(every_setting()), ids=".".join)
def test_a_value_is_allowed_where_the_command_allows_it(validator, setting):
    section, name = setting
    allowed = {repr(value): faults(validator, setting_of(section, name, value)) == [] for value in VALUES}
    assert allowed == {repr(value): typed(section, name, value) for value in VALUES}


def test_every_section_plugin_and_setting_is_in_it():
    made = schema()
    assert set(made["properties"]) == {*config.SECTIONS, "extends"}
    assert set(made["properties"]["methods"]["properties"]) == set(plugins.names("methods"))
    for section, cls in OF_SETTINGS.items():
        assert set(made["properties"][section]["anyOf"][0]["properties"]) == {each.name for each in dataclasses.fields(cls)}
    for name, given_method in made["properties"]["methods"]["properties"].items():
        facts = plugins.facts(plugins.find("methods", name))
        assert set(given_method["anyOf"][0]["properties"]) == {*facts, *config.RESERVED}


def test_it_says_what_a_setting_is_for_an_editor_to_show():
    alpha = schema()["properties"]["methods"]["properties"]["scrub"]["anyOf"][0]["properties"]["alpha"]
    assert alpha["description"] == "a number, at least 0; searched by default: 0.001 to 10, log"
    manipulations = schema()["definitions"]["manipulation"]["anyOf"]
    patch = next(each for each in manipulations if "patch" in each.get("properties", {}))
    assert patch["properties"]["patch"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "description": "an integer, at least 1",
        "default": 3,
    }
