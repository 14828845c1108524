"""What is said of searches whose ranges were badly placed, and which points lie on the front of the two accuracies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cu_ray.sweep import tables
from cu_ray.sweep.preview import preview
from cu_ray.sweep.remarks import edges_of, remarks, without_choice
from tests import by_hand
from tests.sweep.simulator import SCRUB, fails, plan, record_of, run


def scored(acc_of):
    """An outcome in which both accuracies of a trial are a function of its alpha."""

    def outcome(job):
        record = record_of(job)
        if record.kind == "original":
            return record
        scores = {name: acc_of(job.spec.method.alpha) if "acc" in name else score for name, score in record.scores.items()}
        return replace(record, scores=scores, facts=record.facts | {"changed_share": 0.5})

    return outcome


def searched(given, acc_of, **sections):
    made = plan({"scrub": {**SCRUB, **given}}, **sections)
    return made, run(made, outcome=scored(acc_of))[0]


GRID = {"alpha": [0.01, 0.1, 1, 10], "sampler": "grid"}


@pytest.mark.parametrize(
    ("best", "end"), [(0.01, "lower"), (10, "upper"), (0.1, None), (1, None)], ids=["least", "largest", "inside", "inside too"]
)
def test_a_best_value_at_an_end_of_its_range_is_said(best, end):
    made, known = searched(GRID, lambda alpha: 0.9 if alpha == best else 0.5)
    said = remarks(made, known)
    assert said == ([] if end is None else [f"scrub: the best alpha lies at the {end} end of its range in 1 of 1 studies"])


def test_studies_are_counted_together_and_unfinished_ones_not_at_all():
    made, known = searched(GRID, lambda alpha: alpha / 10, deletion_fractions=[0.1, 0.5])
    assert remarks(made, known) == ["scrub: the best alpha lies at the upper end of its range in 2 of 2 studies"]
    missing = next(key for key, record in known.trials.items() if record.spec["deletion_size"] == 10)
    del known.trials[missing]
    assert remarks(made, known) == ["scrub: the best alpha lies at the upper end of its range in 1 of 1 studies"]


def test_near_an_end_counts_in_the_scale_of_the_range():
    study = plan({"scrub": {**SCRUB, "alpha": {"low": 0.001, "high": 10, "log": True}}}).studies[0]
    assert edges_of(study, {"alpha": 0.0011}) == {"alpha": "lower"}
    assert edges_of(study, {"alpha": 9.5}) == {"alpha": "upper"}
    assert edges_of(study, {"alpha": 5.0}) == {}
    linear = plan({"scrub": {**SCRUB, "alpha": {"low": 0.001, "high": 10}}}).studies[0]
    assert edges_of(linear, {"alpha": 0.19}) == {"alpha": "lower"}
    assert edges_of(linear, {"alpha": 0.3}) == {}


def test_two_values_or_values_that_are_no_numbers_have_no_ends():
    study = plan({"scrub": {**SCRUB, "alpha": [0.1, 1], "sampler": "grid"}}).studies[0]
    assert edges_of(study, {"alpha": 1.0}) == {}
    study = plan({"catastrophic_forgetting": {"k": [None, 2, 4], "sampler": "grid"}}).studies[0]
    assert edges_of(study, {"k": 4}) == {}


def test_explicit_points_have_no_ends():
    study = plan({"scrub": {**SCRUB, "points": [{"alpha": 1}, {"alpha": 2}, {"alpha": 3}]}}).studies[0]
    assert edges_of(study, {"alpha": 3.0}) == {}


def test_a_study_in_which_no_point_changed_the_model_is_said():
    made, known = searched(GRID, lambda alpha: 0.9 if alpha == 0.1 else 0.5)
    for key, record in known.trials.items():
        known.trials[key] = replace(record, facts=record.facts | {"changed_share": 0.0})
    assert remarks(made, known) == ["scrub: no point changed the model in 1 of 1 studies: its ranges do not fit"]
    one = next(iter(known.trials))
    known.trials[one] = replace(known.trials[one], facts=known.trials[one].facts | {"changed_share": 1e-9})
    assert remarks(made, known) == []


def test_a_rule_without_a_choice_says_where_and_what_it_lacks():
    few = {"manipulation": {"name": "backdoor", "size": 40}, "deletion_fractions": [0.1, 0.5, 1.0]}
    search = {"objective": "defender"}
    need = "the rule defender needs at least 23 samples found: no choice"
    assert without_choice(plan({"scrub": SCRUB}, **few, search=search)) == [
        f"{need} at deletion fraction 0.1 (4 found), 0.5 (20 found)"
    ]
    assert without_choice(plan({"scrub": SCRUB}, **few, search={"defender": True})) == [
        f"{need} at deletion fraction 0.1 (4 found), 0.5 (20 found)"
    ]
    over_all = plan({"scrub": SCRUB}, **few, search={"defender": True, "scope": "across_fractions"})
    assert without_choice(over_all)[0].startswith(f"{need} over deletion fractions that include 0.1 (4 found), 0.5")
    for nothing in ({"search": {}}, {"search": search, "deletion_fractions": [1.0]}):
        assert without_choice(plan({"scrub": SCRUB}, **few | nothing)) == []
    assert without_choice(plan({"scrub": {**SCRUB, "alpha": 1}}, **few, search={"defender": True})) == []  # there is one point


def test_a_plan_says_so_before_anything_runs(tmp_path):
    few = {
        "manipulation": {"name": "backdoor", "size": 40},
        "deletion_fractions": [0.1, 1.0],
        "search": {"objective": "defender"},
    }
    said = "Note: the rule defender needs at least 23 samples found: no choice at deletion fraction 0.1 (4 found)."
    assert preview(by_hand.sweep(tmp_path, **few)).remarks("`cu-ray sweep`") == [said]
    assert preview(by_hand.sweep(tmp_path)).remarks("`cu-ray sweep`") == []


def test_a_rule_lacks_true_labels_where_one_manipulation_has_none(tmp_path):
    (tmp_path / "rows.csv").write_text("index\n" + "".join(f"{row}\n" for row in range(60)))
    both = [{"name": "backdoor", "size": 100}, {"name": "from_file", "file": str(tmp_path / "rows.csv")}]
    assert without_choice(plan({"scrub": SCRUB}, manipulation=both)) == [
        "the rule oracle_validation needs true labels: no choice with from_file"
    ]


def test_a_search_in_which_no_point_has_a_score_is_said():
    made, known = searched(GRID, lambda alpha: None)
    said = "scrub: no point has a score under the rule of the search in 1 of 1 studies: none is chosen"
    assert remarks(made, known) == [said]
    failed, _ = run(made, outcome=lambda job: record_of(job) if job.kind == "original" else fails(job))
    assert remarks(made, failed) == []  # failures are said by themselves


def test_the_front_holds_the_points_that_no_other_beats_in_both():
    def row(corr, retain, **changes):
        common = {"status": "ok", "study_key": "s", "held_out": False, "unlearning_seed": 0, "seed": 0, "deletion_size": 9}
        return {**common, "val_acc_corr": corr, "val_acc_retain": retain, **changes}

    rows = [row(0.9, 0.1), row(0.5, 0.5), row(0.5, 0.4), row(0.4, 0.5), row(0.1, 0.9), row(0.1, 0.9), row(0.0, 0.2)]
    aside = [row(1, 1, held_out=True), row(1, 1, unlearning_seed=2), row(1, 1, seed=1), row(None, 1), row(1, 1, status="failed")]
    tables._mark_pareto([*rows, *aside])
    assert [each["pareto"] for each in rows] == [True, True, False, False, True, True, False]
    assert [each.get("pareto") for each in aside] == [None, None, True, None, None]
