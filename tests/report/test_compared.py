"""Methods are compared on the same places, and the report says on how many and what is missing there."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cu_ray.plugins import name_of
from cu_ray.report import contents as content
from cu_ray.report.cells import baselines
from cu_ray.report.contents import few_cells, gather, missing, pair_rows, rank_rows, recovery_rows, result_rows, spot_rows
from cu_ray.report.page import rendered
from cu_ray.report.results import read
from cu_ray.types import OriginalSpec
from tests.report.made import METHODS, folder, smooth
from tests.report.test_false_positives import found, rate_of
from tests.report.test_plane import MANIPULATIONS, by_regularity
from tests.sweep.simulator import fails, record_of

RULE = "oracle_validation"


def gathered(where, *given, **sections):
    return gather([read(folder(where, *given, **sections))], RULE)


def by_method(rows):
    return {row["method"]: row for row in rows}


def seed_zero_is_easy(spec, seed):
    """Without a search a method would gain half a point by being reported on seed 0, which a search looked at."""
    corr, retain = smooth(spec, 0)
    return min(1.0, corr + 0.3 * (seed == 0)), retain


def test_what_needs_no_search_is_compared_on_the_seeds_of_what_was_searched(tmp_path):
    """`search.seeds: first` is the default: searched methods are reported on all seeds but that of the search."""
    made = gathered(tmp_path / "x", seed_zero_is_easy, search={"seeds": "first"}, seeds=[0, 1, 2])
    assert set(made.rows.loc[made.rows["method"] == "no_unlearning", "seed"]) == {0, 1, 2}
    assert set(made.compared[0].index.get_level_values("seed")) == {1, 2}
    ranks = by_method(rank_rows(made))
    assert ranks["no_unlearning"]["score"] == pytest.approx((0.1 + 0.83) / 2)
    assert {row["n"] for row in ranks.values()} == {3 * 2}
    assert ranks["no_unlearning"]["average rank"] == 4


def test_searched_methods_have_their_place_in_the_plane(tmp_path):
    sections = {"manipulation": MANIPULATIONS, "search": {"seeds": "first"}, "seeds": [0, 1, 2]}
    made = gathered(tmp_path / "x", by_regularity, **sections)
    rows = spot_rows(made)
    assert {row["best"] for row in rows if row["cell"].startswith("backdoor")} == {"ssd"}
    assert {row["n"] for row in rows} == {2}
    assert "lacking a seed" not in rows[0]


def lost(*places):
    """Trials of these methods, fractions and seeds fail."""

    def outcome(job):
        if isinstance(job.spec, OriginalSpec):
            return record_of(job)
        at = (name_of(job.spec.method), job.spec.deletion_size, job.spec.original.setting.seed)
        return fails(job) if at in places else record_of(job)

    return outcome


def hard_at_ten(spec, seed):
    """At the smallest fraction every method is worse; SCRUB is always a little worse than SSD."""
    corr = {"ssd": 0.8, "scrub": 0.75}.get(name_of(spec.method), 0.5)
    return corr - 0.4 * (spec.deletion_size == 10) + 0.01 * seed, 0.8


def test_who_failed_where_it_is_hard_gains_nothing(tmp_path):
    made = gathered(tmp_path / "x", hard_at_ten, outcome=lost(("scrub", 10, 1), ("scrub", 10, 2)))
    ranks = by_method(rank_rows(made))
    assert {row["n"] for row in ranks.values()} == {3 * 3 - 2}
    assert ranks["ssd"]["score"] - ranks["scrub"]["score"] == pytest.approx(0.025)
    assert ranks["scrub"]["average rank"] == 2
    pair = next(row for row in pair_rows(made) if {row["method"], row["against"]} == {"scrub", "ssd"})
    assert abs(pair["difference"]) == pytest.approx(0.025)
    cost = next(figure for figure in made.figures if figure.name == "cost").panels[0]
    height = {line.name: line.y[0] for line in cost.lines}
    assert height["ssd"] - height["scrub"] == pytest.approx(0.025)
    assert {re.search(r"n = \d+$", line.notes[0])[0] for line in cost.lines} == {"n = 7"}


def test_who_lacks_most_places_is_not_ranked_and_takes_no_place_from_the_others(tmp_path):
    places = [("scrub", size, seed) for size in (10, 50, 100) for seed in (0, 1)]
    made = gathered(tmp_path / "x", hard_at_ten, outcome=lost(*places))
    ranks = by_method(rank_rows(made))
    assert ranks["scrub"] == {"method": "scrub", "score": None, "average rank": None, "cells": None, "n": None}
    assert ranks["ssd"]["n"] == 9
    assert list(ranks)[-1] == "scrub"
    cost = next(figure for figure in made.figures if figure.name == "cost").panels[0]
    assert {line.name for line in cost.lines} == {"no_unlearning", "exact_unlearning", "ssd"}


def test_folders_of_other_cells_are_compared_where_both_were(tmp_path):
    one = folder(tmp_path / "a", hard_at_ten, manipulation={"name": "backdoor", "size": [50, 100]})
    other = folder(tmp_path / "b", hard_at_ten)
    ranks = by_method(rank_rows(gather([read(one), read(other)], RULE)))
    assert {(row["cells"], row["n"]) for row in ranks.values()} == {(1, 9)}
    assert ranks["ssd (a)"]["score"] == ranks["ssd (b)"]["score"]


def test_folders_that_have_nothing_in_common_are_each_compared_in_themselves(tmp_path):
    one = folder(tmp_path / "a", hard_at_ten, seeds=[0, 1, 2])
    other = folder(tmp_path / "b", hard_at_ten, seeds=[3, 4])
    made = gather([read(one), read(other)], RULE)
    ranks = by_method(rank_rows(made))
    assert (ranks["ssd (a)"]["n"], ranks["ssd (b)"]["n"]) == (9, 6)
    assert ranks["ssd (a)"]["average rank"] == ranks["ssd (b)"]["average rank"] == 1
    pairs = {(row["method"], row["against"]) for row in pair_rows(made)}
    assert ("scrub (a)", "ssd (a)") in pairs
    assert not any("(a)" in one and "(b)" in other for one, other in pairs)
    assert "have no places in common" in rendered(made)


def test_one_seed_in_many_cells_is_tested_over_cells(tmp_path):
    manipulation = {"name": "backdoor", "size": [50, 60, 70, 80, 90, 100]}
    made = gathered(tmp_path / "x", hard_at_ten, seeds=[0], manipulation=manipulation)
    assert not few_cells(made)
    assert {row["p"] for row in pair_rows(made)} != {None}


def test_a_test_over_cells_is_made_where_it_could_find_something(tmp_path):
    sizes = [50, 60, 70, 80, 90, 100, 110]
    manipulation = {"name": "backdoor", "size": sizes}
    two = {name: METHODS[name] for name in ("no_unlearning", "ssd")}
    assert not few_cells(gathered(tmp_path / "two", methods=two, manipulation=manipulation)), "2 / 2^7 < 0.05"
    four = gathered(tmp_path / "four", manipulation=manipulation)
    assert few_cells(four), "six pairs: 12 / 2^7 > 0.05"
    assert "seeds" in pair_rows(four)[0]


def test_cells_that_differ_in_the_detection_alone_count_as_one(tmp_path):
    made = gathered(tmp_path / "x", detection=["uniform", "class_by_class"])
    assert made.rows["cell"].nunique() == 2
    assert {row["cells"] for row in rank_rows(made)} == {1}
    assert {row["n"] for row in rank_rows(made)} == {2 * 3 * 3}


# ------------------------------------------------------------------------------------------------------- what is missing


def test_seeds_that_are_missing_for_every_method_are_missing(tmp_path):
    def outcome(job):
        setting = job.spec.setting if isinstance(job.spec, OriginalSpec) else job.spec.original.setting
        return fails(job) if setting.seed == 2 else record_of(job)

    results = read(folder(tmp_path / "x", outcome=outcome))
    lines = missing(results, RULE)
    assert "no_unlearning: fewer than 3 seeds in 3 of 3 rows" in lines
    assert "ssd: fewer than 3 seeds in 3 of 3 rows" in lines
    assert "Nothing is missing" not in rendered(gather([results], RULE))
    old = replace(results, best=results.best.drop(columns="n_planned"))  # tables that do not say how many there were to be
    assert not [line for line in missing(old, RULE) if line.startswith("ssd")]


def test_a_whole_sweep_lacks_nothing(tmp_path):
    for seeds in ("each", "first", "all"):
        assert missing(read(folder(tmp_path / seeds, search={"seeds": seeds})), RULE) == []


def test_what_lacks_retraining_is_said(tmp_path):
    results = read(folder(tmp_path / "x", methods={name: METHODS[name] for name in ("no_unlearning", "ssd")}))
    (line,) = missing(results, RULE)
    assert line.startswith("no recovered share for 3 of 3 originals: it needs exact_unlearning")


def test_an_original_counts_once_however_it_was_searched(tmp_path):
    methods = {name: METHODS[name] for name in ("no_unlearning", "ssd")}
    results = read(folder(tmp_path / "x", methods=methods, detection=["uniform", "class_by_class"]))
    (line,) = missing(results, RULE)
    assert line.startswith("no recovered share for 3 of 3 originals")


def test_one_seed_in_two_cells_has_intervals_over_cells_and_the_page_says_so(tmp_path):
    made = gathered(tmp_path / "x", seeds=[0], manipulation={"name": "backdoor", "size": [50, 100]})
    assert "one seed: nothing says how much is chance, and intervals are over cells alone" in missing(made.results[0], RULE)


# ----------------------------------------------------------------------------------------------------------------- shares


def test_retraining_without_what_was_found_wrongly_is_no_reference(tmp_path):
    """At a rate of a half, a deletion set as large as the manipulated set leaves half of that in the training data."""

    def poisoned(spec, seed):
        corr = {"no_unlearning": 0.1, "exact_unlearning": 0.8 - 0.9 * rate_of(spec.detection)}.get(name_of(spec.method), 0.45)
        return corr, 0.8

    detection = ["uniform", {"name": "false_positives", "rate": 0.5}]
    made = gathered(tmp_path / "x", poisoned, outcome=found, detection=detection)
    references = baselines(made.results, RULE)
    assert len(references) == 2 * 3
    assert references["retrained"].tolist() == pytest.approx([0.8] * 6)
    ssd = made.rows[made.rows["method"] == "ssd"]
    assert ssd["recovered"].tolist() == pytest.approx([0.5] * len(ssd))
    alone = gathered(tmp_path / "y", poisoned, outcome=found, detection=detection[1])
    assert alone.rows["recovered"].isna().all(), "nobody retrained without the whole manipulated set and nothing else"
    assert any("no recovered share for 3 of 3" in line for line in missing(alone.results[0], RULE))


def learned_by_two(spec, seed):
    """The original of seed 2 never learned the trigger: there is no share there."""
    corr, retain = smooth(spec, 0)
    return (0.8 if seed == 2 else corr), retain


def test_a_mean_over_fewer_seeds_than_its_row_says_over_how_many(tmp_path):
    made = gathered(tmp_path / "x", learned_by_two)
    row = next(row for row in result_rows(made) if row["method"] == "ssd")
    assert (row["n"], row["recovered"].n, row["acc_corr"].n) == (3, 2, 3)
    page = rendered(made)
    assert page.count("<small>n = 2</small>") == 4 * 3 + 4, "each recovered share, and each area under its curve"
    assert "<small>n = 3</small>" not in page


def test_the_fraction_that_recovers_says_at_how_many_seeds(tmp_path):
    def uneven(spec, seed):
        if name_of(spec.method) == "ssd":
            return {0: 0.85, 1: 0.85, 2: 0.7}[seed] if spec.deletion_size >= 50 else 0.2, 0.8
        return smooth(spec, 0)

    rows = by_method(recovery_rows(gathered(tmp_path / "x", uneven)))
    assert rows["ssd"]["90 % from"] == "0.5 (2 of 3 seeds)"
    assert rows["exact_unlearning"]["90 % from"] == "1 (3 of 3 seeds)"
    assert rows["no_unlearning"]["90 % from"] == "never"
    none = by_method(recovery_rows(gathered(tmp_path / "y", methods={"no_unlearning": {}, "ssd": METHODS["ssd"]})))
    assert none["ssd"]["90 % from"] is None
    assert content.MOST == 0.9


def test_a_rule_that_cannot_choose_is_not_a_sweep_without_scores(tmp_path):
    lines = missing(read(folder(tmp_path / "x")), "defender")
    why = "defender cannot choose among its trials, published, oracle, oracle_validation, rem_proxy, potion_stop can"
    assert [line for line in lines if line.startswith("ssd")] == [f"ssd has no result: {why}"]


def test_reasons_that_are_not_shown_are_counted(tmp_path):
    def outcome(job):
        return fails(job, error=f"RuntimeError: {job.key}") if not isinstance(job.spec, OriginalSpec) else record_of(job)

    rows = content.failure_rows(read(folder(tmp_path / "x", outcome=outcome)))
    assert len(rows) == content.MOST_REASONS + 1
    count = rows[-1]["trials"]
    assert rows[-1]["reason"] == f"{count} more reasons: see trials.parquet"
    assert count > 1
