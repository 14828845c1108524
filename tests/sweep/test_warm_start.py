"""A search that starts from the best point of the next higher deletion fraction."""

from __future__ import annotations

import pandas as pd
import pytest

from cu_ray.sweep import tables
from cu_ray.sweep.judging import best_point
from tests.sweep.simulator import SCRUB, fails, plan, points_of, record_of, run

FRACTIONS = [0.5, 0.1, 1.0]  # in the file's order


def made(warm_start="neighbour", **given):
    return plan({"scrub": {**SCRUB, "trials": 6, **given}}, deletion_fractions=FRACTIONS, search={"warm_start": warm_start})


def alphas(known, planned):
    """The alphas of each fraction's study."""
    return {
        study.fractions[0]: [point["alpha"] for point in points]
        for study, points in zip(planned.studies, points_of(known, planned), strict=True)
    }


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_the_first_point_is_the_best_of_the_next_higher_fraction(sampler):
    planned = made(sampler=sampler)
    known, _ = run(planned, workers=4, seed=1)
    found = alphas(known, planned)
    studies = {study.fractions[0]: study for study in planned.studies}
    for fraction, higher in ((0.5, 1.0), (0.1, 0.5)):
        points = [point.hyperparameters for point in known.points[studies[higher].key].values()]
        best = best_point(studies[higher], points, known.trials, "oracle_validation")
        assert found[fraction][0] == points[best]["alpha"]
        assert len(found[fraction]) == 6, "it counts in the budget"
    cold = made("none", sampler=sampler)
    assert alphas(run(cold)[0], cold)[1.0] == found[1.0]
    assert [study.fractions for study in planned.studies] == [study.fractions for study in cold.studies]


def test_points_depend_neither_on_workers_nor_on_order_nor_on_an_end_in_between():
    planned = made(trials=14)
    alone, _ = run(planned)
    for workers, seed in ((3, 1), (8, 2)):
        assert run(planned, workers=workers, seed=seed)[0].points == alone.points
    again, trace = run(planned, alone)
    assert trace.started == []
    assert again.points == alone.points


def test_where_the_neighbour_has_no_best_point_the_search_starts_cold():
    planned, cold = made(), made("none")

    def outcome(job):
        return fails(job) if job.kind == "trial" and job.spec.deletion_size == 100 else record_of(job)

    known, _ = run(planned, outcome=outcome)
    assert len(alphas(known, planned)[0.5]) == 6
    assert alphas(known, planned)[0.5][0] not in alphas(run(cold)[0], cold)[1.0]


def test_it_is_identity_with_the_neighbours_budget_and_nothing_else_is():
    warm, cold, more = made(), made("none"), made(trials=7)
    keys = [{study.fractions[0]: study.key for study in each.studies} for each in (warm, cold, more)]
    assert keys[0][1.0] == keys[1][1.0] == keys[2][1.0], "the highest fraction has no neighbour"
    assert len({each[0.5] for each in keys}) == 3
    assert len({each[0.1] for each in keys}) == 3


def test_searches_on_each_seed_are_still_one_row_a_fraction(tmp_path):
    planned = plan(
        {"scrub": {**SCRUB, "trials": 4, "sampler": "random"}},
        deletion_fractions=FRACTIONS,
        seeds=[0, 1, 2],
        search={"warm_start": "neighbour", "seeds": "each"},
    )
    known, _ = run(planned)
    tables.write(tmp_path, planned, known)
    best = pd.read_parquet(tmp_path / "best.parquet").query("rule == 'oracle'")
    assert sorted(best["deletion_fraction"]) == sorted(FRACTIONS)
    assert set(best["n"]) == {3}
    assert set(best["num_points_planned"]) == {12}
    by_fraction = best.set_index("deletion_fraction")
    assert list(by_fraction.loc[[0.1, 0.5, 1.0], "pool_adaptive"]) == [True, True, False], "the neighbour's best is no chance"
    assert list(by_fraction.loc[[0.1, 0.5, 1.0], "uses_test_labels"]) == [True, True, True]


def test_grids_and_explicit_points_have_no_neighbour():
    for given in ({"alpha": [0.1, 1], "sampler": "grid"}, {"points": [{"alpha": 1}, {"alpha": 2}]}):
        changed = {name: value for name, value in SCRUB.items() if name != "alpha"} | given
        planned = plan({"scrub": changed}, deletion_fractions=FRACTIONS, search={"warm_start": "neighbour"})
        assert all(study.neighbour is None for study in planned.studies)
