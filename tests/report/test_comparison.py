"""Paired tests, Holm's correction, ranks and the bootstrap against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_ray.report.comparison import (
    average_ranks,
    best_and_significant,
    common,
    holm,
    interval,
    over_cells,
    over_seeds,
    paired_t,
    resamples,
    tails,
    wilcoxon,
)

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=50)


@pytest.mark.parametrize("n", [3, 5, 6, 8])
def test_all_differences_on_one_side_have_the_p_value_of_a_coin(n):
    assert wilcoxon([0.1 * (k + 1) for k in range(n)]) == pytest.approx(2 / 2**n)


@REPRODUCIBLE
@given(st.lists(st.integers(-4, 4).map(lambda step: step / 8), min_size=1, max_size=8).filter(any))
def test_it_is_the_share_of_all_signs_that_are_as_uneven(differences):
    moved = np.array([each for each in differences if each])
    ranks = scipy.stats.rankdata(np.abs(moved))
    uneven = [abs(ranks @ np.array(signs)) for signs in itertools.product((-1, 1), repeat=len(moved))]
    assert wilcoxon(differences) == pytest.approx(np.mean([each >= abs(ranks @ np.sign(moved)) for each in uneven]))


def test_without_equals_it_is_scipys():
    differences = [0.1, -0.2, 0.35, 0.4, 0.55, -0.05, 0.7]
    assert wilcoxon(differences) == pytest.approx(scipy.stats.wilcoxon(differences).pvalue)


def test_differences_of_nothing_do_not_count():
    assert wilcoxon([0.0, 0.0]) is None
    assert wilcoxon([0, 0.1, 0.2, 0.3]) == pytest.approx(2 / 2**3)


def test_the_t_test_of_two_pairs_is_cauchys():
    t = 2 / 1  # differences 1 and 3: mean 2, standard error 1
    assert paired_t([1, 3]) == pytest.approx(1 - 2 * math.atan(t) / math.pi)


def test_the_t_test_says_nothing_of_one_pair_or_of_equal_differences():
    assert paired_t([0.1]) is None
    assert paired_t([0.1, 0.1, 0.1]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # 0.005 x 4, 0.01 x 3, 0.03 x 2, kept rising
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.02]
    assert holm([]) == []


@REPRODUCIBLE
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, fixed in zip(p_values, corrected, strict=True):
        assert p <= fixed <= min(1, p * len(p_values)) or fixed == pytest.approx(max(p, min(1, fixed)))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(corrected)[order]) == sorted(corrected)


def test_pairs_over_cells_are_corrected_for_their_number():
    steps = np.arange(1, 7)
    scores = pd.DataFrame({"a": 0.5 + 0.03 * steps, "b": 0.5 + 0.02 * steps, "c": 0.5 + 0.0 * steps})
    pairs = over_cells(scores)
    assert [(pair.one, pair.other, pair.n) for pair in pairs] == [("a", "b", 6), ("a", "c", 6), ("b", "c", 6)]
    assert [pair.p for pair in pairs] == pytest.approx([2 / 64] * 3)
    assert [pair.corrected for pair in pairs] == pytest.approx([6 / 64] * 3)
    assert pairs[0].difference == pytest.approx(0.01 * 3.5)


def test_pairs_use_only_the_rows_that_both_have():
    scores = pd.DataFrame({"a": [0.1, 0.2, math.nan], "b": [0.0, math.nan, 0.3]})
    assert [(pair.n, pair.difference, pair.p) for pair in over_seeds(scores)] == [(1, 0.1, None)]
    assert over_seeds(pd.DataFrame({"a": [math.nan], "b": [0.1]})) == []


def test_ranks_are_means_over_cells_and_equals_share():
    scores = pd.DataFrame({"a": [0.9, 0.8], "b": [0.5, 0.8], "c": [0.1, 0.1]})
    assert average_ranks(scores) == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert average_ranks(pd.DataFrame({"a": [math.nan], "b": [0.1]})) == {}


def test_the_best_is_bold_only_where_it_beats_each_other():
    clear = pd.DataFrame({"a": [0.9, 0.91, 0.92], "b": [0.5, 0.52, 0.51], "c": [0.1, 0.13, 0.12]})
    assert best_and_significant(clear) == ("a", True)
    close = clear.assign(b=[0.95, 0.85, 0.9])
    assert best_and_significant(close) == ("a", False)
    assert best_and_significant(clear[:1]) == ("a", False)  # one seed
    assert best_and_significant(clear[["a"]]) == ("a", False)  # nothing to be better than
    assert best_and_significant(pd.DataFrame({"a": [math.nan]})) == (None, False)


def test_what_is_compared_is_what_all_have_but_for_those_who_lack_most():
    nan = math.nan
    scores = pd.DataFrame({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5, nan, 0.5, 0.5], "c": [0.9, nan, nan, nan], "d": [nan] * 4})
    pd.testing.assert_frame_equal(common(scores), pd.DataFrame({"a": [0.1, 0.3, 0.4], "b": [0.5] * 3}, index=[0, 2, 3]))
    assert best_and_significant(scores)[0] == "b", "c was lucky in the one place that it has"
    assert not len(common(pd.DataFrame({"a": [0.1, nan], "b": [nan, 0.1]}))), "nothing in common"


def test_the_bootstrap_over_cells_of_one_seed_has_the_spread_of_the_mean():
    values = [[float(value)] for value in range(30)]
    low, high = interval(values, "test")
    error = np.std(range(30), ddof=1) / math.sqrt(30)
    assert (low + high) / 2 == pytest.approx(14.5, abs=0.3 * error)
    assert high - low == pytest.approx(2 * 2.045 * error, rel=0.1)  # Student's t, 29 degrees of freedom


def test_a_single_cell_has_the_interval_of_student():
    low, high = interval([[0.1, 0.2, 0.6]], "test")
    assert (low + high) / 2 == pytest.approx(0.3)
    assert high - low == pytest.approx(2 * 4.302652729911275 * np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3))


def test_tails_go_further_out_the_fewer_there_are():
    assert tails(10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    reach = -scipy.stats.norm.ppf(tails(5)[0])
    assert reach == pytest.approx(2.7764451051977987 * math.sqrt(5 / 4))
    assert sum(tails(3)) == 1


def test_resamples_weigh_cells_alike_and_seeds_within_them():
    weights = resamples([1, 3, 2], "test")
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)))
    cells = [weights[:, :1].sum(axis=1), weights[:, 1:4].sum(axis=1), weights[:, 4:].sum(axis=1)]
    for cell in cells:
        assert set(np.round(3 * cell, 9)) == {0, 1, 2, 3}, "how often it was drawn"
        assert cell.mean() == pytest.approx(1 / 3, abs=0.02)
    assert weights[:, 1:4].mean(axis=0) == pytest.approx([1 / 9] * 3, abs=0.01)
    assert set(np.round(weights[cells[1] == weights[:, 1]][:, 2:4].ravel(), 9)) == {0}, "one seed may be drawn thrice"


@pytest.mark.parametrize(("cells", "seeds"), [(1, 2), (1, 3), (1, 5), (2, 3), (3, 5), (4, 3), (5, 3), (6, 3), (12, 5)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(cells, seeds):
    rng, tries, held = np.random.default_rng(cells + seeds), 400, 0
    for number in range(tries):
        between = rng.normal(0, 0.1, size=(cells, 1)) if cells > 1 else 0.0
        low, high = interval((between + rng.normal(0, 0.05, size=(cells, seeds))).tolist(), str(number % 7))
        held += low <= 0 <= high
    assert 0.92 <= held / tries <= 0.995


def test_the_bootstrap_counts_cells_and_seeds_and_is_a_function_of_its_purpose():
    values = [[0.0, 0.2], [0.5, 0.9], [0.3, 0.4], [0.1, 0.2], [0.6, 0.9]]
    assert interval(values, "a") == interval(values, "a") != interval(values, "b")
    assert interval([[0.5] * 2] * 5, "a") == pytest.approx((0.5, 0.5), abs=1e-12)
    low, high = interval([[0.4, 0.6], [0.3, 0.7], [0.45, 0.55], [0.2, 0.8], [0.5, 0.5]], "a")
    assert low < 0.5 < high, "cells of one mean: the spread is of seeds alone"


def test_few_cells_have_the_interval_of_student_over_their_means():
    low, high = interval([[0.4, 0.6], [0.9]], "a")  # means 0.5 and 0.9, one degree of freedom
    assert (low, high) == pytest.approx((0.7 - 12.7062 * 0.2, 0.7 + 12.7062 * 0.2), abs=1e-4)
    assert interval([[0.5]], "a") is None
    assert interval([], "a") is None
    assert interval([[0.5], [0.5]], "a") == (0.5, 0.5)
