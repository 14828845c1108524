"""Means and Student t intervals against tables and closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_ray.report.statistics import Summary, summarise

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=50)
T_975 = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 10: 2.2622, 30: 2.0452}  # by n, from printed tables

accuracies = st.floats(0, 1)


def test_of_nothing_there_is_nothing():
    assert summarise([]) == Summary(0, None, None, None, None)


def test_of_one_value_there_is_a_mean_and_no_spread():
    assert summarise([0.5]) == Summary(1, 0.5, None, None, None)


def test_nulls_are_left_out_and_not_counted():
    assert summarise([None, None]) == Summary(0, None, None, None, None)
    assert summarise([None, 0.5]) == Summary(1, 0.5, None, None, None)
    assert summarise([0.25, None, 0.75]) == summarise([0.25, 0.75])


def test_zero_is_a_value():
    assert summarise([0.0]) == Summary(1, 0.0, None, None, None)
    assert summarise([0.0, 1.0]).n == 2


def test_two_values_have_the_interval_of_the_closed_form():
    summary = summarise([1.0, 3.0])
    assert (summary.n, summary.mean) == (2, 2.0)
    assert summary.std == pytest.approx(math.sqrt(2))
    assert summary.high - 2 == pytest.approx(math.tan(math.pi * 0.475))  # one degree of freedom: Cauchy; std / sqrt(2) = 1
    assert 2 - summary.low == pytest.approx(math.tan(math.pi * 0.475))


def test_three_values_have_the_interval_of_the_closed_form():
    summary = summarise([0.1, 0.2, 0.3])
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # two degrees of freedom
    assert summary.mean == pytest.approx(0.2)
    assert summary.std == pytest.approx(0.1)
    assert summary.high == pytest.approx(0.2 + quantile * 0.1 / math.sqrt(3))
    assert summary.low == pytest.approx(0.2 - quantile * 0.1 / math.sqrt(3))


@pytest.mark.parametrize("n", list(T_975))
def test_the_interval_has_the_width_of_the_t_table(n):
    summary = summarise([float(number) for number in range(n)])
    std = math.sqrt(n * (n + 1) / 12)  # of 0, 1, ..., n - 1
    assert summary.mean == pytest.approx((n - 1) / 2)
    assert summary.std == pytest.approx(std)
    assert summary.high - summary.mean == pytest.approx(T_975[n] * std / math.sqrt(n), rel=1e-4)


def test_equal_values_have_an_interval_of_no_width():
    assert summarise([0.5, 0.5, 0.5]) == Summary(3, 0.5, 0.0, 0.5, 0.5)


@REPRODUCIBLE
@given(st.lists(accuracies, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_is_irrelevant_and_the_interval_symmetric(values, rng):
    shuffled = list(values)
    rng.shuffle(shuffled)
    summary, again = summarise(values), summarise(shuffled)
    assert again.mean == pytest.approx(summary.mean)
    assert again.low == pytest.approx(summary.low, abs=1e-9)
    assert summary.mean - summary.low == pytest.approx(summary.high - summary.mean, abs=1e-9)
    assert summary.low <= summary.mean <= summary.high


@REPRODUCIBLE
@given(st.lists(accuracies, min_size=2, max_size=8))
def test_results_are_plain_numbers(values):
    summary = summarise(values)
    assert type(summary.n) is int
    assert all(type(each) is float for each in (summary.mean, summary.std, summary.low, summary.high))
