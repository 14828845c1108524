"""Best-of-n curves against closed forms and against all subsets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_ray.plugins import name_of
from cu_ray.report.budgets import best_of, best_so_far, curves, searched_on
from cu_ray.report.cells import cell_names
from cu_ray.report.figures import best_of_n, landscapes
from cu_ray.report.results import read
from tests.report.made import METHODS, folder
from tests.sweep.simulator import SCRUB, fails, noise, record_of

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=40)
RANDOM = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 6, "sampler": "random"}}


def by_subsets(pool):
    """[N]: the mean over all subsets of n points of what their best reports, without those in which all failed (nan)."""
    found = []
    for n in range(1, len(pool) + 1):
        subsets = itertools.combinations(range(len(pool)), n)
        known = [[place for place in subset if not math.isnan(pool[place][0])] for subset in subsets]
        best = [max(subset, key=lambda place: (pool[place][0], -place)) for subset in known if subset]
        found.append(np.mean([pool[place][1] for place in best]) if best else math.nan)
    return found


def by_path(pool):
    """[N]: what the best of the first n points reports; nan where all failed."""
    found = []
    for n in range(1, len(pool) + 1):
        known = [point for point in pool[:n] if not math.isnan(point[0])]
        found.append(max(known, key=lambda point: point[0])[1] if known else math.nan)
    return found


def mean_of(curve, pools):
    """[N]: the mean of the curve over the pools that have a score; one that has ended keeps its last."""
    searches, longest = [curve(pool) for pool in pools], max(map(len, pools))
    return list(np.nanmean([[*search, *search[-1:] * (longest - len(search))] for search in searches], axis=0))


def uneven(spec, seed):
    """Points differ, and on all seeds but the first they are far better."""
    return 0.4 * noise(str(spec.method)) + 0.5 * (seed > 0), 0.5


def on_seeds(*seeds):
    """Whatever is on these seeds fails."""
    return lambda job: (fails if getattr(job.spec, "original", job.spec).setting.seed in seeds else record_of)(job)


def unlucky(job):
    """SCRUB fails at some points on seed 1."""
    method = getattr(job.spec, "method", None)
    unlucky = method is not None and name_of(method) == "scrub" and noise(str(method), "fails") < 0.5
    return fails(job) if unlucky and job.spec.original.setting.seed == 1 else record_of(job)


def results_of(where, **given):
    return read(folder(where, uneven, **{"methods": RANDOM, "deletion_fractions": [0.5], **given}))


def pools(results, *seeds):
    """Of each search of SCRUB on these seeds its points, as they count in choosing and in reporting."""
    trials = results.trials[(results.trials["method"] == "scrub") & results.trials["seed"].isin(seeds)]
    scores = (trials["val_acc_corr"] + trials["val_acc_retain"]) / 2  # the same on the other half
    by_search = scores.groupby([trials["study_key"], trials["deletion_size"]], sort=False)
    by_point = [
        own.groupby(trials["hyperparameters"], sort=False).agg(lambda each: each.mean(skipna=False)) for _, own in by_search
    ]
    return [[(score, score) for score in points] for points in by_point]


def curve(results):
    return curves(results, cell_names([results])).query("method == 'scrub'")["score"].tolist()


def test_the_best_of_n_whole_numbers_is_the_known_expectation():
    size = 12
    expected = [n * (size + 1) / (n + 1) for n in range(1, size + 1)]  # of the maximum of n of 1, ..., N
    assert best_of(range(1, size + 1), range(1, size + 1)) == pytest.approx(expected)


@REPRODUCIBLE
@given(st.lists(st.tuples(st.sampled_from([math.nan, 0, 1, 2, 3]), st.floats(0, 1)), min_size=1, max_size=6))
def test_it_is_the_mean_over_all_subsets_in_which_not_all_failed(pool):
    assert best_of(*zip(*pool, strict=True)) == pytest.approx(by_subsets(pool), nan_ok=True)


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    assert list(best_of([0.1, 0.9], [0.8, 0.2])) == pytest.approx([0.5, 0.2])


def test_a_point_that_failed_uses_up_a_trial():
    assert list(best_of([math.nan, 1, 2], [math.nan, 1, 2])) == pytest.approx([3 / 2, 5 / 3, 2])
    assert list(best_so_far([math.nan, 2, math.nan, 1, 3], [9, 2, 9, 1, 3])) == pytest.approx([math.nan, 2, 2, 2, 3], nan_ok=True)


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


@pytest.mark.parametrize("failed", [(), (2,), (1, 2)])
def test_a_point_is_scored_on_the_seeds_of_its_search_and_not_on_those_that_confirm(tmp_path, failed):
    results = results_of(tmp_path / "one", search={"seeds": "first"}, outcome=on_seeds(*failed))
    assert set(results.trials.loc[results.trials["method"] == "scrub", "seed"]) == {0, 1, 2}
    assert set(searched_on(results).query("method == 'scrub'")["seed"]) == {0}
    assert curve(results) == pytest.approx(mean_of(by_subsets, pools(results, 0)))


@pytest.mark.parametrize("search", ["all", "each"])
def test_failed_points_are_tried_and_never_the_best(tmp_path, search):
    results = results_of(tmp_path / "one", search={"seeds": search}, outcome=unlucky)
    own = pools(results, 0, 1, 2)
    assert any(math.isnan(score) for pool in own for score, _ in pool)
    assert curve(results) == pytest.approx(mean_of(by_subsets, own))


def test_a_search_whose_points_all_failed_does_not_count(tmp_path):
    results = results_of(tmp_path / "each", search={"seeds": "each"}, outcome=on_seeds(1))
    assert curve(results) == pytest.approx(mean_of(by_subsets, pools(results, 0, 2)))
    assert curve(results_of(tmp_path / "all", search={"seeds": "all"}, outcome=on_seeds(1))) == []


def test_a_path_begins_with_the_first_point_that_did_not_fail(tmp_path):
    tpe = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 6, "sampler": "tpe"}}
    results = results_of(tmp_path / "one", methods=tpe, search={"seeds": "each"}, outcome=unlucky)
    own = pools(results, 0, 1, 2)
    assert any(math.isnan(score) for pool in own for score, _ in pool)
    assert curve(results) == pytest.approx(mean_of(by_path, own))


def test_a_search_that_has_ended_keeps_its_score(tmp_path):
    results = results_of(tmp_path / "one", search={"seeds": "each"})
    trials = results.trials
    later = trials[(trials["method"] == "scrub") & (trials["seed"] == 1)].index[2:]
    results = replace(results, trials=trials.drop(later))
    assert sorted(map(len, pools(results, 0, 1, 2))) == [2, 6, 6]
    assert curve(results) == pytest.approx(mean_of(by_subsets, pools(results, 0, 1, 2)))


def test_the_figure_says_which_lines_are_one_path_and_what_each_point_is(tmp_path):
    methods = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 5, "sampler": "tpe"}, "ssd": METHODS["ssd"]}
    results = results_of(tmp_path / "one", methods=methods)
    figure = best_of_n([results], cell_names([results]), {"scrub": 0, "ssd": 1})
    assert figure.caption.endswith(" One path: scrub.")
    lines = {line.name: line for line in figure.panels[0].lines}
    assert lines["ssd"].notes[-1] == f"ssd after 4: {lines['ssd'].y[-1]:.3f}"
    without = replace(results, trials=results.trials[results.trials["method"] != "scrub"])
    assert "One path" not in best_of_n([without], cell_names([results]), {"ssd": 1}).caption


def test_in_a_landscape_no_point_is_the_best_alone_on_a_seed_that_confirms(tmp_path):
    results = results_of(tmp_path / "one", methods={"no_unlearning": {}, "ssd": METHODS["ssd"]}, search={"seeds": "first"})
    assert len(results.trials[results.trials["method"] == "ssd"]) > 4
    (panel,) = landscapes([results], cell_names([results]), {"ssd": 0}).panels
    assert len(panel.lines[0].y) == 4
    assert sum(behind == 0 for behind in panel.lines[0].y) == 1
