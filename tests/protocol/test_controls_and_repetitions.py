"""What is left of a manipulation in a control's training data, and what an unlearning seed changes of a trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from cu_ray.detections.uniform import Uniform
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.blended_backdoor import BlendedBackdoor
from cu_ray.manipulations.interclass_confusion import InterclassConfusion
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.methods.bad_teaching import BadTeaching
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.scrub import Scrub
from cu_ray.methods.ssd import Ssd
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect, poison, upload
from cu_ray.types import CONTROLS, OriginalSpec, TrialSpec
from tests.protocol.tiny import MemoryStore, original_spec, tiny_dataset, trial_spec

DATASET = tiny_dataset()
TRAIN = DATASET.train
TRIGGERS = [Backdoor(size=15, target=1), BlendedBackdoor(size=15, target=1, blend=0.5)]
OTHERS = [InterclassConfusion(size=12, classes=(1, 2)), RandomLabelSwap(size=12)]


def name(manipulation) -> str:
    """For the report of pytest."""
    return type(manipulation).__name__


def batches_of(poisoned) -> tuple[bytes, list[int]]:
    """The training images and labels as a model sees them."""
    data = upload(poisoned, torch.device("cpu"))
    return data.train.load(torch.arange(len(TRAIN))).numpy().tobytes(), data.train.labels.tolist()


@pytest.mark.parametrize("manipulation", TRIGGERS + OTHERS, ids=name)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_draws_the_same_samples_and_has_the_same_test_views(manipulation, control):
    ordinary, less = (poison(DATASET, manipulation, seed=5, control=each) for each in (None, control))
    assert np.array_equal(less.corruption.indices, ordinary.corruption.indices)
    assert np.array_equal(less.corruption.labels, ordinary.corruption.labels)
    assert np.array_equal(less.selection_half, ordinary.selection_half)
    for one, other in ((less.domains.affected, ordinary.domains.affected), (less.domains.retain, ordinary.domains.retain)):
        assert np.array_equal(one.rows, other.rows)
        assert one.stamped == other.stamped
    assert (less.domains.target, less.domains.confused) == (ordinary.domains.target, ordinary.domains.confused)
    assert np.array_equal(less.validation.labels, ordinary.validation.labels)
    assert np.array_equal(less.validation.stamped, ordinary.validation.stamped)
    assert less.key != ordinary.key


@pytest.mark.parametrize("manipulation", TRIGGERS + OTHERS, ids=name)
def test_never_manipulated_trains_on_the_true_labels_and_the_images_as_they_are(manipulation):
    less = poison(DATASET, manipulation, seed=5, control="never_manipulated")
    images, labels = batches_of(less)
    assert labels == TRAIN.labels.tolist()
    plain = (torch.from_numpy(TRAIN.pixels).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.3
    assert images == plain.numpy().tobytes()
    assert less.effective_size == 0


@pytest.mark.parametrize("manipulation", TRIGGERS, ids=name)
def test_trigger_only_trains_on_the_same_images_with_true_labels(manipulation):
    ordinary, less = (poison(DATASET, manipulation, seed=5, control=each) for each in (None, "trigger_only"))
    (images, labels), (images_of_ordinary, _) = batches_of(less), batches_of(ordinary)
    assert labels == TRAIN.labels.tolist()
    assert images == images_of_ordinary
    assert np.flatnonzero(less.stamped).tolist() == less.corruption.indices.tolist()
    assert less.effective_size == 0


def test_keys_of_ordinary_originals_and_trials_know_nothing_of_controls_weights_and_repetitions():
    spec = trial_spec(DATASET, Scrub(steps=3))
    identity = spec.original.setting.identity
    assert set(identity) == {"dataset", "model", "manipulation", "train", "seed", "learning"}
    assert set(spec.original.setting.poison_identity) == {"dataset", "manipulation", "seed"}
    assert spec.repetition == {}
    changed = [replace(spec.original.setting, control=each) for each in CONTROLS]
    changed.append(replace(spec.original.setting, weights="a checksum"))
    keys = [spec.original.key, *(OriginalSpec(setting).key for setting in changed)]
    assert len(set(keys)) == 4
    assert replace(spec, unlearning_seed=1).key != spec.key
    for setting in changed:
        one = replace(spec, original=OriginalSpec(setting), unlearning_seed=2)
        assert TrialSpec.build({**one.describe(), "detection": {"name": "uniform", "version": 1}}).unlearning_seed == 2
        again = OriginalSpec.build(
            {"setting": {**setting.describe(), "dataset": {"name": "fashion_mnist_small", "version": 1}}, "variant": {}}
        )
        assert (again.setting.control, again.setting.weights) == (setting.control, setting.weights)
        assert again.key == OriginalSpec(setting).key


def test_records_from_before_these_fields_are_still_read():
    described = trial_spec(DATASET, Scrub(steps=3)).describe()
    del described["unlearning_seed"]
    described["original"]["setting"] |= {"dataset": {"name": "fashion_mnist_small", "version": 1}}
    for field in ("control", "weights"):
        assert field not in described["original"]["setting"]
    spec = TrialSpec.build(described)
    assert (spec.unlearning_seed, spec.original.setting.control, spec.original.setting.weights) == (0, None, None)
    assert spec.key == trial_spec(DATASET, Scrub(steps=3)).key


def test_a_control_is_trained_on_its_own_data_and_scored_on_the_manipulations_test_views():
    ordinary = trial_spec(DATASET, NoUnlearning())
    bench, records = Workbench(DATASET, MemoryStore()), {}
    for control in (None, *CONTROLS):
        spec = replace(ordinary, original=OriginalSpec(replace(ordinary.original.setting, control=control)))
        records[control] = bench.run_trial(spec)
        assert records[control].ok, records[control].error
        original = bench.run_original(spec.original)
        assert original.scores["acc_corr"] == records[control].scores["acc_corr"]
    assert len({str(record.scores) for record in records.values()}) == 3
    for control in CONTROLS:
        assert records[control].facts["effective_size"] == 0
        scores = records[control].scores
        assert scores["unidentified_given"] == scores["unidentified_true"]
        assert scores["asr"] is not None


# ------------------------------------------------------------------------------------------------------ unlearning seeds

RANDOM = [CatastrophicForgetting(steps=3), ExactUnlearning(steps=3), Scrub(steps=4, msteps=2, lr=0.01), BadTeaching(steps=3)]


@pytest.mark.parametrize("method", [*RANDOM, Ssd(selection_share=0.1, selection_weight=None)], ids=name)
def test_another_unlearning_seed_is_another_model_from_the_same_original_and_deletion_set(method):
    bench, spec = Workbench(DATASET, MemoryStore()), trial_spec(DATASET, method)
    models = [bench.unlearned(replace(spec, unlearning_seed=seed)).model for seed in (0, 1, 2, 1)]
    weights = [torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) for model in models]
    assert torch.equal(weights[1], weights[3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(weights[one], weights[other])
    assert len(bench._store.entries) == 1 + (3 if isinstance(method, Ssd) else 0)  # one original; a memo for each seed
    poisoned, _ = bench.poisoned(spec.original.setting)
    assert len({detect(poisoned, Uniform(), each.deletion_size, None).deletion.tobytes() for each in (spec, spec)}) == 1
    assert replace(spec, unlearning_seed=1).deletion_identity == spec.deletion_identity


def test_points_of_one_unlearning_seed_share_their_memo():
    bench, spec = Workbench(DATASET, MemoryStore()), trial_spec(DATASET, Ssd(selection_share=0.1), deletion_size=9)
    for seed in (0, 1):
        for share in (0.1, 0.2):
            method = Ssd(selection_share=share)
            result = bench.unlearned(replace(spec, method=method, unlearning_seed=seed))
            assert (result.spent.forward > 0) == (share == 0.1)
    assert sum(kind == "memos" for kind, _ in bench._store.entries) == 2


@dataclass(frozen=True)
class Remembered(CatastrophicForgetting):
    """Keeps the draw of a memo and hands the original back."""

    version: ClassVar[int] = 1

    def unlearn(self, task):
        drawn = task.remember("draw", lambda each: {"x": torch.rand(1, generator=each.generator)})
        task.note(draw=float(drawn["x"]))
        return task.original


def test_a_memos_random_choices_are_those_of_its_unlearning_seed():
    spec = trial_spec(DATASET, Remembered())
    in_order = [
        [Workbench(DATASET, MemoryStore()).run_trial(replace(spec, unlearning_seed=seed)).notes["draw"] for seed in seeds]
        for seeds in ((0, 1, 2), (2, 0, 1))
    ]
    assert len(set(in_order[0])) == 3
    assert [in_order[1][place] for place in (1, 2, 0)] == in_order[0]
    assert original_spec(DATASET).key == spec.original.key
