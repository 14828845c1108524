"""Best-of-n curves against closed forms and against all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_ray.report.budgets import best_of, best_so_far, curves
from cu_ray.report.cells import cell_names
from cu_ray.report.results import read
from tests.report.made import folder
from tests.sweep.simulator import SCRUB

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=40)


def test_the_best_of_n_whole_numbers_is_the_known_expectation():
    size = 12
    expected = [n * (size + 1) / (n + 1) for n in range(1, size + 1)]  # of the maximum of n of 1, ..., N
    assert best_of(range(1, size + 1), range(1, size + 1)) == pytest.approx(expected)


@REPRODUCIBLE
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=6))
def test_it_is_the_mean_over_all_subsets(pool):
    selection, reported = zip(*pool, strict=True)
    for n in range(1, len(pool) + 1):
        chosen = [
            max(subset, key=lambda place: (selection[place], -place)) for subset in itertools.combinations(range(len(pool)), n)
        ]
        assert best_of(selection, reported)[n - 1] == pytest.approx(np.mean([reported[place] for place in chosen]))


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    assert list(best_of([0.1, 0.9], [0.8, 0.2])) == pytest.approx([0.5, 0.2])


def test_large_pools_do_not_overflow():
    assert best_of(range(2000), range(2000))[[0, -1]] == pytest.approx([999.5, 1999])


def test_the_path_of_a_search_is_its_best_so_far_in_order():
    assert list(best_so_far([0.1, 0.5, 0.5, 0.2, 0.9], [1, 2, 3, 4, 5])) == [1, 2, 2, 2, 5]


def test_curves_of_a_sweep_take_each_search_and_say_which_are_adaptive(tmp_path):
    tpe = {**SCRUB, "trials": 5, "sampler": "tpe"}
    made = read(
        folder(
            tmp_path / "one", methods={"no_unlearning": {}, "scrub": tpe, "exact_unlearning": {"points": [{"k": 2}, {"k": None}]}}
        )
    )
    found = curves(made, cell_names([made]))
    assert found.groupby("method")["n"].max().to_dict() == {"no_unlearning": 1, "scrub": 5, "exact_unlearning": 2}
    assert found.groupby("method")["adaptive"].first().to_dict() == {
        "no_unlearning": False,
        "scrub": True,
        "exact_unlearning": False,
    }
    scores = found[found["method"] == "scrub"]["score"].tolist()
    assert scores == sorted(scores)  # here both halves have the same scores
