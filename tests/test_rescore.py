"""`cu-ray rescore`: from the evidence come the very columns that the sweep wrote, and any metric of a file besides."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cu_ray import config, plugins
from cu_ray.cli import main
from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.places import Folder
from cu_ray.report.frame import best_frame
from cu_ray.report.results import read
from cu_ray.report.terminal import best_rows
from cu_ray.stages.poison import poison, selection_half
from cu_ray.sweep.ledger import evidence
from tests import by_hand
from tests.test_docs import block

CONFUSION = {"name": "interclass_confusion", "size": 60, "classes": ["coat", "shirt"]}
PARTS = ("n", "mean", "std", "low", "high")
SEVERAL = [{"name": "backdoor", "size": 60}, CONFUSION, {"name": "random_label_swap", "size": 60}]
MORE = """


@dataclass(frozen=True)
class Calibration(Metric):
    def measure(self, outcome):
        return outcome.retain_confidence.mean()


@dataclass(frozen=True)
class Broken(Metric):
    def measure(self, outcome):
        return outcome.retain_true.nothing


@dataclass(frozen=True)
class NotANumber(Metric):
    def measure(self, outcome):
        return float("nan")


@dataclass(frozen=True)
class NeedsASetting(Metric):
    k: int

    def measure(self, outcome):
        return 0.0
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a sweep with a trigger, with confused classes and with neither, made as the driver does."""
    folder = tmp_path_factory.mktemp("rescored")
    by_hand.run(by_hand.sweep(folder, evidence=True, manipulation=SEVERAL, controls={"trigger_only": True}))
    return folder / "results" / "small"


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A copy of them in the working directory, beside a file of metrics."""
    shutil.copytree(finished, tmp_path / "small")
    (tmp_path / "my_metrics.py").write_text(block("docs/evidence.md", "python", 1) + MORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    return tmp_path / "small"


def rescored(folder, *arguments):
    done = CliRunner().invoke(main, ["rescore", str(folder), *arguments])
    assert done.exit_code == 0, done.output
    return pd.read_parquet(folder / "tables" / "rescored.parquet"), done.output


def refused(folder, *arguments):
    before = (folder / "tables" / "rescored.parquet").exists()
    done = CliRunner().invoke(main, ["rescore", str(folder), *arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert (folder / "tables" / "rescored.parquet").exists() == before
    return done.output


def test_the_metrics_come_out_as_the_sweep_wrote_them_to_the_bit(here):
    table, said = rescored(here)
    names = [f"{prefix}{name}" for name in plugins.names("metrics") for prefix in ("", "val_", "report_")]
    assert list(table.columns) == ["trial_key", "original_key", *names]
    for kind in ("trial", "original"):
        of_kind = table[table["trial_key"].isna() == (kind == "original")]
        wrote = pd.read_parquet(here / "tables" / f"{kind}s.parquet")
        key = f"{kind}_key"
        mine, theirs = (each.set_index(key).sort_index()[names] for each in (of_kind, wrote))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert len(table) == len(evidence.keys(Folder(here / "ledger"))) > 30
    assert table[names].notna().any().all(), "each of the metrics has a meaning somewhere"
    assert table[names].nunique().min() > 1
    assert f"of {len(table)} trials and originals" in said


def test_a_metric_of_ones_own_file_is_what_it_says(here):
    table, _ = rescored(here, "--metric", "my_metrics:WorstClass", "--metric", "asr")
    dataset = FashionMnistSmall().load()
    trials = pd.read_parquet(here / "tables" / "trials.parquet").set_index("trial_key")
    checked = 0
    for row in table[table["trial_key"].notna()].to_dict("records"):
        trial = trials.loc[row["trial_key"]]
        if trial["manipulation"] != "backdoor":
            continue
        seen = pd.read_parquet(here / "ledger" / "evidence" / f"{row['trial_key']}.parquet")["plain"].to_numpy()
        for prefix, counted in (("", slice(None)), ("val_", selection_half(dataset)), ("report_", ~selection_half(dataset))):
            right, labels = (seen == dataset.test.labels)[counted], dataset.test.labels[counted]
            assert row[f"{prefix}my_metrics:WorstClass"] == min(right[labels == each].mean() for each in range(10))
        assert row["asr"] == trial["asr"]
        checked += 1
    assert checked > 5


def test_metrics_that_were_computed_before_stay(here):
    name, worst = "my_metrics:WorstClass", ["my_metrics:WorstClass", "val_my_metrics:WorstClass", "report_my_metrics:WorstClass"]
    first, _ = rescored(here, "--metric", name)
    (here.parent / "my_metrics.py").unlink()  # it is not needed for what is there
    second, said = rescored(here, "--metric", "asr")
    assert f"asr, {name} of {len(first)} trials and originals" in said
    assert list(second.columns) == ["trial_key", "original_key", "asr", "val_asr", "report_asr", *worst]
    pd.testing.assert_frame_equal(second[list(first.columns)], first)
    third, _ = rescored(here, "--metric", "asr", "--metric", "acc_corr")
    pd.testing.assert_frame_equal(third[list(second.columns)], second)


def test_where_models_came_since_all_metrics_are_of_all_of_them(here, monkeypatch):
    whole, _ = rescored(here, "--metric", "my_metrics:WorstClass")
    file = here / "tables" / "rescored.parquet"
    pq.write_table(pq.read_table(file).slice(0, 20), file)
    after, _ = rescored(here, "--metric", "asr")
    pd.testing.assert_frame_equal(after[list(whole.columns)], whole)
    pq.write_table(pq.read_table(file).slice(0, 20), file)
    (here.parent / "my_metrics.py").unlink()
    monkeypatch.delitem(sys.modules, "my_metrics")
    without, said = rescored(here, "--metric", "asr")
    assert "my_metrics:WorstClass" not in without.columns
    assert "Left out: my_metrics:WorstClass" in said
    file.write_bytes(b"PAR1 and nothing")
    assert "my_metrics:WorstClass" not in rescored(here, "--metric", "asr")[0].columns


def test_evidence_holds_what_a_model_sees_with_and_without_the_trigger(here):
    trials = pd.read_parquet(here / "tables" / "trials.parquet")
    for row in trials.to_dict("records"):
        seen = pd.read_parquet(here / "ledger" / "evidence" / f"{row['trial_key']}.parquet")
        assert set(seen["key"]) == {row["trial_key"]}
        assert seen["triggered"].isna().all() == (row["manipulation"] != "backdoor")
        domains = poison(FashionMnistSmall().load(), manipulation_of(row), seed=0).domains
        labels = FashionMnistSmall().load().test.labels
        column = "triggered" if domains.affected.stamped else "plain"
        right = seen[column].to_numpy()[domains.affected.rows] == labels[domains.affected.rows]
        assert right.mean() == row["acc_corr"]


def manipulation_of(row):
    sweep = config.parse(str({**by_hand.SWEEP, "manipulation": SEVERAL}))
    return next(each for _, each in sweep.manipulations if plugins.name_of(each) == row["manipulation"])


def test_neither_models_nor_methods_nor_ray_are_needed(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "cu_ray.methods.gradient_ascent", None)
    monkeypatch.setattr("torch.nn.Module.__call__", None)
    rescored(here)


def test_the_table_shows_them_over_the_trials_and_on_the_images_that_it_reports(here):
    rescored(here, "--metric", "my_metrics:WorstClass", "--metric", "asr")
    name = "my_metrics:WorstClass"
    table = pd.read_parquet(here / "tables" / "rescored.parquet").set_index("trial_key")
    best = pd.read_parquet(here / "tables" / "best.parquet")
    for rule, prefix in (("oracle_validation", "report_"), ("published", "")):
        rows = best_rows(Folder(here / "tables"), rule)
        wrote = best[best["rule"] == rule].to_dict("records")
        assert sorted(row["asr_mean"] or 0 for row in rows) == sorted(np.nan_to_num([row["asr_mean"] for row in wrote]))
        for row in rows:
            assert row[f"{name}_mean"] == pytest.approx(table.loc[row["trial_keys"], prefix + name].mean())
        shown = CliRunner().invoke(main, ["table", str(here), "--rule", rule])
        assert shown.exit_code == 0, shown.output
        assert "WorstClass" in shown.output
    assert list(best_frame(Folder(here / "tables")).columns).count(name) == 1


def test_the_table_shows_none_of_a_row_one_of_whose_trials_was_not_rescored(here):
    rescored(here, "--metric", "my_metrics:WorstClass")
    file = here / "tables" / "rescored.parquet"
    table, row = pq.read_table(file), best_rows(Folder(here / "tables"), None)[0]
    pq.write_table(table.filter(pc.not_equal(table["trial_key"], row["trial_keys"][0])), file)
    after = best_rows(Folder(here / "tables"), None)[0]
    assert (row["my_metrics:WorstClass_mean"] is None, after["my_metrics:WorstClass_mean"] is None) == (False, True)


def report_on(folder, *arguments):
    done = CliRunner().invoke(main, ["report", str(folder), *arguments])
    assert done.exit_code == 0, done.output
    place = folder / "report"
    return pd.read_csv(place / "results.csv"), (place / "report.html").read_text(), place


@pytest.mark.parametrize(("rule", "prefix"), [("oracle_validation", "report_"), ("published", "")])
def test_the_report_shows_them_with_intervals_in_the_page_and_in_both_kinds_of_tables(here, rule, prefix):
    before, page, _ = report_on(here, "--rule", rule)
    assert "WorstClass" not in page
    rescored(here, "--metric", "my_metrics:WorstClass", "--metric", "asr")
    after, page, place = report_on(here, "--rule", rule)
    name = "my_metrics:WorstClass"
    assert [each for each in after.columns if each not in before.columns] == [f"{name}_{part}" for part in PARTS]
    pd.testing.assert_frame_equal(after[before.columns], before)
    table = pd.read_parquet(here / "tables" / "rescored.parquet").set_index("trial_key")
    best = pd.read_parquet(here / "tables" / "best.parquet")
    best = best[(best["rule"] == rule) & best["control"].isna() & (best["manipulation"] == "backdoor") & (best["n"] > 0)]
    checked = 0
    for row in best.to_dict("records"):
        (shown,) = after[
            after["cell"].str.startswith("backdoor")
            & (after["method"] == row["method"])
            & (after["fraction"] == row["deletion_fraction"])
        ].to_dict("records")
        values = table.loc[list(row["trial_keys"]), prefix + name]
        assert (shown[f"{name}_mean"], shown[f"{name}_n"]) == (pytest.approx(values.mean()), len(values))
        checked += 1
    assert checked > 2
    assert "WorstClass" in page
    assert "Nothing is bold" in (place / "WorstClass.tex").read_text()
    assert name not in (place / "acc_corr.tex").read_text()
    (place / "mine.tex").write_text("mine")
    (here / "tables" / "rescored.parquet").unlink()
    report_on(here, "--rule", rule)
    assert not (place / "WorstClass.tex").exists() and (place / "mine.tex").exists()


def test_metrics_of_one_name_and_such_that_bear_a_name_of_ours_are_told_apart(here):
    same = (
        (here.parent / "my_metrics.py")
        .read_text()
        .replace(
            "class WorstClass",
            "class asr(Metric):\n    def measure(self, _):\n        return 0.5\n\n\n@dataclass(frozen=True)\nclass WorstClass",
        )
    )
    (here.parent / "other_metrics.py").write_text(same)
    rescored(here, *(f"--metric={each}" for each in ("my_metrics:WorstClass", "other_metrics:WorstClass", "other_metrics:asr")))
    _, page, place = report_on(here)
    names = ("my_metrics.WorstClass", "other_metrics.WorstClass", "other_metrics.asr")
    assert all(name in page and (place / f"{name}.tex").exists() for name in names)
    assert not (place / "asr.tex").exists()


def test_a_metric_that_the_tables_have_no_value_of_is_taken_from_rescored(here):
    """As after a metric was installed: the same sweep writes tables with an empty column of it."""
    rescored(here)
    for name in ("trials", "best"):
        file = here / "tables" / f"{name}.parquet"
        table = pq.read_table(file)
        for place, column in enumerate(table.column_names):
            if column.removeprefix("val_").removeprefix("report_").startswith("acc_retain"):
                table = table.set_column(place, column, pa.nulls(len(table), pa.float64()))
        pq.write_table(table, file)
    trials = read(here).trials
    values = pd.read_parquet(here / "tables" / "rescored.parquet").dropna(subset="trial_key").set_index("trial_key")
    assert (trials.set_index("trial_key")["report_acc_retain"] == values["report_acc_retain"]).all()
    assert read(here).num_not_rescored == 0
    assert all(row["acc_retain_mean"] is not None for row in best_rows(Folder(here / "tables"), None) if row["trial_keys"])


def test_trials_that_lack_nothing_need_no_rescoring(here):
    rescored(here, "--metric", "asr")
    file = here / "tables" / "rescored.parquet"
    pq.write_table(pq.read_table(file).slice(0, 2), file)
    assert "lack the metrics" not in report_on(here)[1]


def test_the_report_says_which_trials_were_not_rescored(here):
    rescored(here, "--metric", "my_metrics:WorstClass")
    file = here / "tables" / "rescored.parquet"
    assert "lack the metrics" not in report_on(here)[1]
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 3), file)
    assert "3 trials lack the metrics of `cu-ray rescore`" in report_on(here)[1]


@pytest.mark.parametrize(("name", "command"), [("best", "sweep"), ("rescored", "rescore")])
def test_a_damaged_table_is_one_message(here, name, command):
    rescored(here)
    (here / "tables" / f"{name}.parquet").write_bytes(b"PAR1 and nothing")
    done = CliRunner().invoke(main, ["table", str(here)])
    assert done.exit_code == 2
    assert f"{name}.parquet cannot be read" in done.output
    assert f"`cu-ray {command}` writes it anew" in done.output


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            "acc_cor",
            "'acc_cor' is not among the metrics. Allowed: acc_corr, acc_retain, asr, confusion_rate. Did you mean",
        ),
        ("my_metrics:Nothing", "'my_metrics:Nothing': my_metrics has no class 'Nothing'. Allowed: Broken, Calibration, "),
        ("my_metrics:np", "'my_metrics:np' is not a dataclass derived from Metric"),
        (
            "my_metrics:Calibration",
            "needs outcome.retain_confidence, which evidence has not: it holds predicted classes. A",
        ),
        ("my_metrics:Broken", "the metric my_metrics:Broken failed on original "),
        ("my_metrics:NotANumber", "the metric my_metrics:NotANumber gave nan for original "),
        ("my_metrics:NeedsASetting", "cannot be used as it is: "),
    ],
)
def test_a_metric_that_cannot_be_computed_is_one_message(here, metric, said):
    assert said in refused(here, "--metric", metric)


def test_a_sweep_without_evidence_says_how_to_keep_it(here):
    tables = [pd.read_parquet(here / "tables" / f"{name}.parquet") for name in ("trials", "originals")]
    shutil.rmtree(here / "ledger" / "evidence")
    said, keeps = refused(here), "`evidence: true` in the sweep file keeps it; the same `cu-ray sweep`"
    assert f"has no evidence of its {sum(map(len, tables))} models. {keeps}" in said


def test_those_that_have_none_are_counted(here):
    lost = sorted(evidence.keys(Folder(here / "ledger")))[:2]
    for key in lost:
        (here / "ledger" / "evidence" / f"{key}.parquet").unlink()
    table, said = rescored(here)
    assert not {*table["trial_key"], *table["original_key"][table["trial_key"].isna()]} & set(lost)
    assert "2 are without evidence. `evidence: true` in the sweep file" in said


def test_evidence_of_another_data_set_or_sweep_is_refused(here, monkeypatch):
    one = sorted((here / "ledger" / "evidence").iterdir())[0]
    whole = one.read_bytes()
    one.write_bytes(whole[:-20])
    assert f"{one} cannot be read" in refused(here).replace("\n", "")
    one.write_bytes(whole.replace(b"dataset", b"dataxxx"))
    assert "is of another data set than the sweep's" in refused(here)
    one.write_bytes(whole)
    load = FashionMnistSmall.load

    def relabelled(self):
        dataset = load(self)
        labels = np.roll(dataset.test.labels, 1)
        test = type(dataset.test)(dataset.test.pixels, labels)
        return type(dataset)(**{**{f: getattr(dataset, f) for f in dataset.__dataclass_fields__}, "test": test})

    monkeypatch.setattr(FashionMnistSmall, "load", relabelled)
    said = refused(here)
    assert "the data set fashion_mnist_small has changed: its content is not the one that the sweep used" in said


def test_another_version_of_the_manipulation_is_refused(here, monkeypatch):
    monkeypatch.setattr(plugins.find("manipulations", "backdoor"), "version", 99)
    assert "the sweep used version 1 of backdoor, installed is 99" in refused(here)


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    done = CliRunner().invoke(main, ["rescore", str(tmp_path)])
    assert done.exit_code == 2
    assert "is" in done.output and "the folder of a sweep (results/NAME)?" in done.output


def test_the_query_of_the_page_runs_as_printed(here):
    code = block("docs/evidence.md", "python").replace("results/NAME", str(here)).replace("duckdb.sql(", "frame = duckdb.sql(")
    found: dict = {}
    exec(code, found)
    rows = found["frame"].df()
    trials = pd.read_parquet(here / "tables" / "trials.parquet")
    assert rows["images"].sum() == len(trials) * len(FashionMnistSmall().load().test)
    assert set(rows["method"]) == set(trials["method"])
