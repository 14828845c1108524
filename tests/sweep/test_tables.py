"""The ledger as tables: readable by all, null where there is nothing to say, whole at every moment."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from cu_ray.errors import UserError
from cu_ray.plugins import names
from cu_ray.selection import RULES
from cu_ray.sweep import judging, ledger, remarks, tables
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.ledger import Known, Ledger
from tests.sweep.simulator import SCRUB, SSD_GRID, agenda_of, fails, fails_sometimes, plan, play, record_of, run

TABLES = ("trials", "originals", "best", "curves")
METRICS = names("metrics")
FRACTIONS = [0.1, 0.5, 1.0]
METHODS = {
    "no_unlearning": {},
    "scrub": {**SCRUB, "trials": 4, "sampler": "random"},
    "exact_unlearning": {"steps": 8},
    "ssd": SSD_GRID,
}
BOTH = [{"name": "backdoor", "size": 100}, {"name": "interclass_confusion", "size": 100}]


def everything(methods=None, **sections):
    defaults = {"seeds": [0, 1, 2, 3], "deletion_fractions": FRACTIONS, "manipulation": BOTH, "search": {"defender": True}}
    return plan(methods or METHODS, **{**defaults, **sections})


def small(**sections):
    return plan({"no_unlearning": {}, "scrub": {**SCRUB, "points": [{"alpha": 1}, {"alpha": 2}]}}, **sections)


def an_exact_unlearning_fails(job):
    spec = job.spec.describe()
    bad = job.kind == "trial" and spec["method"]["name"] == "exact_unlearning" and spec["original"]["setting"]["seed"] == 1
    return fails(job) if bad else record_of(job)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep and its tables."""
    made, folder = everything(), tmp_path_factory.mktemp("tables")
    known, _ = run(made, workers=4, seed=1, outcome=an_exact_unlearning_fails)
    tables.write(folder, made, known)
    frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    return SimpleNamespace(plan=made, known=known, folder=folder, **frames)


def written(folder: Path, made, known) -> SimpleNamespace:
    tables.write(folder, made, known)
    return SimpleNamespace(**{name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES})


def schemas(folder: Path) -> dict[str, dict[str, pa.DataType]]:
    found = {name: pq.read_schema(folder / f"{name}.parquet") for name in TABLES}
    return {name: dict(zip(schema.names, schema.types, strict=True)) for name, schema in found.items()}


# ----------------------------------------------------------------------------------------------------------- reading back


@pytest.mark.parametrize("name", TABLES)
def test_pandas_duckdb_and_pyarrow_read_the_same(done, name):
    path = done.folder / f"{name}.parquet"
    arrow, frame = pq.read_table(path), getattr(done, name)
    found = duckdb.connect().execute(f"select * from read_parquet('{path}')")
    assert [column[0] for column in found.description] == arrow.column_names == list(frame.columns)
    rows = [dict(zip(arrow.column_names, row, strict=True)) for row in found.fetchall()]
    assert rows == arrow.to_pylist()
    assert len(frame) == len(rows) > 0
    for column in frame.columns:
        assert list(frame[column].isna()) == [row[column] is None for row in rows], column


def test_duckdb_answers_a_question(done):
    path = done.folder / "best.parquet"
    asked = f"select method, max(acc_corr_mean) from read_parquet('{path}') where rule = 'oracle' group by method order by method"
    methods = [method for method, best in duckdb.connect().execute(asked).fetchall()]
    assert methods == sorted(METHODS)


@pytest.mark.parametrize("name", TABLES)
def test_the_schema_version_is_in_the_metadata(done, name):
    metadata = pq.read_schema(done.folder / f"{name}.parquet").metadata
    assert metadata[b"cu_ray_schema"] == str(tables.SCHEMA_VERSION).encode()
    assert b"cu_ray_version" in metadata


def test_tables_of_the_ledger_on_the_disk_are_those_of_the_run(tmp_path):
    made = small(seeds=[0, 1, 2])
    with Ledger(tmp_path / "ledger") as journal:
        play(agenda_of(made, journal), workers=3)
        tables.write(tmp_path / "run", made, journal.known)
    tables.write(tmp_path / "disk", made, ledger.read(tmp_path / "ledger"))
    for name in TABLES:
        assert pq.read_table(tmp_path / "run" / f"{name}.parquet").equals(pq.read_table(tmp_path / "disk" / f"{name}.parquet"))


def test_a_seed_that_no_table_holds_costs_no_other_record_its_place(tmp_path):
    made, (known, _) = small(), run(small())
    trial, original = next(iter(known.trials.values())), next(iter(known.originals.values()))
    before = written(tmp_path, made, known)
    setting = original.spec["setting"] | {"seed": 2**63}
    known.add(replace(original, key="large", spec=original.spec | {"setting": setting}))
    of_trial = {"original": trial.spec["original"] | {"setting": setting}, "original_key": "large"}
    known.add(replace(trial, key="large", spec=trial.spec | of_trial))
    after = written(tmp_path, made, known)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(before, name), getattr(after, name))
    said = "trials and originals of seeds of 2^63 or more, which no table holds, so left out: 2"
    assert remarks.left_out(known) == [said]
    assert remarks.left_out(Known()) == []


def test_an_integer_that_no_table_holds_is_null_and_stays_in_the_text_column(tmp_path):
    made = plan({"scrub": {**SCRUB, "points": [{"alpha": 1}, {"alpha": 2}], "msteps": 2**63}})
    trials = written(tmp_path, made, run(made)[0]).trials
    assert trials["hp_msteps"].isna().all()
    assert {json.loads(each)["msteps"] for each in trials["hyperparameters"]} == {2**63}


# ------------------------------------------------------------------------------------------------------------- row counts


def test_there_is_a_row_for_each_trial_and_each_original(done):
    assert sorted(done.trials["trial_key"]) == sorted(done.known.trials)
    assert sorted(done.originals["original_key"]) == sorted(done.known.originals)
    assert len(done.originals) == 2 * 4
    assert set(done.trials["original_key"]) == set(done.originals["original_key"])


def test_best_has_a_row_for_each_study_rule_and_fraction(done):
    keys = done.best[["manipulation", "method", "deletion_fraction", "rule"]]
    assert not keys.duplicated().any()
    assert len(done.best) == 2 * len(METHODS) * len(FRACTIONS) * len(RULES)
    assert set(done.best["rule"]) == set(RULES)


def test_no_unlearning_is_shown_at_each_fraction(done):
    shown = done.best[(done.best["method"] == "no_unlearning") & (done.best["rule"] == "oracle")]
    assert sorted(shown["deletion_fraction"]) == sorted(FRACTIONS * 2)
    assert sorted(shown["deletion_size"]) == [10, 10, 50, 50, 100, 100]
    for _, same in shown.groupby("manipulation"):
        assert same["acc_corr_mean"].nunique() == 1
        assert list(same["n"]) == [4, 4, 4]


def test_fractions_that_come_to_the_same_deletion_set_are_refused():
    with pytest.raises(UserError, match=r"0\.501 of 100 manipulated samples uniform finds the same 50 samples as at 0\.5"):
        plan({"scrub": {**SCRUB, "alpha": 1}}, deletion_fractions=[0.5, 0.501])


def test_a_search_across_fractions_is_one_choice_shown_at_each_fraction(tmp_path):
    made = plan(
        {"scrub": {**SCRUB, "trials": 4, "sampler": "random"}},
        deletion_fractions=FRACTIONS,
        seeds=[0, 1],
        search={"scope": "across_fractions"},
    )
    best = written(tmp_path, made, run(made)[0]).best
    assert len(best) == 3 * len(RULES)
    oracle = best[best["rule"] == "oracle"]
    assert list(oracle["deletion_size"]) == [10, 50, 100]
    assert len({str(point) for point in oracle["hyperparameters"]}) == 1
    assert oracle["acc_corr_mean"].nunique() == 3


def test_a_search_on_each_seed_is_one_row_over_the_choices_of_all(tmp_path):
    made = plan({"scrub": {**SCRUB, "trials": 5, "sampler": "random"}}, seeds=[0, 1, 2], search={"seeds": "each"})
    known, _ = run(made, workers=3)
    best = written(tmp_path, made, known).best
    assert len(best) == len(RULES)
    row = best[best["rule"] == "oracle"].iloc[0]
    assert sorted(row["study_keys"]) == sorted(study.key for study in made.studies)
    assert (row["n"], list(row["seeds"]), row["num_points"], row["num_points_planned"]) == (3, [0, 1, 2], 15, 15)
    scores = [mean_of(known.trials[key].scores, "report_") for key in row["trial_keys"]]
    for seed, score in enumerate(scores):
        pool = [record for record in known.trials.values() if record.spec["original"]["setting"]["seed"] == seed]
        assert score == max(mean_of(record.scores, "report_") for record in pool)
    assert row["score"] == pytest.approx(np.mean(scores))


def mean_of(scores, prefix: str) -> float:
    return (scores[f"{prefix}acc_corr"] + scores[f"{prefix}acc_retain"]) / 2


def test_curves_are_best_in_long_form(done):
    columns = ["manipulation", "method", "deletion_fraction", "rule"]
    best = done.best.set_index(columns)
    for row in done.curves.to_dict("records"):
        source = best.loc[tuple(row[column] for column in columns)]
        assert row["n"] == source["n"]
        for part in ("mean", "std", "low", "high"):
            assert same_number(row[part], source[f"{row['metric']}_{part}"])
    assert len(done.curves) == sum(int(done.best[f"{metric}_mean"].notna().sum()) for metric in METRICS)
    assert set(done.curves["metric"]) == {"acc_corr", "acc_retain", "asr", "confusion_rate"}


def same_number(one, other) -> bool:
    return one == other or (pd.isna(one) and pd.isna(other))


# ----------------------------------------------------------------------------------------------------- what best reports


def test_best_reports_mean_spread_and_interval_over_its_trials(done):
    trials = done.trials.set_index("trial_key")
    for row in done.best.to_dict("records"):
        prefix = "" if row["rule"] == "published" else "report_"
        assert row["n"] == len(row["seeds"]) == len(row["trial_keys"])
        for metric in METRICS:
            values = trials.loc[list(row["trial_keys"]), prefix + metric].dropna()
            if len(values) < 2:
                assert pd.isna(row[f"{metric}_std"])
                continue
            reach = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
            found = [row[f"{metric}_{part}"] for part in ("mean", "std", "low", "high")]
            mean = values.mean()
            assert found == pytest.approx([mean, values.std(), mean - reach, mean + reach], abs=1e-12)


def test_a_search_on_the_first_seed_reports_the_others_and_a_single_point_all(done):
    searched = done.best[done.best["method"].isin(["scrub", "ssd"]) & done.best["score"].notna()]
    assert len(searched) > 0
    assert all(list(seeds) == [1, 2, 3] for seeds in searched["seeds"])
    single = done.best[done.best["method"] == "no_unlearning"]
    assert all(list(seeds) == [0, 1, 2, 3] for seeds in single["seeds"])


def test_with_one_seed_that_seed_is_reported(tmp_path):
    made = small()
    best = written(tmp_path, made, run(made)[0]).best
    assert all(list(seeds) == [0] for seeds in best[best["score"].notna()]["seeds"])
    assert best["acc_corr_std"].isna().all()


def test_failed_trials_are_left_out_of_what_is_reported(done):
    rows = done.best[(done.best["method"] == "exact_unlearning") & (done.best["rule"] == "oracle")]
    assert all(list(seeds) == [0, 2, 3] for seeds in rows["seeds"])
    assert set(rows["n"]) == {3}
    assert set(rows[rows["deletion_size"] == 10]["num_trials_failed"]) == {1}


def test_failed_confirmations_are_counted_among_the_failed_trials(tmp_path):
    made = plan({"scrub": {**SCRUB, "trials": 4}}, seeds=[0, 1, 2])
    known, _ = run(made, outcome=lambda job: fails(job) if job.kind == "trial" and is_confirmation(job) else record_of(job))
    best = written(tmp_path, made, known).best
    assert set(best["num_trials_failed"]) == {sum(not record.ok for record in known.trials.values())}


def is_confirmation(job) -> bool:
    return job.spec.original.setting.seed != 0


def test_the_chosen_point_is_that_of_its_trials(done):
    trials = done.trials.set_index("trial_key")
    for row in done.best[done.best["n"] > 0].to_dict("records"):
        chosen = trials.loc[list(row["trial_keys"])]
        assert set(chosen["hyperparameters"]) == set(row["hyperparameters"])
        assert not chosen["held_out"].any()
        assert set(chosen["method"]) == {row["method"]}


def test_a_rule_chooses_the_best_trial_of_the_search_seed(done):
    trials = done.trials[(done.trials["seed"] == 0) & (done.trials["method"] == "scrub") & ~done.trials["held_out"]]
    for rule, prefix in (("published", ""), ("oracle", "report_"), ("oracle_validation", "val_")):
        score = (trials[f"{prefix}acc_corr"] + trials[f"{prefix}acc_retain"]) / 2
        rows = done.best[(done.best["method"] == "scrub") & (done.best["rule"] == rule)]
        for row in rows.to_dict("records"):
            pool = trials[(trials["manipulation"] == row["manipulation"]) & (trials["deletion_size"] == row["deletion_size"])]
            best = pool.loc[score[pool.index].idxmax()]
            assert [best["hyperparameters"]] == list(row["hyperparameters"])
            assert row["score"] == pytest.approx(score[best.name])


def test_the_defender_chooses_by_held_out_trials_and_is_null_where_too_few_were_found(done):
    rows = done.best[(done.best["rule"] == "defender") & (done.best["method"] == "scrub")]
    few = rows[rows["deletion_size"] == 10]
    assert len(few) == 2
    assert few["score"].isna().all()
    assert (few["n"] == 0).all()
    assert few["acc_corr_mean"].isna().all()
    trials = done.trials[(done.trials["seed"] == 0) & (done.trials["method"] == "scrub") & done.trials["held_out"]]
    score = trials["validation_given"] * (1 - np.maximum(trials["held_out_given"], 0.1))
    for row in rows[rows["deletion_size"] > 10].to_dict("records"):
        pool = trials[(trials["manipulation"] == row["manipulation"]) & (trials["deletion_size"] == row["deletion_size"])]
        best = pool.loc[score[pool.index].idxmax()]
        assert [best["hyperparameters"]] == list(row["hyperparameters"])
        assert row["score"] == pytest.approx(score[best.name])


@pytest.mark.parametrize(
    ("train", "method"),
    [({"keep": "best_on_test"}, {}), ({}, {"keep": "best_on_test"}), ({}, {})],
    ids=["original", "method", "none"],
)
def test_models_kept_by_test_labels_are_told_by_every_row_that_comes_from_them(train, method, tmp_path):
    made = plan({"exact_unlearning": method}, train={"steps": 10, **train})
    done = written(tmp_path, made, run(made)[0])
    peeked = bool(train or method)
    assert set(done.trials["uses_test_labels"]) == set(done.best["uses_test_labels"]) == {peeked}


def test_best_says_how_a_study_was_searched(tmp_path):
    methods = {"scrub": {**SCRUB, "trials": 3}, "ssd": SSD_GRID, "exact_unlearning": {}}
    made = plan(methods, search={"objective": "rem_proxy"})
    best = written(tmp_path, made, run(made)[0]).best.set_index(["method", "rule"])
    assert list(best.loc[("scrub", "oracle"), ["sampler", "search_objective", "pool_adaptive"]]) == ["tpe", "rem_proxy", True]
    assert list(best.loc[("ssd", "oracle"), ["sampler", "pool_adaptive", "uses_test_labels"]]) == ["grid", False, True]
    assert not best.loc[("ssd", "defender"), "uses_test_labels"]
    assert not best.loc[("exact_unlearning", "oracle"), "uses_test_labels"]
    assert pd.isna(best.loc[("exact_unlearning", "oracle"), "sampler"])
    assert list(best.loc["scrub"]["num_points"]) == [3] * len(RULES)


# ------------------------------------------------------------------------------------------------ null, and never 0 for it


def where(frame: pd.DataFrame, **values) -> pd.DataFrame:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    assert len(frame) > 0
    return frame


def test_a_metric_that_a_manipulation_does_not_have_is_null(done):
    for prefix in ("", "val_", "report_"):
        assert where(done.trials, manipulation="interclass_confusion")[f"{prefix}asr"].isna().all()
        assert where(done.trials, manipulation="backdoor")[f"{prefix}confusion_rate"].isna().all()
        assert where(done.trials, manipulation="backdoor", status="ok")[f"{prefix}asr"].notna().all()
    assert where(done.best, manipulation="interclass_confusion")["asr_mean"].isna().all()
    assert "asr" not in set(where(done.curves, manipulation="interclass_confusion")["metric"])


def test_what_belongs_to_a_deletion_set_is_null_without_one(done):
    rows = where(done.trials, method="no_unlearning")
    for column in ("deletion_fraction", "detection_precision", "detection_recall", "deletion_given", "deletion_true"):
        assert rows[column].isna().all(), column
    assert rows["held_out_given"].isna().all()
    assert done.originals[["deletion_given", "deletion_true"]].isna().all(axis=None)


def test_held_out_scores_are_there_for_held_out_trials_only(done):
    ok = where(done.trials, status="ok")
    assert (ok["held_out_given"].notna() == ok["held_out"]).all()


def test_where_all_were_found_nobody_is_unidentified(done):
    ok = where(done.trials, status="ok", method="scrub")
    assert (ok["unidentified_given"].isna() == (ok["deletion_fraction"] == 1.0)).all()


def test_a_failed_trial_is_a_row_with_its_error_and_no_numbers(done):
    rows = where(done.trials, status="failed")
    assert len(rows) == 2 * 5  # three deletion sets, of which two are also held out in part
    assert set(rows["error"]) == {"RuntimeError: no luck"}
    for column in [*METRICS, "images_forward", "unlearn_seconds", "changed_share", "validation_given"]:
        assert rows[column].isna().all(), column
    assert where(done.trials, status="ok")["error"].isna().all()


def test_a_hyperparameter_that_a_method_does_not_have_is_null(done):
    assert where(done.trials, method="ssd")["hp_alpha"].isna().all()
    assert where(done.trials, method="scrub")["hp_alpha"].notna().all()
    for row in done.trials.to_dict("records"):
        for name, value in json.loads(row["hyperparameters"]).items():
            assert same_number(row[f"hp_{name}"], value) or (value is None and pd.isna(row[f"hp_{name}"]))


def test_a_trial_of_no_study_of_the_sweep_has_no_study_key(tmp_path):
    known, _ = run(small())
    trials = written(tmp_path, plan({"no_unlearning": {}}), known).trials.set_index("method")
    assert pd.isna(trials.loc["scrub", "study_key"]).all()
    assert pd.notna(trials.loc["no_unlearning", "study_key"])


def test_confirmations_belong_to_their_study(done):
    studies = {study.key for study in done.plan.studies}
    assert set(done.trials["study_key"]) <= studies
    assert where(done.trials, method="scrub", seed=3)["study_key"].notna().all()


# --------------------------------------------------------------------------------------------------------- stable columns


def hyperparameters_aside(columns: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: kind for name, kind in columns.items() if not name.startswith("hp_")}


@pytest.mark.parametrize("what", ["nothing", "only failures", "only confusion", "only no_unlearning"])
def test_columns_and_their_types_do_not_depend_on_what_is_there(what, done, tmp_path):
    made = {"only confusion": small(manipulation=BOTH[1]), "only no_unlearning": plan({"no_unlearning": {}})}.get(what, small())
    known = Known() if what == "nothing" else run(made, outcome=fails if what == "only failures" else record_of)[0]
    tables.write(tmp_path, made, known)
    for name in TABLES:
        assert hyperparameters_aside(schemas(tmp_path)[name]) == hyperparameters_aside(schemas(done.folder)[name])


def test_a_hyperparameter_column_has_its_type_also_where_all_are_null(tmp_path):
    kinds = []
    for lr in (None, 0.1):
        made = plan({"exact_unlearning": {"steps": 8, "lr": lr}})
        tables.write(tmp_path, made, run(made)[0])
        kinds.append(schemas(tmp_path)["trials"]["hp_lr"])
    assert kinds == [pa.float64(), pa.float64()]


@pytest.mark.parametrize(("earlier", "kind"), [(0.5, pa.float64()), ("half", pa.string()), (True, pa.string())])
def test_a_hyperparameter_may_have_had_another_type_in_an_earlier_version(tmp_path, earlier, kind):
    made = plan({"catastrophic_forgetting": {"steps": [2, 3], "sampler": "grid"}})
    known = run(made)[0]
    key, record = next((key, record) for key, record in known.trials.items() if record.spec["method"]["name"] != "no_unlearning")
    method = record.spec["method"] | {"steps": earlier}
    known.trials[key] = replace(record, spec=record.spec | {"method": method})
    tables.write(tmp_path, made, known)
    assert schemas(tmp_path)["trials"]["hp_steps"] == kind


def test_two_methods_may_give_one_name_to_a_number_and_to_a_text(tmp_path):
    made = plan({"scrub": {**SCRUB, "alpha": 1}, "tests.sweep.own_plugins:TextualAlpha": {}})
    alphas = written(tmp_path, made, run(made)[0]).trials["hp_alpha"]
    assert {str(alpha) for alpha in alphas} == {"1.0", "auto"}


def test_a_model_of_ones_own_is_named_with_its_settings(tmp_path):
    made = small(model={"name": "tests.sweep.own_plugins:OwnNet", "width": 2})
    models = written(tmp_path, made, run(made)[0]).trials["model"]
    assert set(models) == {"tests.sweep.own_plugins:OwnNet(width=2)"}


def test_an_empty_ledger_gives_valid_tables_without_a_result(tmp_path):
    made = small(seeds=[0, 1])
    empty = written(tmp_path, made, Known())
    assert len(empty.trials) == len(empty.originals) == len(empty.curves) == 0
    assert (empty.best["n"] == 0).all()
    assert len(empty.best) == 2 * len(RULES)
    assert empty.best[["score", "acc_corr_mean", "unlearn_seconds_mean"]].isna().all(axis=None)
    count = duckdb.connect().execute(f"select count(*), max(acc_corr) from read_parquet('{tmp_path / 'trials.parquet'}')")
    assert count.fetchall() == [(0, None)]


@pytest.mark.parametrize("kill_after", [1, 3, 9, 20, 40])
def test_tables_of_a_sweep_that_still_runs_show_what_is_there(kill_after, tmp_path):
    made = everything({"no_unlearning": {}, "scrub": {**SCRUB, "trials": 4}, "ssd": SSD_GRID}, seeds=[0, 1])
    journal = ReadOnlyJournal(Known())
    trace = play(agenda_of(made, journal), workers=4, kill_after=kill_after, outcome=fails_sometimes(0.1))
    found = written(tmp_path, made, journal.known)
    assert len(found.trials) + len(found.originals) >= len(trace.ended) == kill_after
    assert len(found.best) == 2 * 3 * len(FRACTIONS) * len(RULES)
    assert set(found.best["num_points_planned"]) == {1, 4}


# ------------------------------------------------------------------------------------------------------------ whole files


class DiskFull(OSError):
    pass


def test_a_write_that_fails_leaves_the_earlier_tables_and_nothing_else(tmp_path, monkeypatch):
    made, folder = small(), tmp_path / "tables"
    tables.write(folder, made, Known())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half(file):
        raise DiskFull

    monkeypatch.setattr(os, "fsync", half)
    with pytest.raises(DiskFull):
        tables.write(folder, made, run(made)[0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_readers_see_whole_tables_at_every_moment(tmp_path, monkeypatch):
    made, seen, folder = small(), [], tmp_path / "tables"
    tables.write(folder, made, Known())
    real_replace = os.replace

    def look() -> None:
        visible = sorted(folder.glob("*.parquet"))
        assert [path.stem for path in visible] == sorted(TABLES)
        seen.append([pq.read_table(path).num_rows for path in visible])

    def replace_and_look(source, target, **options):
        assert Path(source).parent == Path(target).parent
        assert pq.read_table(source).num_columns > 0
        look()
        real_replace(source, target, **options)
        look()

    monkeypatch.setattr(os, "replace", replace_and_look)
    tables.write(folder, made, run(made)[0])
    assert len(seen) == 2 * len(TABLES)
    assert seen[0] != seen[-1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)


def test_a_setting_that_came_later_is_named_only_where_it_is_used():
    described = {"name": "backdoor", "version": 1, "size": 5, "patch": 3, "target": 0}  # as keys have it
    assert tables._compact("manipulations", described) == "backdoor(size=5)"
    assert tables._compact("manipulations", {**described, "value": 0.5}) == "backdoor(size=5, value=0.5)"


@pytest.mark.parametrize(
    "search", [{"seeds": "each"}, {"seeds": "first"}, {"scope": "across_fractions"}, {"warm_start": "neighbour"}]
)
def test_a_detection_that_finds_the_same_at_every_fraction_has_rows_at_all_of_them(tmp_path, search):
    made = everything(manipulation=BOTH[0], detection=["single_sample", "uniform"], seeds=[0, 1], search=search)
    known, _ = run(made, workers=2)
    tables.write(tmp_path, made, known)
    best = pd.read_parquet(tmp_path / "best.parquet")
    counts = best.groupby(["detection", "method", "rule"])["deletion_fraction"].agg(["count", "nunique"])
    assert len(counts) == 2 * len(METHODS) * len(RULES)
    assert set(counts["count"]) == set(counts["nunique"]) == {len(FRACTIONS)}
    alone = best[(best["detection"] == "single_sample") & (best["method"] != "no_unlearning")]
    assert set(alone["deletion_size"]) == {1}
    if "warm_start" not in search:  # there each fraction has a study of its own, which begins from the next
        assert (alone.groupby(["method", "rule"])["acc_corr_mean"].nunique(dropna=False) == 1).all()


def test_of_equal_scores_the_first_is_the_best_whatever_their_last_bits(monkeypatch):
    made = plan({"scrub": {**SCRUB, "points": [{"alpha": 1}, {"alpha": 2}, {"alpha": 3}]}})
    scores = iter([0.4645, 0.46449999999999997 + 1e-13, 0.4])
    monkeypatch.setattr(judging, "point_score", lambda *_: next(scores))
    assert judging.best_point(made.studies[0], [{}, {}, {}], {}, "oracle") == 0
