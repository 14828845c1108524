"""What makes two runs the same run: canonical JSON, keys, seeds, and keys that must not change unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_ray import config
from cu_ray.datasets.cifar10 import Cifar10
from cu_ray.detections.uniform import Uniform
from cu_ray.identity import added, canonical_json, generator_for, key_of, mapping_of, seed_for
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.methods.scrub import Scrub
from cu_ray.models.resnet9 import ResNet9
from cu_ray.plugins import Bound
from cu_ray.sweep import plan
from cu_ray.sweep.hardware import Hardware
from cu_ray.types import Normalisation, OriginalSpec, Setting, TrialSpec
from tests.golden import rebuild

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=100)

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=12
)


# ------------------------------------------------------------------------------------------------------ canonical JSON


@dataclass(frozen=True)
class Knobs:
    number: float = 1.0
    noted: Annotated[float, Bound(low=0)] = 1.0
    maybe: float | None = None
    whole: int = 1
    either: int | str = 1


@dataclass(frozen=True)
class MoreKnobs(Knobs):
    later: float = added(0.5)


@dataclass(frozen=True)
class UnmarkedKnobs(Knobs):
    later: float = 0.5


@REPRODUCIBLE
@given(values)
def test_canonical_json_says_all_there_is(value):
    assert json.loads(canonical_json(value)) == value


@REPRODUCIBLE
@given(st.dictionaries(st.text(max_size=4), values, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_names_is_irrelevant(mapping, rng):
    items = list(mapping.items())
    rng.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(mapping)


def test_lists_and_tuples_are_the_same_and_their_order_counts():
    assert canonical_json([1, "a"]) == canonical_json((1, "a")) == '[1,"a"]'
    assert canonical_json([1, "a"]) != canonical_json(["a", 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_numbers_that_are_not_finite_are_refused(value):
    for place in (value, [value], {"a": {"b": value}}, Knobs(number=value)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json(place)


def test_numpy_numbers_are_plain_numbers():
    assert canonical_json([np.int64(3), np.float64(0.5), np.bool_(True)]) == canonical_json([3, 0.5, True])


@given(st.integers(-(2**53), 2**53))
@REPRODUCIBLE
def test_an_integer_in_a_float_field_is_that_float(number):
    assert key_of(Knobs(number=number)) == key_of(Knobs(number=float(number)))
    assert key_of(Knobs(noted=number)) == key_of(Knobs(noted=float(number)))
    assert key_of(Knobs(maybe=number)) == key_of(Knobs(maybe=float(number)))


def test_numbers_in_a_list_field_of_floats_are_floats():
    assert Normalisation((0,), (1,)) == Normalisation((0.0,), (1.0,))
    assert key_of(Normalisation((0,), (1,))) == key_of(Normalisation((0.0,), (1.0,)))


def test_integers_texts_truth_values_and_nothing_stay_what_they_are():
    assert mapping_of(Knobs()) == {"number": 1.0, "noted": 1.0, "maybe": None, "whole": 1, "either": 1}
    assert canonical_json(Knobs()) == '{"either":1,"maybe":null,"noted":1.0,"number":1.0,"whole":1}'
    assert len({key_of(Knobs(either=1)), key_of(Knobs(either="1")), key_of(Knobs(either=True))}) == 3


def test_an_added_field_is_left_out_while_it_has_its_default():
    assert mapping_of(MoreKnobs()) == mapping_of(Knobs())
    assert mapping_of(MoreKnobs(later=0.75)) == {**mapping_of(Knobs()), "later": 0.75}


def test_a_later_field_that_is_not_marked_is_in_the_key_at_once():
    assert mapping_of(UnmarkedKnobs()) == {**mapping_of(Knobs()), "later": 0.5}


@pytest.mark.parametrize("value", [{1, 2}, object(), np.zeros(2)])
def test_what_json_does_not_know_is_refused(value):
    with pytest.raises(TypeError, match="not JSON serializable"):
        canonical_json([value])


# --------------------------------------------------------------------------------------------------------------- seeds


@REPRODUCIBLE
@given(st.text(max_size=5), st.lists(values, max_size=3))
def test_a_seed_has_63_bits_and_depends_on_its_identity_alone(purpose, identity):
    assert 0 <= seed_for(purpose, *identity) < 2**63
    assert seed_for(purpose, *identity) == seed_for(purpose, *identity)


def test_seeds_differ_by_purpose_and_by_every_part_of_the_identity():
    seeds = [
        seed_for("poison", "a", 1),
        seed_for("detect", "a", 1),
        seed_for("poison", "b", 1),
        seed_for("poison", "a", 2),
        seed_for("poison", "a", "1"),
        seed_for("poison", "a"),
        seed_for("poison", "a", 1, None),
        seed_for("poison", ["a", 1]),
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_is_the_same_in_another_process():
    code = "from cu_ray.identity import seed_for; print(seed_for('poison', {'b': [1, 0.5], 'a': None}))"
    environment = {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(other.stdout) == seed_for("poison", {"a": None, "b": [1, 0.5]})


def test_a_generator_belongs_to_its_identity_and_not_to_the_global_one():
    state = np.random.get_state()
    first = generator_for("poison", "a").random(5)
    np.random.random()
    assert np.array_equal(generator_for("poison", "a").random(5), first)
    assert not np.array_equal(generator_for("poison", "b").random(5), first)
    np.random.set_state(state)
    generator_for("poison", "a").random(5)
    assert all(np.array_equal(was, now) for was, now in zip(state, np.random.get_state(), strict=True))


# ---------------------------------------------------------------------------------------------------------- golden keys


@pytest.mark.parametrize("kind", ["originals", "trials", "studies"])
def test_keys_are_those_of_the_golden_file(kind):
    golden, now = json.loads(rebuild.FILE.read_text(encoding="utf-8"))[kind], rebuild.keys()[kind]
    changed = [name for name in {**golden, **now} if golden.get(name) != now.get(name)]
    assert not changed, (
        f"the keys of these {kind} have changed: {changed}. Everybody's results would be done again. "
        "If that is meant, run `python tests/golden/rebuild.py` and say why in the commit."
    )


def test_golden_specs_all_have_keys_of_their_own():
    for by_name in rebuild.keys().values():
        assert len(set(by_name.values())) == len(by_name)


@pytest.mark.parametrize("name", list(rebuild.trials()))
def test_a_trial_described_and_built_again_is_the_same_trial(name):
    spec = rebuild.trials()[name]
    described = json.loads(json.dumps(spec.describe()))
    assert TrialSpec.build(described) == spec
    assert TrialSpec.build(described).key == spec.key
    assert described["original_key"] == spec.original.key


def test_the_key_of_a_setting_does_not_tell_where_its_images_came_from():
    elsewhere = replace(rebuild.setting(), dataset=Cifar10(folder="/elsewhere"))
    assert OriginalSpec(elsewhere).key == OriginalSpec(rebuild.setting()).key


# ----------------------------------------------------------------------------------------- what changes a key, and what not


def trial(setting: Setting, method=None, **more) -> TrialSpec:
    return TrialSpec(OriginalSpec(setting), Uniform(), **{"deletion_size": 10, "method": method or Scrub(), **more})


BASE = rebuild.setting()
OTHER_SETTINGS = {
    "content hash": replace(BASE, content_hash="1" * 64),
    "model": replace(BASE, model=ResNet9(width=8)),
    "manipulation": replace(BASE, manipulation=RandomLabelSwap(100)),
    "manipulation size": replace(BASE, manipulation=Backdoor(101, target=0)),
    "target": replace(BASE, manipulation=Backdoor(100, target=1)),
    "patch": replace(BASE, manipulation=Backdoor(100, 4, 0)),
    "seed": replace(BASE, seed=1),
    **{
        f"train.{name}": replace(BASE, train=replace(BASE.train, **{name: value}))
        for name, value in {
            "steps": 4001,
            "lr": 0.026,
            "batch_size": 256,
            "momentum": 0.5,
            "weight_decay": 0,
            "keep": "best_on_test",
            "precision": "bf16",
        }.items()
    },
}
OTHER_TRIALS = {
    "method": trial(BASE, rebuild.trials()["ssd"].method),
    "hyperparameter": trial(BASE, Scrub(alpha=0.2)),
    "deletion size": trial(BASE, deletion_size=11),
    "held out": trial(BASE, held_out=True),
    "keep": trial(BASE, keep="best_on_test"),
    "original variant": replace(trial(BASE), original=OriginalSpec(BASE, (("sharpness", 1),))),
}


@pytest.mark.parametrize("part", list(OTHER_SETTINGS))
def test_every_part_of_a_setting_is_in_the_keys_of_originals_and_trials(part):
    other = OTHER_SETTINGS[part]
    assert OriginalSpec(other).key != OriginalSpec(BASE).key
    assert trial(other).key != trial(BASE).key


@pytest.mark.parametrize("part", list(OTHER_TRIALS))
def test_every_part_of_a_trial_is_in_its_key(part):
    assert OTHER_TRIALS[part].key != trial(BASE).key


@pytest.mark.parametrize("part", ["model", "train.steps", "train.precision"])
def test_the_manipulated_data_depend_neither_on_the_model_nor_on_its_training(part):
    assert OTHER_SETTINGS[part].poison_identity == BASE.poison_identity


@pytest.mark.parametrize("cls", [Scrub, ResNet9, Uniform, Backdoor])
def test_a_new_version_of_a_plugin_changes_the_key(cls, monkeypatch):
    before = trial(BASE).key
    fresh = replace(BASE)  # keys are kept once computed
    monkeypatch.setattr(cls, "version", cls.version + 1)
    assert trial(fresh).key != before


def test_a_new_version_of_the_learning_code_changes_the_key(monkeypatch):
    before = trial(BASE).key
    monkeypatch.setattr("cu_ray.types.LEARNING_VERSION", 1000)
    assert trial(replace(BASE)).key != before


SWEEP = """
name: {name}
dataset: fashion_mnist_small
model: {{name: resnet9, width: 8}}
manipulation: {{name: backdoor, size: 100}}
train: {{steps: {steps}}}
deletion_fractions: {fractions}
seeds: {seeds}
methods:
  scrub: {scrub}
  no_unlearning: {{}}
search: {{sampler: {sampler}, trials: {trials}, objective: {objective}, lag: {lag}, scope: {scope}, seeds: {rule}}}
runtime: {runtime}
"""
PLAIN = {
    "name": "one",
    "steps": 100,
    "fractions": "[0.1, 1.0]",
    "seeds": "[0, 1]",
    "scrub": "{alpha: {low: 0.001, high: 10.0, log: true}}",
    "sampler": "tpe",
    "trials": 5,
    "objective": "oracle_validation",
    "lag": 4,
    "scope": "per_fraction",
    "rule": "first",
    "runtime": "{}",
}
CONTENT = plan.Source("0" * 64, 6000, 2000)


def planned(precision="fp32", **changes) -> plan.Plan:
    sweep = config.parse(SWEEP.format(**PLAIN | changes))
    sweep = Hardware("cpu", frozenset({"avx512_bf16"} if precision == "bf16" else ())).settle(sweep)
    return plan.make(sweep, dict.fromkeys(sweep.datasets, CONTENT))


def scrub_studies(**changes) -> set[str]:
    return {study.key for study in planned(**changes).studies if study.method.cls is Scrub}


def all_keys(made: plan.Plan) -> set[str]:
    points = [(study, plan.typical_point(study)) for study in made.studies]
    trials = {spec.key for study, point in points for spec in study.trials(point, study.settings)}
    return {study.key for study in made.studies} | {spec.key for spec in made.originals()} | trials


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"runtime": "{device: cpu, workers: 3, output: elsewhere, storage: /tmp/elsewhere, gpus_per_trial: 0.25}"},
        {"trials": 500},
        {"trials": 1},
        {"scrub": "{alpha: {low: 0.001, high: 10.0, log: true}, trials: 7}"},
        {"fractions": "[0.1, 1]"},
        {"scrub": "{alpha: {low: 1e-3, high: 10, log: true}}"},
    ],
)
def test_the_sweeps_name_its_runtime_and_its_budgets_are_in_no_key(changes):
    assert all_keys(planned(**changes)) == all_keys(planned())


@pytest.mark.parametrize("changes", [{"fractions": "[0.1, 0.5, 1.0]"}, {"seeds": "[0, 1, 2]"}])
def test_more_fractions_and_seeds_leave_the_keys_that_were(changes):
    assert scrub_studies() <= scrub_studies(**changes)
    assert all_keys(planned(rule="all")) & all_keys(planned(rule="all", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "random"},
        {"objective": "oracle"},
        {"lag": 2},
        {"scope": "across_fractions"},
        {"rule": "all"},
        {"steps": 101},
        {"precision": "bf16"},
        {"seeds": "[1, 0]"},
        {"fractions": "[0.2]"},
        {"scrub": "{alpha: {low: 0.001, high: 9.0, log: true}}"},
        {"scrub": "{alpha: {low: 0.001, high: 10.0}}"},
        {"scrub": "{alpha: [0.001, 10.0]}"},
        {"scrub": "{alpha: {low: 0.001, high: 10.0, log: true}, steps: 3}"},
        {"scrub": "{alpha: {low: 0.001, high: 10.0, log: true}, keep: best_on_test}"},
    ],
)
def test_what_determines_the_points_of_a_study_is_in_its_key(changes):
    assert not scrub_studies() & scrub_studies(**changes)


def test_a_methods_own_range_and_the_same_range_written_out_are_one_study():
    assert scrub_studies(scrub="{}") == scrub_studies(scrub="{alpha: {low: 0.001, high: 10, log: true}}")


def test_the_sampler_of_a_study_with_nothing_to_sample_is_in_no_key():
    assert scrub_studies(scrub="{alpha: 0.1}") == scrub_studies(scrub="{alpha: 0.1}", sampler="random")


def test_precision_auto_is_what_it_is_resolved_to():
    text = SWEEP.format(**PLAIN).replace("train: {steps: 100}", "train: {steps: 100, precision: bf16}")
    sweep = config.parse(text)
    written = plan.make(sweep, dict.fromkeys(sweep.datasets, CONTENT))
    assert all_keys(written) == all_keys(planned(precision="bf16"))
