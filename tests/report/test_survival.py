"""What survives when nobody peeks: scores, ranks and losses under rules that see less."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cu_ray.plugins import name_of
from cu_ray.report.contents import gather, survival_rows
from cu_ray.report.page import rendered
from cu_ray.report.results import read
from cu_ray.report.survival import _measures, survival
from tests.report.made import METHODS, folder


def made(where, **sections):
    return [read(folder(where, **sections))]


def test_scores_ranks_and_losses_are_means_over_cells_of_means_over_seeds():
    """Two cells, of one and of two seeds; two rules, three methods."""
    cells = [
        np.array([[[0.9, 0.8, 0.1], [0.5, 0.7, 0.1]]]),
        np.array([[[0.7, 0.6, 0.3], [0.3, 0.5, 0.3]], [[0.5, 0.8, 0.5], [0.3, 0.5, 0.5]]]),
    ]
    found = _measures(cells)
    score, rank, lost = (found[name][0] for name in ("score", "rank", "lost"))
    np.testing.assert_allclose(score, [[0.75, 0.75, 0.25], [0.4, 0.6, 0.25]])
    np.testing.assert_allclose(rank, [[1.5, 1.5, 3], [2, 1, 3]])
    np.testing.assert_allclose(lost, [[0, 0, 0], [0.35, 0.15, 0]])
    assert np.isnan(found["rank"][1]).all(), "two cells say nothing of ranks"
    mean, low, high = found["lost"]  # Student's t over the cells' means 0.4 and 0.3, one degree of freedom
    assert (low[1, 0], high[1, 0]) == pytest.approx((mean[1, 0] - 12.706 * 0.05, mean[1, 0] + 12.706 * 0.05), abs=1e-4)
    assert (low[1, 2], high[1, 2]) == (0, 0)


def test_from_five_cells_on_intervals_are_of_resamples_and_ranks_have_them_too():
    rng = np.random.default_rng(0)
    cells = [rng.normal(0.5, 0.2, size=(1, 1, 3)) + rng.normal(0, 0.05, size=(seeds, 2, 3)) for seeds in (1, 2, 3, 2, 2)]
    found = _measures(cells)
    for name, (mean, low, high) in found.items():
        assert (low <= mean + 1e-12).all(), name
        assert (mean <= high + 1e-12).all(), name
    assert found["score"][1][0, 0] < found["score"][2][0, 0]
    assert {2 * float(rank) % 1 for end in found["rank"][1:] for rank in end.ravel()} == {0}, "or shared by two"


def test_one_seed_of_one_cell_has_no_interval():
    _, low, high = _measures([np.array([[[0.9, 0.8], [0.5, 0.7]]])])["rank"]
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def even(spec, seed):
    """All points of a method are equally good: SSD is better than SCRUB."""
    return {"scrub": 0.5, "ssd": 0.6}.get(name_of(spec.method), 0.2), 0.5


def luck(spec):
    """On the images that the published rule looks at and others do not, one point of SCRUB in two seems to be good."""
    return 0.4 if name_of(spec.method) == "scrub" and spec.method.alpha < 0.1 else 0.0


def test_who_was_lucky_loses_score_and_rank(tmp_path):
    methods = {**METHODS, "scrub": {"alpha": [1.0, 0.01], "steps": 20, "sampler": "grid"}}
    results = made(tmp_path / "x", accuracies=even, luck=luck, methods=methods, seeds=[0, 1, 2, 3, 4])
    rows = {row["method"]: row for row in survival_rows(gather(results, "oracle"))}
    assert list(rows) == ["scrub", "ssd", "no_unlearning", "exact_unlearning"]
    scrub, ssd = rows["scrub"], rows["ssd"]
    assert (scrub["published"].mean, scrub["oracle_validation"].mean) == (pytest.approx(0.7), pytest.approx(0.5))
    assert scrub["lost, oracle_validation"].mean == pytest.approx(0.2)
    assert ssd["lost, oracle_validation"].mean == pytest.approx(0)
    assert (scrub["rank, published"], scrub["rank, oracle_validation"]) == ("1 (1 to 1)", "2 (2 to 2), 1 down")
    assert (ssd["rank, published"], ssd["rank, oracle_validation"]) == ("2 (2 to 2)", "1 (1 to 1), 1 up")


def test_nothing_is_lost_by_who_has_no_choice_though_the_halves_of_the_test_images_differ(tmp_path):
    found = survival(made(tmp_path / "x", luck=lambda spec: 0.1, seeds=[0, 1, 2, 3, 4]))
    lost = found[(found["measure"] == "lost") & found["method"].isin(["no_unlearning", "exact_unlearning"])]
    assert len(lost) == 8
    assert lost["mean"].abs().max() < 1e-12


def test_the_owners_rules_are_there_and_the_defender_where_it_was_asked_for(tmp_path):
    without = survival(made(tmp_path / "x"))
    assert list(dict.fromkeys(without["rule"])) == ["published", "oracle_validation", "rem_proxy", "potion_stop"]
    results = made(tmp_path / "y", search={"seeds": "each", "defender": True})  # at 0.1 there are too few samples to hold out
    found = survival(results)
    assert list(dict.fromkeys(found["rule"])) == ["published", "oracle_validation", "defender", "rem_proxy", "potion_stop"]
    assert set(found["method"]) == {"no_unlearning", "exact_unlearning", "scrub", "ssd"}
    assert set(found["n"]) == {3}
    contents = gather(results, "oracle_validation")
    score, lost = next(figure for figure in contents.figures if figure.name == "survival").panels
    assert score.columns == lost.columns == ("published", "oracle_validation", "defender", "rem_proxy", "potion_stop")
    known = found.set_index(["measure", "method", "rule"])
    shown = float(known.loc[("score", "ssd", "defender"), "mean"])
    for measure, panel in (("score", score), ("lost", lost)):
        assert {line.name for line in panel.lines} == set(found["method"])
        for line in panel.lines:
            assert line.x == (0, 1, 2, 3, 4)
            assert line.y == tuple(known.loc[(measure, line.name, rule), "mean"] for rule in panel.columns)
    assert {line.low for line in score.lines} == {(None,) * 5}
    assert lost.lines[0].high == tuple(known.loc[("lost", lost.lines[0].name, rule), "high"] for rule in lost.columns)
    page = rendered(contents)
    assert "What survives when nobody peeks" in page
    assert ">validation</text>" in page
    assert f"<title>ssd by defender: {shown:.3f}, n = 3</title>" in page
    assert "rank, defender" in page


def test_without_a_search_there_is_nothing_to_peek_at(tmp_path):
    results = made(tmp_path / "x", methods={"no_unlearning": {}, "exact_unlearning": {"steps": 20}})
    assert not len(survival(results))
    assert 'id="survival"' not in rendered(gather(results, "oracle_validation"))


def test_one_seed_has_ranks_without_intervals(tmp_path):
    rows = survival_rows(gather(made(tmp_path / "x", seeds=[0]), "oracle_validation"))
    assert all(row["rank, published"].replace(".5", "").isdigit() for row in rows)
    assert all(row["published"].low is None and not math.isnan(row["published"].mean) for row in rows)
