"""Models that a worker has just evaluated are not run again; all that could differ otherwise is."""

from __future__ import annotations

import copy

import pytest
import torch

from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.ssd import Ssd
from cu_ray.plugins import find, names
from cu_ray.stages import pipeline
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.seen import KEPT, Seen, differs_in_weights_alone
from cu_ray.stages.train import build_model
from tests.learning.recording import DATASET
from tests.protocol.tiny import MemoryStore, trial_spec

# the first three select nothing, the next two the same: with I_f / I_r above 1e9 nowhere, and above 0 wherever I_f is
POINTS = [Ssd(selection_share=None, selection_weight=weight, relative_dampening=1) for weight in (1e9, 2e9, 4e9)]
POINTS += [Ssd(selection_share=share, relative_dampening=1) for share in (0.05, 0.05000001, 0.2)]


@pytest.fixture
def evaluated(monkeypatch):
    models, evaluate = [], pipeline.evaluate
    monkeypatch.setattr(pipeline, "evaluate", lambda model, *given: models.append(model) or evaluate(model, *given))
    return models


def test_points_that_select_nothing_or_the_same_are_evaluated_once(evaluated):
    bench = Workbench(DATASET, MemoryStore())
    bench.run_original(trial_spec(DATASET, POINTS[0]).original)
    evaluated.clear()
    records = [bench.run_trial(trial_spec(DATASET, method)) for method in POINTS]
    assert all(record.ok for record in records), [record.error for record in records]
    assert [record.facts["changed_share"] == 0 for record in records] == [True] * 3 + [False] * 3
    assert len(evaluated) == 3, "the original, and two sets of parameters"
    alone = [Workbench(DATASET, MemoryStore()).run_trial(trial_spec(DATASET, method)) for method in POINTS]
    assert [record.scores for record in records] == [record.scores for record in alone]
    for one, other in zip(records, alone, strict=True):
        assert (one.predictions.plain == other.predictions.plain).all()
        assert one.facts["images_evaluated"] == other.facts["images_evaluated"]


def test_another_deletion_set_is_evaluated_anew(evaluated):
    bench = Workbench(DATASET, MemoryStore())
    for size in (4, 9, 4):
        assert bench.run_trial(trial_spec(DATASET, POINTS[0], deletion_size=size)).ok
    assert len(evaluated) == 3


def test_training_gives_other_weights_and_only_the_last_evaluations_are_kept(evaluated):
    bench = Workbench(DATASET, MemoryStore())
    methods = [CatastrophicForgetting(steps=steps) for steps in range(1, KEPT + 2)]
    for method in (*methods, methods[-1], methods[0]):
        assert bench.run_trial(trial_spec(DATASET, method)).ok
    assert len(evaluated) == KEPT + 2, "the last is known, the first was dropped"


def model_of(name):
    bench = Workbench(DATASET, MemoryStore())
    setting = trial_spec(DATASET, NoUnlearning()).original.setting
    return build_model(find("models", name)(), bench.poisoned(setting)[0], torch.device("cpu"), 0).eval()


@pytest.mark.parametrize("name", names("models"))
def test_copies_of_every_model_differ_in_weights_alone(name):
    original = model_of(name)
    model = copy.deepcopy(original)
    next(model.parameters()).data.zero_()
    assert differs_in_weights_alone(model, original)


def hooked(model):
    model.register_forward_hook(lambda module, given, result: result * 2)


def patched(model):
    model.forward = lambda images: torch.zeros(len(images), 10)


def scaled(model):
    model.scale = torch.ones(3)


def in_training(model):
    next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).train()


def of_another_class(model):
    model.__class__ = type("Other", (type(model),), {})


def with_one_more(model):
    model.add_module("more", torch.nn.Identity())


def with_another_number(model):
    next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eps = 1e-3


@pytest.mark.parametrize("change", [hooked, patched, scaled, in_training, of_another_class, with_one_more, with_another_number])
def test_what_else_differs_is_seen(change):
    original = model_of("resnet9")
    model = copy.deepcopy(original)
    change(model)
    assert not differs_in_weights_alone(model, original)


@pytest.mark.parametrize("change", [hooked, scaled])
def test_what_originals_hide_is_never_taken_for_known(change):
    original = model_of("resnet9")
    change(original)
    assert not differs_in_weights_alone(copy.deepcopy(original), original)


def test_a_bit_of_one_weight_or_buffer_tells_models_apart():
    original, seen, runs = model_of("resnet9"), Seen(), []
    for name in original.state_dict():
        model = copy.deepcopy(original)
        tensor = model.state_dict()[name]
        last = tuple(size - 1 for size in tensor.shape)
        tensor[last] = tensor[last] + 1 if tensor.dtype == torch.int64 else torch.nextafter(tensor[last], torch.tensor(9.0))
        for _ in range(2):
            seen.evaluation("here", model, original, lambda name=name: runs.append(name))
    assert runs == list(original.state_dict())
