"""What each detection finds, from its definition; what detectors see of the original model; their precision and recall."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cu_ray.detections.activation_clustering import ActivationClustering
from cu_ray.detections.class_by_class import ClassByClass
from cu_ray.detections.easiest import Easiest
from cu_ray.detections.false_positives import FalsePositives
from cu_ray.detections.loss_ranking import LossRanking
from cu_ray.detections.single_sample import SingleSample
from cu_ray.detections.spectral_signatures import SpectralSignatures
from cu_ray.detections.uniform import Uniform
from cu_ray.errors import AssumptionFailed, OriginalMissing
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.methods.ssd import Ssd
from cu_ray.stages.evidence import OriginalsEvidence
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect, poison
from tests.protocol.tiny import MemoryStore, original_spec, tiny_dataset, trial_spec

DATASET = tiny_dataset()
POISONED = poison(DATASET, Backdoor(size=20, target=1), seed=0)
MANIPULATED = POISONED.corruption.indices


class Given:
    """Losses and features as a test wants them."""

    def __init__(self, losses=None, features=None):
        self._losses, self._features = losses, features

    def losses(self):
        return self._losses

    def features(self):
        return self._features


def random_losses(seed=0):
    return np.random.default_rng(seed).random(60).astype(np.float32)


def found(detection, size, evidence=None, seed=0):
    return detection.find(POISONED, size, np.random.default_rng(seed), evidence)


def test_a_single_sample_is_the_first_that_uniform_finds():
    assert [SingleSample().num_found(fraction, 300) for fraction in (0.001, 0.5, 1.0)] == [1, 1, 1]
    assert found(SingleSample(), 1).tolist() == found(Uniform(), 20)[:1].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_as_uniform_is_paired_with_it_in_a_sweep_too(seed):
    poisoned = poison(DATASET, Backdoor(size=20, target=1), seed=seed)

    def deletion(detection, size):
        return set(detect(poisoned, detection, size, None).deletion.tolist())

    manipulated = set(poisoned.corruption.indices.tolist())
    first = [deletion(Uniform(), size) for size in range(13)]
    assert deletion(SingleSample(), 1) == first[1]
    assert deletion(FalsePositives(rate=0.0), 12) == first[12]
    assert deletion(FalsePositives(rate=0.25), 12) & manipulated == first[9]
    assert deletion(FalsePositives(rate=0.5), 12) & manipulated == first[6]
    assert deletion(FalsePositives(rate=0.25), 12) - manipulated < deletion(FalsePositives(rate=0.5), 12) - manipulated


def test_more_false_positives_than_there_are_clean_samples_say_so():
    poisoned = poison(DATASET, Backdoor(size=50, target=1), seed=0)
    with pytest.raises(AssumptionFailed, match="50 samples are to be found wrongly, and 10 are not manipulated"):
        detect(poisoned, FalsePositives(rate=1.0), 50, None)


@pytest.mark.parametrize("by", ["true", "given"])
def test_class_by_class_ends_one_class_before_the_next(by):
    labels = DATASET.train.labels if by == "true" else POISONED.labels
    orders = set()
    for seed in range(12):
        classes = labels[found(ClassByClass(by=by), 20, seed=seed)].tolist()
        runs = [label for place, label in enumerate(classes) if place == 0 or classes[place - 1] != label]
        assert len(runs) == len(set(runs)) == len(set(labels[MANIPULATED].tolist()))
        orders.add(tuple(runs))
    assert len(orders) > 1 or by == "given"  # a backdoor gives one label


def test_easiest_are_the_manipulated_samples_of_the_lowest_loss():
    losses = random_losses()
    expected = sorted(MANIPULATED.tolist(), key=lambda row: losses[row])
    assert found(Easiest(), 7, Given(losses)).tolist() == expected[:7]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 7, 10, 20])
def test_false_positives_are_a_share_of_what_is_found(rate, size):
    split = detect(POISONED, FalsePositives(rate=rate), size, None)
    num_wrong = round(rate * size)
    assert len(split.deletion) == size
    assert split.precision == pytest.approx(1 - num_wrong / size)
    assert split.recall == pytest.approx((size - num_wrong) / 20)


@pytest.mark.parametrize(("suspect", "sign"), [("highest", -1), ("lowest", 1)])
def test_loss_ranking_takes_all_samples_by_their_loss(suspect, sign):
    losses = random_losses(1)
    expected = sorted(range(60), key=lambda row: sign * losses[row])
    assert found(LossRanking(suspect=suspect), 9, Given(losses)).tolist() == expected[:9]


def test_spectral_signatures_score_by_the_top_singular_vector_of_each_class():
    features = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32)
    scores = np.zeros(60)
    for label in range(4):
        members = np.flatnonzero(POISONED.labels == label)
        centred = features[members].astype(np.float64) - features[members].astype(np.float64).mean(axis=0)
        scores[members] = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    expected = sorted(range(60), key=lambda row: -scores[row])
    assert found(SpectralSignatures(), 15, Given(features=features)).tolist() == expected[:15]


def test_activation_clustering_suspects_the_smallest_cluster_first():
    """Class 1 has a cluster of 5 far away, class 2 one of 3: each before the rest of its class, nearest to its centre first."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 12)).astype(np.float32)
    members = {label: np.flatnonzero(POISONED.labels == label) for label in (1, 2)}
    odd = {1: members[1][:5], 2: members[2][:3]}
    features[odd[1], 0] += 50
    features[odd[2], 1] -= 50
    found_rows = found(ActivationClustering(), 60, Given(features=features))
    assert set(found_rows[:5].tolist()) == set(odd[1].tolist())  # the smallest share of its class
    for label in odd:
        of_class = [row for row in found_rows.tolist() if row in members[label]]
        assert set(of_class[: len(odd[label])]) == set(odd[label].tolist())
    assert sorted(found_rows.tolist()) == list(range(60))
    centre = features[odd[1]].mean(axis=0)
    distances = np.linalg.norm(features[[row for row in found_rows if row in odd[1]]] - centre, axis=1)
    assert (np.diff(distances) > -1e-2).all()  # of ten of the twelve dimensions


def test_features_that_are_all_the_same_are_one_cluster_and_no_failure():
    rows = found(ActivationClustering(), 60, Given(features=np.ones((60, 3), dtype=np.float32)))
    assert sorted(rows.tolist()) == list(range(60))


# -------------------------------------------------------------------------------------------------------------- evidence


def evidence_of(bench, spec):
    _, data = bench.poisoned(spec.setting)
    return OriginalsEvidence(spec.setting.model, lambda: bench.original(spec)[0], data)


def test_evidence_is_what_the_original_makes_of_the_images_as_given():
    bench, spec = Workbench(DATASET, MemoryStore()), original_spec(DATASET)
    poisoned, data = bench.poisoned(spec.setting)
    model, evidence = bench.original(spec)[0], evidence_of(bench, spec)
    with torch.no_grad():
        images = data.train.load(torch.arange(60))
        features = torch.nn.Sequential(*list(model.children())[:-1])(images).amax(dim=(2, 3))
        logs = torch.log_softmax(features @ model[-1][2].weight.T, dim=1)
    np.testing.assert_allclose(evidence.features(), features.numpy(), rtol=1e-5, atol=1e-6)
    expected = [-float(logs[row, label]) for row, label in enumerate(poisoned.labels)]
    np.testing.assert_allclose(evidence.losses(), expected, rtol=1e-4, atol=1e-5)
    assert not model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_trial_is_given_what_a_detector_finds_with_precision_and_recall_in_its_row():
    bench, spec = Workbench(DATASET, MemoryStore()), trial_spec(DATASET, Ssd(), deletion_size=9)
    spec = replace(spec, detection=LossRanking(suspect="lowest"))
    record = bench.run_trial(spec)
    assert record.ok, record.error
    suspects = np.argsort(evidence_of(bench, spec.original).losses(), kind="stable")[:9]
    hits = len(set(suspects.tolist()) & set(bench.poisoned(spec.original.setting)[0].corruption.indices.tolist()))
    assert 0 < hits < 9
    assert record.facts["detection_precision"] == pytest.approx(hits / 9)
    assert record.facts["detection_recall"] == pytest.approx(hits / 15)


def test_samples_that_are_learned_well_are_told_apart_by_their_loss():
    """In 32 bits the losses of logits 17 and more above the others are the same few numbers."""
    bench, spec = Workbench(DATASET, MemoryStore()), original_spec(DATASET)
    model, _ = bench.original(spec)
    with torch.no_grad():
        images = bench.poisoned(spec.setting)[1].train.load(torch.arange(60))
        model[-1][2].weight *= 90 / (model(images).max(dim=1).values - model(images).median(dim=1).values).median()
        predicted = model(images).argmax(dim=1).numpy()
    bench.poisoned(spec.setting)[1].train.labels.copy_(torch.from_numpy(predicted))  # as if all had been learned
    losses = evidence_of(bench, spec).losses()
    assert (losses < 1e-6).sum() > 10
    assert len(np.unique(losses)) == 60


def test_what_one_worker_saw_of_the_original_all_rank_by():
    """Here as if the other's device rounded otherwise: its original has other weights."""
    spec = replace(trial_spec(DATASET, Ssd(), deletion_size=9), detection=LossRanking(suspect="lowest"))
    store = MemoryStore()
    first = Workbench(DATASET, store).split(spec).deletion
    tensors, metadata = store.entries["originals", spec.original.key]
    other = {name: array[..., ::-1].copy() if array.ndim > 1 else array for name, array in tensors.items()}
    store.entries["originals", spec.original.key] = other, metadata
    assert np.array_equal(Workbench(DATASET, store).split(spec).deletion, first)
    alone = MemoryStore()
    alone.entries["originals", spec.original.key] = store.entries["originals", spec.original.key]
    assert not np.array_equal(Workbench(DATASET, alone).split(spec).deletion, first)


def test_who_does_not_train_says_that_the_original_is_missing():
    spec = replace(trial_spec(DATASET, Ssd(), deletion_size=9), detection=LossRanking())
    with pytest.raises(OriginalMissing, match=spec.original.key):
        Workbench(DATASET, MemoryStore(), trains=False).split(spec)
    assert len(Workbench(DATASET, MemoryStore(), trains=False).split(replace(spec, detection=Uniform())).deletion) == 9


def test_each_original_has_its_own_evidence():
    bench = Workbench(DATASET, MemoryStore())
    specs = [replace(trial_spec(DATASET, Ssd(), seed=seed), detection=LossRanking()) for seed in (0, 1, 0)]
    alternating = [bench.run_trial(spec).scores for spec in specs]
    assert alternating[0] == alternating[2]
    assert alternating[1] == Workbench(DATASET, MemoryStore()).run_trial(specs[1]).scores
