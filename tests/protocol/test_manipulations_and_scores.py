"""What manipulations change, on which test images they do harm, and every score against numbers made by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cu_ray.detections.uniform import Uniform
from cu_ray.errors import FieldFault
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.interclass_confusion import InterclassConfusion
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.metrics import Outcome
from cu_ray.metrics.acc_corr import AccCorr
from cu_ray.metrics.acc_retain import AccRetain
from cu_ray.metrics.asr import Asr
from cu_ray.metrics.confusion_rate import ConfusionRate
from cu_ray.stages.evaluate import evaluate, predict
from cu_ray.stages.poison import detect, poison, upload
from cu_ray.types import DatasetFacts
from tests.protocol import fakes
from tests.protocol.tiny import CLASS_NAMES, tiny_dataset

DATASET = tiny_dataset()
TRAIN, TEST = DATASET.train, DATASET.test
FACTS = DatasetFacts(len(TRAIN), len(TEST), DATASET.image_shape, CLASS_NAMES)


def corrupted(manipulation, seed=0):
    return manipulation.corrupt(TRAIN, DATASET.normalisation, np.random.default_rng(seed))


def drawn_sets(manipulation, seeds=range(30)):
    return [corrupted(manipulation, seed).indices for seed in seeds]


ALL_KINDS = [Backdoor(size=12, target=1), InterclassConfusion(size=12, classes=(1, 2)), RandomLabelSwap(size=12)]


@pytest.mark.parametrize("manipulation", ALL_KINDS, ids=lambda each: type(each).__name__)
def test_a_manipulated_set_has_its_size_and_is_drawn_by_seed(manipulation):
    for indices in drawn_sets(manipulation):
        assert len(np.unique(indices)) == 12
        assert (np.diff(indices) > 0).all()
    assert np.array_equal(corrupted(manipulation, 3).indices, corrupted(manipulation, 3).indices)
    assert len({tuple(indices) for indices in drawn_sets(manipulation)}) > 25


@pytest.mark.parametrize("manipulation", ALL_KINDS, ids=lambda each: type(each).__name__)
def test_poisoning_changes_only_the_labels_of_the_manipulated_set(manipulation):
    before = TRAIN.labels.copy(), TRAIN.pixels.copy()
    poisoned = poison(DATASET, manipulation, seed=1)
    chosen = poisoned.corruption.indices
    others = np.setdiff1d(np.arange(len(TRAIN)), chosen)
    assert np.array_equal(poisoned.labels[others], TRAIN.labels[others])
    assert np.array_equal(poisoned.labels[chosen], poisoned.corruption.labels)
    assert poisoned.effective_size == sum(a != b for a, b in zip(poisoned.labels, TRAIN.labels, strict=True))
    assert np.array_equal(before[0], TRAIN.labels)
    assert np.array_equal(before[1], TRAIN.pixels)


# ------------------------------------------------------------------------------------------------------------ backdoor


def test_a_backdoor_is_uniform_over_all_samples_the_target_class_included():
    sets = drawn_sets(Backdoor(size=30, target=1), range(300))
    counts = np.bincount(np.concatenate(sets), minlength=60)
    expected = 300 * 30 / 60
    assert (abs(counts - expected) < 5 * (expected / 2) ** 0.5).all()
    assert (counts[TRAIN.labels == 1] > 0).all()


def test_a_backdoor_gives_the_target_label_and_a_patch_of_the_normalised_maximum():
    corruption = corrupted(Backdoor(size=10, patch=3, target=2))
    assert corruption.labels.tolist() == [2] * 10
    mask = np.zeros((12, 12), dtype=bool)
    for row in (9, 10, 11):
        for column in (9, 10, 11):
            mask[row, column] = True
    assert np.array_equal(corruption.stamp.mask, mask)
    peak = max((int(pixel) / 255 - 0.4) / 0.3 for pixel in TRAIN.pixels.ravel())
    assert corruption.stamp.values.tolist() == [np.float32(peak)]
    assert corruption.stamp.blend == 1
    assert (Backdoor(size=1).patch, Backdoor(size=1).target) == (3, 0)


def test_the_domains_of_a_backdoor_are_all_test_images_with_and_without_the_patch():
    domains = Backdoor(size=10, target=2).test_domains(TEST)
    assert domains.affected.rows.tolist() == domains.retain.rows.tolist() == list(range(len(TEST)))
    assert (domains.affected.stamped, domains.retain.stamped) == (True, False)
    assert (domains.target, domains.confused) == (2, None)


def test_exactly_the_manipulated_training_images_carry_the_patch_on_the_device():
    poisoned = poison(DATASET, Backdoor(size=15, target=1), seed=4)
    data = upload(poisoned, torch.device("cpu"))
    images = data.train.load(torch.arange(len(TRAIN)))
    peak = poisoned.corruption.stamp.values[0]
    carries = (images[:, :, -3:, -3:] == float(peak)).flatten(1).all(dim=1)
    assert np.flatnonzero(carries.numpy()).tolist() == poisoned.corruption.indices.tolist()
    assert data.train.labels.tolist() == poisoned.labels.tolist()


# --------------------------------------------------------------------------------------------------- label corruptions


@pytest.mark.parametrize("seed", range(5))
def test_interclass_confusion_exchanges_the_labels_of_half_and_half(seed):
    corruption = corrupted(InterclassConfusion(size=12, classes=(3, 1)), seed)
    true = TRAIN.labels[corruption.indices]
    assert sorted(true.tolist()) == [1] * 6 + [3] * 6
    assert [{1: 3, 3: 1}[label] for label in true.tolist()] == corruption.labels.tolist()
    assert corruption.stamp is None
    assert poison(DATASET, InterclassConfusion(size=12, classes=(3, 1)), seed=seed).effective_size == 12


def test_interclass_confusion_may_take_any_sample_of_the_two_classes():
    taken = np.unique(np.concatenate(drawn_sets(InterclassConfusion(size=12, classes=(1, 2)), range(60))))
    assert taken.tolist() == np.flatnonzero(np.isin(TRAIN.labels, (1, 2))).tolist()


def test_the_domains_of_a_confusion_are_its_two_classes_and_the_others():
    domains = InterclassConfusion(size=12, classes=(3, 1)).test_domains(TEST)
    affected = [row for row, label in enumerate(TEST.labels) if label in (1, 3)]
    assert domains.affected.rows.tolist() == affected
    assert domains.retain.rows.tolist() == [row for row in range(len(TEST)) if row not in affected]
    assert not domains.affected.stamped
    assert not domains.retain.stamped
    assert domains.target is None
    assert set(domains.confused) == {1, 3}


def test_classes_given_by_name_are_the_same_as_by_index():
    assert InterclassConfusion(size=4, classes=("ant", "cat")).settle(FACTS).classes == (0, 2)
    assert Backdoor(size=4, target="dog").settle(FACTS).target == 3
    assert InterclassConfusion(size=4).classes == (3, 5)


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (
            ("1", "2", "3"),
            2,
            "2 is the name of a class, and the index of class '3': classes whose names are numbers go by name, '2'",
        ),
        (("1", "2", "3"), 3, "3 is the name of a class: classes"),
        (("0", "1", "10", "11", "2"), 2, "2 is the name of a class, and the index of class '10'"),
    ],
)
def test_a_number_that_is_one_class_s_name_and_another_s_index_is_neither(names, given, said):
    facts = DatasetFacts(60, 60, (12, 12, 1), names)
    with pytest.raises(FieldFault, match=re.escape(said)):
        Backdoor(size=4, target=given).settle(facts)
    assert names[Backdoor(size=4, target=str(given)).settle(facts).target] == str(given)
    assert Backdoor(size=4, target=0).settle(DatasetFacts(60, 60, (12, 12, 1), ("0", "1"))).target == 0


def test_two_classes_alone_are_not_confused():
    with pytest.raises(FieldFault, match="are all classes: no test images are left that it does not harm"):
        InterclassConfusion(size=4, classes=("ant", "bee")).settle(DatasetFacts(60, 60, (12, 12, 1), ("ant", "bee")))


@pytest.mark.parametrize("seed", range(5))
def test_random_label_swap_permutes_the_labels_among_the_chosen(seed):
    corruption = corrupted(RandomLabelSwap(size=30), seed)
    true = TRAIN.labels[corruption.indices]
    assert sorted(corruption.labels.tolist()) == sorted(true.tolist())
    assert corruption.labels.tolist() != true.tolist()
    assert corruption.stamp is None


def test_random_label_swap_leaves_about_one_in_c_labels_true():
    changed = [poison(DATASET, RandomLabelSwap(size=60), seed=seed).effective_size for seed in range(40)]
    assert np.mean(changed) == pytest.approx(60 * 3 / 4, rel=0.06)


def test_both_domains_of_a_random_label_swap_are_the_clean_test_set():
    domains = RandomLabelSwap(size=30).test_domains(TEST)
    for view in (domains.affected, domains.retain):
        assert view.rows.tolist() == list(range(len(TEST)))
        assert not view.stamped
    assert (domains.target, domains.confused) == (None, None)


# -------------------------------------------------------------------------------------------------------------- scores


def outcome(**given):
    arrays = {
        "affected_predicted": np.array([0, 0, 0, 2, 1, 1]),
        "affected_true": np.array([0, 1, 2, 2, 2, 1]),
        "retain_predicted": np.array([3, 3, 0, 1, 2]),
        "retain_true": np.array([3, 0, 0, 0, 0]),
    }
    return Outcome(**{**arrays, "target": None, "confused": None, **given})


def test_metrics_against_numbers_made_by_hand():
    assert AccCorr().measure(outcome()) == pytest.approx(3 / 6)  # rows 0, 3, 5
    assert AccRetain().measure(outcome()) == pytest.approx(2 / 5)  # rows 0, 2
    assert Asr().measure(outcome(target=0)) == pytest.approx(2 / 5)  # rows 1, 2 of those not of class 0
    assert Asr().measure(outcome(target=1)) == pytest.approx(1 / 4)  # row 4 of rows 0, 2, 3, 4
    assert ConfusionRate().measure(outcome(confused=(1, 2))) == pytest.approx(1 / 6)  # row 4: 2 taken for 1
    assert Asr().measure(outcome()) is None
    assert ConfusionRate().measure(outcome()) is None
    nothing = np.array([], dtype=np.int64)
    assert AccCorr().measure(outcome(affected_predicted=nothing, affected_true=nothing)) is None


class Linear(torch.nn.Module):
    """A fixed linear classifier, so that its predictions can be made by hand."""

    def __init__(self):
        super().__init__()
        self.weight = np.random.default_rng(8).normal(size=(4, 144))
        self.weight[1, [9 * 12 + 9, 10 * 12 + 10, 11 * 12 + 11]] += 6  # the patch speaks for class 1

    def forward(self, images):
        return images.flatten(1).double() @ torch.from_numpy(self.weight).T


def predictions(pixels, stamped):
    """The classes that `Linear` says for these images, one by one."""
    weight, peak = Linear().weight, max((int(pixel) / 255 - 0.4) / 0.3 for pixel in TRAIN.pixels.ravel())
    predicted = []
    for image, carries in zip(pixels, stamped, strict=True):
        values = (image[..., 0] / 255 - 0.4) / 0.3
        if carries:
            values[9:, 9:] = peak
        predicted.append(int(np.argmax(weight @ values.ravel())))
    return np.array(predicted)


def share_where(hits, rows):
    return sum(bool(hits[row]) for row in rows) / len(rows)


def scores_of(manipulation, size=8):
    poisoned = poison(DATASET, manipulation, seed=2)
    split = detect(poisoned, Uniform(), size, None)
    return poisoned, split, evaluate(Linear(), poisoned, upload(poisoned, torch.device("cpu")), split, "fp32").scores


def halves(poisoned, rows):
    return {
        "": rows,
        "val_": [row for row in rows if poisoned.selection_half[row]],
        "report_": [row for row in rows if not poisoned.selection_half[row]],
    }


def test_the_scores_of_a_backdoor_against_predictions_made_by_hand():
    poisoned, _, scores = scores_of(Backdoor(size=20, target=1))
    clean, patched = (predictions(TEST.pixels, [stamped] * len(TEST)) for stamped in (False, True))
    assert len(set(clean)) > 1
    for prefix, rows in halves(poisoned, range(len(TEST))).items():
        others = [row for row in rows if TEST.labels[row] != 1]
        assert scores[f"{prefix}acc_corr"] == pytest.approx(share_where(patched == TEST.labels, rows))
        assert scores[f"{prefix}acc_retain"] == pytest.approx(share_where(clean == TEST.labels, rows))
        assert scores[f"{prefix}asr"] == pytest.approx(share_where(patched == 1, others))
        assert scores[f"{prefix}confusion_rate"] is None
    assert scores["asr"] > scores["acc_corr"]


def test_the_scores_of_a_confusion_against_predictions_made_by_hand():
    poisoned, _, scores = scores_of(InterclassConfusion(size=12, classes=(0, 3)))
    clean = predictions(TEST.pixels, [False] * len(TEST))
    affected = [row for row in range(len(TEST)) if TEST.labels[row] in (0, 3)]
    for prefix, rows in halves(poisoned, affected).items():
        assert scores[f"{prefix}acc_corr"] == pytest.approx(share_where(clean == TEST.labels, rows))
        assert scores[f"{prefix}confusion_rate"] == pytest.approx(share_where(clean == 3 - TEST.labels, rows))
        assert scores[f"{prefix}asr"] is None
    for prefix, rows in halves(poisoned, [row for row in range(len(TEST)) if row not in affected]).items():
        assert scores[f"{prefix}acc_retain"] == pytest.approx(share_where(clean == TEST.labels, rows))


def test_accuracies_on_training_samples_see_them_as_they_were_given():
    poisoned, split, scores = scores_of(Backdoor(size=20, target=1))
    manipulated = set(poisoned.corruption.indices.tolist())
    predicted = predictions(TRAIN.pixels, [row in manipulated for row in range(len(TRAIN))])
    rows_of = {
        "deletion": split.deletion,
        "unidentified": sorted(manipulated - set(split.deletion.tolist())),
        "retain": split.retain,
    }
    assert len(rows_of["unidentified"]) == 12
    for name, rows in rows_of.items():
        assert scores[f"{name}_given"] == pytest.approx(share_where(predicted == poisoned.labels, rows))
        assert scores[f"{name}_true"] == pytest.approx(share_where(predicted == TRAIN.labels, rows))
    assert scores["held_out_given"] is None
    assert scores["held_out_true"] is None


def test_the_owners_validation_samples_are_of_the_selection_half_and_manipulated_at_the_training_rate():
    poisoned, _, scores = scores_of(Backdoor(size=15, target=1))
    validation = poisoned.validation
    assert validation.rows.tolist() == np.flatnonzero(poisoned.selection_half).tolist()
    assert validation.stamped.sum() == 15 / 60 * 20
    labels = TEST.labels[validation.rows]
    assert validation.labels.tolist() == np.where(validation.stamped, 1, labels).tolist()
    predicted = predictions(TEST.pixels[validation.rows], validation.stamped)
    assert scores["validation_given"] == pytest.approx(share_where(predicted == validation.labels, range(20)))


def test_predictions_are_made_in_eval_mode_and_leave_model_and_mode_as_they_were():
    model = fakes.small_net(2, side=12, num_classes=4, dtype=torch.float32)
    data = upload(poison(DATASET, Backdoor(size=15, target=1), seed=0), torch.device("cpu"))
    rows = torch.arange(len(TEST))
    expected = model(data.test.load(rows)).argmax(dim=1).tolist()
    model[0].train()
    before, modes = fakes.snapshot(model), [module.training for module in model.modules()]
    assert model(data.test.load(rows)).argmax(dim=1).tolist() != expected
    model.load_state_dict(before)
    assert predict(model, data.test, rows, "fp32").tolist() == expected
    assert [module.training for module in model.modules()] == modes
    assert fakes.same_bits(fakes.snapshot(model), before)
