"""Recovered shares, areas and smallest fractions against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cu_ray.plugins import name_of
from cu_ray.report.cells import baselines, chosen
from cu_ray.report.recovery import area, areas, recovered_share, smallest_fraction, summaries, with_recovery
from cu_ray.report.results import read
from tests.report.made import FRACTIONS, NUM_AFFECTED, folder


def test_the_share_is_0_without_unlearning_1_as_retraining_and_half_in_the_middle():
    assert list(recovered_share([0.1, 0.8, 0.45], 0.1, 0.8)) == pytest.approx([0, 1, 0.5])


def test_the_share_is_never_clipped():
    assert list(recovered_share([0.0, 0.9], 0.1, 0.8)) == pytest.approx([-1 / 7, 8 / 7])


@pytest.mark.parametrize(("retrained", "there"), [(0.149, False), (0.151, True), (0.1, False), (0.05, False), (math.nan, False)])
def test_a_harm_of_under_five_points_has_no_share(retrained, there):
    assert np.isfinite(recovered_share(0.12, 0.1, retrained)) == there


@pytest.mark.parametrize(("images", "there"), [(400, True), (300, False)])
def test_a_harm_of_under_three_standard_errors_has_no_share(images, there):
    # none .5, retrained .6: the error is sqrt((.25 + .24) / n), three of them .1 at n = 441 with both .25: exactly n = 441
    error = math.sqrt((0.5 * 0.5 + 0.6 * 0.4) / (441 * images / 350))
    assert (3 * error <= 0.1) == there
    assert np.isfinite(recovered_share(0.55, 0.5, 0.6, 441 * images / 350)) == there


def test_where_the_number_of_images_is_not_known_five_points_decide():
    assert recovered_share(0.55, 0.5, 0.6, math.nan) == pytest.approx(0.5)


def test_the_area_is_the_mean_height():
    assert area([0, 1], [0, 1]) == 0.5
    assert area([0.1, 0.5, 1.0], [0.3, 0.3, 0.3]) == pytest.approx(0.3)
    assert area([0.1, 0.2, 1.0], [0, 1, 1]) == pytest.approx((0.1 * 0.5 + 0.8) / 0.9)
    assert area([1.0, 0.1, 0.2], [1, 0, 1]) == pytest.approx((0.1 * 0.5 + 0.8) / 0.9)  # in any order


def test_a_single_point_and_a_curve_with_a_hole_have_no_area():
    assert area([0.5], [1]) is None
    assert area([0.1, 0.5, 1], [0, math.nan, 1]) is None


def test_areas_are_taken_by_seed_and_only_of_whole_curves():
    rows = pd.DataFrame(
        [("a", "m", fraction, seed, seed + fraction) for seed in (0, 1) for fraction in (0, 0.5, 1)]
        + [("a", "m", 0, 2, 5.0), ("a", "m", 1, 2, 5.0)],
        columns=["cell", "method", "fraction", "seed", "acc"],
    )
    found = areas(rows, "acc").set_index("seed")["area"]
    assert found[0] == 0.5
    assert found[1] == 1.5
    assert math.isnan(found[2])


def test_the_smallest_fraction_that_reaches_90_percent():
    assert smallest_fraction([0.1, 0.5, 1], [0.2, 0.9, 1]) == 0.5
    assert smallest_fraction([1, 0.5, 0.1], [1, 0.95, 0.91]) == 0.1
    assert smallest_fraction([0.1, 1], [0.89, math.nan]) is None
    assert smallest_fraction([], []) is None


def test_summaries_leave_nulls_out_and_give_one_seed_no_interval():
    rows = pd.DataFrame({"cell": "a", "method": ["m", "m", "n"], "acc": [0.25, 0.75, 0.5], "share": [0.5, math.nan, math.nan]})
    found = summaries(rows, ["cell", "method"], ["acc", "share"]).set_index("method")
    assert found.loc["m", ["acc_n", "acc_mean", "share_n", "share_mean"]].tolist() == [2, 0.5, 1, 0.5]
    assert found.loc["m", "acc_high"] - 0.5 == pytest.approx(math.tan(math.pi * 0.475) * 0.25)
    assert found.loc["n", "acc_n"] == 1
    assert pd.isna(found.loc["n", "acc_low"])
    assert pd.isna(found.loc["n", "share_mean"])


def test_shares_of_a_sweep_are_those_of_its_scores_by_seed(tmp_path):
    made = read(folder(tmp_path / "one"))
    rows = with_recovery(chosen([made], "oracle_validation"), baselines([made], "oracle_validation"))
    assert len(rows) == 4 * 3 * 3
    assert sorted(rows["fraction"].unique()) == FRACTIONS
    none, retrained = (rows[rows["method"] == name] for name in ("no_unlearning", "exact_unlearning"))
    assert list(none["recovered"]) == pytest.approx([0] * 9)
    assert retrained["recovered"].tolist() == pytest.approx(list(retrained["fraction"] ** 4))
    ssd = rows[rows["method"] == "ssd"]
    assert (ssd["lost"] - (0.83 - 0.75)).abs().max() < 1e-9
    expected = (ssd["acc_corr"] - 0.1 - 0.01 * ssd["seed"]) / 0.7
    assert ssd["recovered"].tolist() == pytest.approx(expected.tolist())


def test_a_cell_whose_manipulation_was_not_learned_has_no_shares(tmp_path):
    def harmless(spec, seed):
        return (0.8 if name_of(spec.method) != "exact_unlearning" else 0.83), 0.83

    made = read(folder(tmp_path / "one", harmless))
    assert baselines([made], "oracle_validation")["num_affected"].tolist() == [NUM_AFFECTED] * 3
    rows = with_recovery(chosen([made], "oracle_validation"), baselines([made], "oracle_validation"))
    assert rows["recovered"].isna().all()
    assert rows["lost"].notna().all()


@pytest.mark.parametrize("step", [1, -1])
def test_of_several_retrainings_the_longest_counts_wherever_it_stands(tmp_path, step):
    def longer_is_better(spec, seed):
        return (0.03 * spec.method.steps if name_of(spec.method) == "exact_unlearning" else 0.1), 0.8

    methods = {"no_unlearning": {}, "exact_unlearning": {"points": [{"k": None, "steps": 10}, {"k": None, "steps": 20}]}}
    made = read(folder(tmp_path / "one", longer_is_better, methods=methods))
    found = baselines([replace(made, trials=made.trials[::step])], "oracle_validation")
    assert found["retrained"].tolist() == pytest.approx([0.6] * 3)


def test_without_retraining_there_are_no_shares(tmp_path):
    made = read(folder(tmp_path / "one", methods={"no_unlearning": {}, "exact_unlearning": {"steps": 20, "k": 2}}))
    assert baselines([made], "oracle_validation")["retrained"].isna().all()
    rows = with_recovery(chosen([made], "oracle_validation"), baselines([made], "oracle_validation"))
    assert rows["recovered"].isna().all()
