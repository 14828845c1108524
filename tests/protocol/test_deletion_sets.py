"""Deletion and retain sets, the held-out part, and the halves of the test set."""

from __future__ import annotations

import numpy as np
import pytest

from cu_ray.detections.uniform import Uniform
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.interclass_confusion import InterclassConfusion
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.stages.poison import detect, nothing_found, poison, selection_half
from tests.protocol.tiny import tiny_dataset

DATASET = tiny_dataset()
MANIPULATED = 50


def poisoned(seed=0, manipulation=Backdoor(size=MANIPULATED, target=1)):  # noqa: B008 (frozen)
    return poison(DATASET, manipulation, seed=seed)


def found(size, seed=0, **how):
    return detect(poisoned(seed), Uniform(), size, None, **how)


def rows(array):
    return set(array.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_deletion_sets_are_nested_subsets_of_the_manipulated_set(seed):
    manipulated, before = rows(poisoned(seed).corruption.indices), set()
    for size in range(1, MANIPULATED + 1):
        now = rows(found(size, seed).deletion)
        assert len(now) == size
        assert before < now <= manipulated
        before = now
    assert before == manipulated


@pytest.mark.parametrize("size", [1, 10, 49, 50])
def test_the_retain_set_is_all_but_the_deletion_set_and_keeps_the_unidentified(size):
    split = found(size)
    assert rows(split.retain) == set(range(60)) - rows(split.deletion)
    unidentified = rows(poisoned().corruption.indices) - rows(split.deletion)
    assert len(unidentified) == MANIPULATED - size
    assert unidentified <= rows(split.retain)
    assert (split.precision, split.recall) == (1.0, size / MANIPULATED)
    assert len(split.held_out) == 0


def test_every_manipulated_sample_is_equally_likely_to_be_found():
    chosen = [rows(found(10, seed).deletion) for seed in range(150)]
    manipulated = [rows(poisoned(seed).corruption.indices) for seed in range(150)]
    for row in range(60):
        times = sum(row in each for each in manipulated)
        assert abs(sum(row in each for each in chosen) - times / 5) < 5 * (times / 5) ** 0.5


def test_deletion_sets_are_drawn_by_seed_and_repeat():
    assert found(10, 3).deletion.tolist() == found(10, 3).deletion.tolist()
    ranks = [[poisoned(seed).corruption.indices.tolist().index(row) for row in found(10, seed).deletion] for seed in range(20)]
    assert len(set(map(tuple, ranks))) == 20


def test_finding_nothing_retains_everything():
    for split in (found(0), nothing_found(poisoned())):
        assert len(split.deletion) == len(split.held_out) == 0
        assert rows(split.retain) == set(range(60))
        assert (split.precision, split.recall) == (None, 0.0)


FRACTIONS_OF_SIZES = [(0.1, 500, 50), (0.3, 100, 30), (0.7, 1000, 700), (1.0, 15, 15), (0.29, 100, 29), (0.05, 30, 2)]


@pytest.mark.parametrize(("fraction", "size", "expected"), FRACTIONS_OF_SIZES)
def test_a_deletion_fraction_is_of_the_manipulated_set(fraction, size, expected):
    assert Uniform().num_found(fraction, size) == expected


@pytest.mark.parametrize(("size", "held_out"), [(1, 0), (10, 0), (20, 0), (25, 5), (30, 6), (40, 8), (50, 10)])
def test_a_fifth_is_held_out_and_none_where_that_is_fewer_than_five(size, held_out):
    whole, split = found(size), found(size, held_out=True)
    assert len(split.held_out) == held_out
    assert rows(split.deletion) | rows(split.held_out) == rows(whole.deletion)
    assert len(split.deletion) == size - held_out
    assert not rows(split.held_out) & (rows(split.retain) | rows(split.deletion))
    assert split.retain.tolist() == whole.retain.tolist()
    assert split.held_out.tolist() == found(size, held_out=True).held_out.tolist()


def test_the_held_out_part_is_drawn_and_not_a_prefix():
    parts = [rows(found(40, seed, held_out=True).held_out) for seed in range(10)]
    assert all(part != set(sorted(rows(found(40, seed).deletion))[:8]) for seed, part in enumerate(parts))


def test_the_selection_half_is_half_of_each_class():
    half = selection_half(DATASET)
    for label in range(4):
        assert half[DATASET.test.labels == label].sum() == 5


def test_the_selection_half_does_not_depend_on_seed_or_manipulation():
    kinds = (Backdoor(size=50, target=1), InterclassConfusion(size=12, classes=(1, 2)), RandomLabelSwap(size=12))
    halves = {tuple(poisoned(seed, kind).selection_half) for seed in range(3) for kind in kinds}
    assert len(halves) == 1


def test_the_selection_half_is_not_simply_the_first_images():
    half = selection_half(DATASET)
    for label in range(4):
        members = half[np.flatnonzero(DATASET.test.labels == label)]
        if members.tolist() not in ([True] * 5 + [False] * 5, [False] * 5 + [True] * 5):
            return
    pytest.fail("every class is cut in the middle")
