"""Logs of the published benchmark's code become tables that are shown and compared like a sweep's."""

from __future__ import annotations

import json
import pickle
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cu_ray import config
from cu_ray.cli import main
from cu_ray.identity import mapping_of
from cu_ray.learning.precision import resolve
from cu_ray.places import Folder
from cu_ray.plugins import describe, name_of
from cu_ray.report import results
from cu_ray.report.cells import cell_names, chosen
from cu_ray.report.costs import costs
from cu_ray.sweep import tables
from cu_ray.sweep.published import rows
from tests.published import logs
from tests.published.logs import BACKDOOR, CAT, CONFUSION, DOG, NUM_TEST, SIZE, SWAP, TEST, TRAIN
from tests.report.made import folder
from tests.test_docs import ROOT, block


@pytest.fixture
def published(tmp_path):
    return logs.write(tmp_path / "logs")


def read(where, name):
    return pd.read_parquet(where / "tables" / f"{name}.parquet")


def taken(where, tmp_path):
    """What was imported, and the trials by their source."""
    found = rows.take(where, Folder(tmp_path / "results" / "theirs"))
    return found, read(tmp_path / "results" / "theirs", "trials").set_index("source")


def test_each_run_is_a_trial_with_what_its_name_says(published, tmp_path):
    found, trials = taken(published, tmp_path)
    assert (found.num_originals, found.num_trials, found.failed, found.passed_over) == (1, 17, {}, {})
    assert trials["method"].value_counts().to_dict() == {
        "no_unlearning": 1,
        "exact_unlearning": 4,
        "catastrophic_forgetting": 2,
        "bad_teaching": 2,
        "scrub": 4,
        "ssd": 4,
    }

    def hyperparameters(name):
        return json.loads(trials.loc[f"{BACKDOOR}/{name}", "hyperparameters"])

    assert hyperparameters("10_EU_unlearn_4000_-1") == {"k": None, "steps": 4000}
    assert hyperparameters("10_EU_unlearn_1000_2") == {"k": 2, "steps": 1000}
    scrub = {"alpha": 0.05, "msteps": 100, "steps": 1000, "temperature": 4.0}
    assert hyperparameters("10_Scrub_my_own_name_1000_-1_4_0.05_100") == scrub
    assert hyperparameters("40_SSD_unlearn_1000_-1_0.01_0.1") == {"selection_weight": 0.1, "relative_dampening": 0.1}
    assert hyperparameters("40_SSD_unlearn_1000_-1_5000000.0_1000000.0") == {"selection_weight": 1e6, "relative_dampening": 5.0}
    row = trials.loc[f"{BACKDOOR}/10_EU_unlearn_4000_-1"]
    assert (row["deletion_size"], row["deletion_fraction"], row["seed"], row["keep"]) == (10, 0.25, 0, "best_on_test")
    assert row[["unlearn_seconds", "images_forward", "device", "cu_ray_version", "hp_lr", "val_acc_corr"]].isna().all()


def test_the_scores_of_a_backdoor_are_those_of_the_predictions_whatever_their_order(published, tmp_path):
    _, trials = taken(published, tmp_path)
    row = trials.loc[f"{BACKDOOR}/40_EU_unlearn_4000_-1"]
    others = TEST[round(0.8 * NUM_TEST) :] != 0  # images of other classes that are taken for the target
    assert row["acc_retain"] == pytest.approx(0.85)
    assert row["acc_corr"] == pytest.approx(0.8 + 0.2 * (1 - others.mean()))
    assert row["asr"] == pytest.approx(others.sum() / (TEST != 0).sum())
    assert pd.isna(row["confusion_rate"]) and pd.isna(row["deletion_true"])
    drawn = np.load(tmp_path / "logs" / f"CIFAR10_poisoning_{SIZE}_manip.npy")
    assert read(tmp_path / "results" / "theirs", "originals")["effective_size"].tolist() == [(TRAIN[drawn] != 0).sum()]


def test_of_confused_classes_the_training_accuracies_are_told_too(tmp_path):
    where = logs.write_confusion(tmp_path / "logs")
    predicted = np.where(np.isin(TRAIN, (CAT, DOG)), CAT, TRAIN)
    np.save(where / CONFUSION / "10_EU_unlearn_4000_-1" / "preds_train.npy", logs.logits(predicted))
    said = np.where(TEST == DOG, CAT, TEST)
    np.save(where / CONFUSION / "10_EU_unlearn_4000_-1" / "preds_test.npy", logs.logits(said))
    _, trials = taken(where, tmp_path)
    row = trials.loc[f"{CONFUSION}/10_EU_unlearn_4000_-1"]
    assert (row["acc_corr"], row["acc_retain"], row["confusion_rate"]) == (0.5, 1.0, 0.5)
    assert (row["deletion_true"], row["deletion_given"]) == (1, 0)  # ten cats, labelled dogs
    assert (row["unidentified_true"], row["unidentified_given"]) == pytest.approx((1 / 3, 2 / 3))
    assert json.loads(row["manipulation_settings"]) == {"classes": [CAT, DOG]}


def test_a_random_swap_gives_the_labels_in_the_order_drawn_to_the_rows_in_ascending_order(tmp_path):
    where, drawn = tmp_path / "logs", np.random.default_rng(3).permutation(len(TRAIN))[:SIZE]
    where.mkdir()
    logs.write_drawn(where, "CIFAR100", "randomlabelswap", drawn, [SIZE])
    logs.write_run(where / SWAP / "Naive_pretrainmodel")
    run = logs.write_run(where / SWAP / f"{SIZE}_CF_unlearn_1500_13")
    given = TRAIN.copy()
    for row, label in zip(sorted(drawn), TRAIN[drawn], strict=True):
        given[row] = label
    np.save(run / "preds_train.npy", logs.logits(given))
    _, trials = taken(where, tmp_path)
    row = trials.loc[f"{SWAP}/{run.name}"]
    assert row["deletion_given"] == 1
    assert row["deletion_true"] == pytest.approx((given[drawn] == TRAIN[drawn]).mean())
    assert pd.isna(row["unidentified_given"])
    assert row["acc_corr"] == row["acc_retain"] == pytest.approx(0.8)
    assert (row["model"], row["dataset"], row["hp_k"]) == ("wide_resnet", "cifar100", 13)


def test_the_best_is_chosen_by_the_published_rule_alone(published, tmp_path):
    taken(published, tmp_path)
    best = read(tmp_path / "results" / "theirs", "best")
    own = best[best["rule"] == "published"].set_index(["method", "deletion_fraction"])
    assert len(own) == 12 and set(own["n"]) == {1}
    assert list(own.loc[("scrub", 0.25), "hyperparameters"]) == [
        '{"alpha": 0.05, "msteps": 100, "steps": 1000, "temperature": 4.0}'
    ]
    assert list(own.loc[("ssd", 1.0), "points"]) == [0]
    assert own.loc[("no_unlearning", 0.25), "acc_retain_mean"] == pytest.approx(0.9)
    assert set(best.loc[best["rule"] != "published", "n"]) == {0}


def test_it_is_of_the_same_cell_as_the_sweep_that_the_page_shows(published, tmp_path, monkeypatch):
    _, trials = taken(published, tmp_path)
    monkeypatch.chdir(ROOT)
    sweep = config.parse(block("docs/published.md", "yaml"), "docs/published.md")
    assert {plan.keep for plan in sweep.methods if name_of(plan.cls) not in ("no_unlearning", "ssd")} == {"best_on_test"}
    (train,) = sweep.trains
    setting = {
        "dataset": sweep.datasets[0],
        "model": sweep.models[0],
        "manipulation": replace(sweep.manipulations[0][1], size=SIZE),
    }
    ours = tables.setting_columns(
        "as_published",
        {name: describe(plugin) for name, plugin in setting.items()}
        | {"train": mapping_of(replace(train, precision=resolve(train.precision, "cuda"))), "seed": 0},
    )
    names = [name for name in results.SETTING if name != "detection"]
    assert trials.iloc[0][names].to_dict() == {name: ours[name] for name in names}


def test_table_report_explain_and_diff_take_it(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "results" / "ours", seeds=[0])

    def run(*arguments, code=0):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    assert "17 trials on 1 originals" in run("import", "logs", "--into", "results/theirs")
    shown = run("table", "results/theirs")
    assert "by published, on the whole test set" in shown and "exact_unlearning" in shown
    run("report", "results/theirs")
    page = (tmp_path / "results" / "theirs" / "report" / "report.html").read_text()
    assert "17 trials from logs of the published code" in page and "cu-ray sweep" not in page
    run("report", "results/theirs", "results/ours", "--to", "both")
    assert "ssd (theirs)" in (tmp_path / "both" / "report.html").read_text()
    assert "cells backdoor 40 dataset=cifar10" in run("diff", "results/theirs", "results/ours", "--rule", "published", code=2)
    assert "theirs has nothing under it, but under published" in run(
        "diff", "results/theirs", "results/ours", "--rule", "oracle", code=2
    )
    run("import", "logs", "--into", "results/again")
    assert "Chosen by published: 12 scores in common; 0 means differ" in run("diff", "results/theirs", "results/again")
    key = read(tmp_path / "results" / "theirs", "trials")["trial_key"][3]
    told = run("explain", "results/theirs", key[:16])
    assert f"{BACKDOOR}/10_" in told and "replay" not in told
    both = results.read_all([tmp_path / "results" / "theirs", tmp_path / "results" / "ours"])
    assert len(cell_names(both)) == 2
    assert set(chosen(both, "published")["sweep"]) == {"theirs", "ours"}


def test_what_the_logs_do_not_say_of_costs_is_null(published, tmp_path):
    taken(published, tmp_path)
    found = costs(results.read(tmp_path / "results" / "theirs"))
    assert found["trials"].sum() == 1 + 17
    assert found[["forward", "backward", "seconds", "gpu_hours"]].isna().all(axis=None)


def test_the_page_runs_as_printed(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "results" / "as_published", seeds=[0])
    for line in block("docs/published.md", "bash").splitlines():
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "report-published-as_published" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("preds_test.npy", None, "there is no preds_test.npy"),
        ("preds_test.npy", np.zeros((5, 10), np.float32), "float32 [5, 10], where targetstest.npy needs float [200, classes]"),
        ("preds_test.npy", np.zeros(NUM_TEST, np.float32), "float32 [200]"),
        ("preds_test.npy", np.full((NUM_TEST, 10), np.nan, np.float16), "not finite"),
        ("preds_test.npy", np.zeros((NUM_TEST, 4), np.float32), "class 9, and preds_test.npy 4 classes"),
        ("targetstest.npy", TEST + 0.5, "float64 [200], where a list of whole numbers"),
        ("targetsadv_test.npy", np.zeros(NUM_TEST, int), "not of the same images"),
        ("preds_adv_test.npy", np.array([{"a": 1}]), "cannot be read"),
        ("preds_adv_test.npy", b"", "cannot be read"),
        ("preds_adv_test.npy", pickle.dumps({"a": 1}), "cannot be read"),
    ],
)
def test_a_run_with_a_missing_or_unfit_file_is_a_row_without_scores(published, tmp_path, name, damage, reason):
    run = published / BACKDOOR / "10_BadT_unlearn_1000_-1"
    (run / name).unlink()
    if isinstance(damage, bytes):
        (run / name).write_bytes(damage)
    elif damage is not None:
        np.save(run / name, damage, allow_pickle=True)
    done = CliRunner().invoke(main, ["import", str(published), "--into", str(tmp_path / "results" / "theirs")])
    assert done.exit_code == 1
    assert reason in done.output and f"{BACKDOOR}/{run.name}" in done.output
    row = read(tmp_path / "results" / "theirs", "trials").set_index("source").loc[f"{BACKDOOR}/{run.name}"]
    assert row["status"] == ("diverged" if "finite" in reason else "failed") and reason in row["error"]
    assert pd.isna(row["acc_corr"]) and pd.isna(row["acc_retain"])
    best = read(tmp_path / "results" / "theirs", "best").query("rule == 'published' and method == 'bad_teaching'")
    assert best["n"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CIFAR11_resnet9_poisoning_40_3_4000_0.025", "Did you mean 'CIFAR10'?"),
        ("CIFAR10_resnet10_poisoning_40_3_4000_0.025", "Did you mean 'resnet110'?"),
        ("CIFAR10_resnet9_poisonning_40_3_4000_0.025", "Did you mean 'poisoning'?"),
        ("CIFAR10_resnet9_poisoning_41_3_4000_0.025", "there is no CIFAR10_poisoning_41_manip.npy"),
        ("CIFAR10_resnet9_poisoning_40_3_4000_e", "'e' stands where a number is needed"),
        ("tensorboard", "the name has another form"),
        (f"{BACKDOOR}/10_EUU_unlearn_4000_-1", "Did you mean 'EU'?"),
        (f"{BACKDOOR}/10_EU_unlearn", "should be a name and steps, k"),
        (f"{BACKDOOR}/10_EU_unlearn_4000_all", "'all' stands where a number is needed"),
        (f"{BACKDOOR}/10_SSD_unlearn_1000_-1_1_0", "0 is not possible"),
        (f"{BACKDOOR}/50_EU_unlearn_4000_-1", "50 is not part of 40"),
        (f"{BACKDOOR}/Naive_unlearn", "does not begin with the size"),
    ],
)
def test_a_folder_with_another_name_is_passed_over_with_the_reason(published, tmp_path, name, why):
    (published / name).mkdir()
    done = CliRunner().invoke(main, ["import", str(published), "--into", str(tmp_path / "results" / "theirs")])
    assert done.exit_code == 1
    assert f"Passed over: {name}: " in done.output and why in done.output
    assert "17 trials on 1 originals" in done.output


def test_what_holds_no_logs_is_refused_in_one_message(published, tmp_path):
    def complaint(where, into="theirs"):
        done = CliRunner().invoke(main, ["import", str(where), "--into", str(tmp_path / "results" / into)])
        assert done.exit_code == 2 and done.output.startswith("cu-ray: "), done.output
        return done.output

    assert "there is no folder" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "here are: nothing" in complaint(tmp_path / "empty")
    assert "the name has another form" in complaint(published / BACKDOOR)
    manip = published / f"CIFAR10_poisoning_{SIZE}_manip.npy"
    np.save(manip, np.arange(SIZE - 1))
    assert "39 different rows, where its name says 40" in complaint(published)
    np.save(manip, np.arange(SIZE) + len(TRAIN))
    assert "the training set 400" in complaint(published)


def test_results_of_a_sweep_are_not_written_over(published, tmp_path):
    for name in ("running", "finished"):
        where = tmp_path / "results" / name
        if name == "finished":
            folder(where)  # has tables and no ledger
        else:
            (where / "ledger").mkdir(parents=True)
            (where / "ledger" / "000001.log").write_text("")
        done = CliRunner().invoke(main, ["import", str(published), "--into", str(where)])
        assert done.exit_code == 2 and f"{where} holds the results of a sweep" in done.output


def test_a_deletion_set_that_is_no_part_of_the_manipulated_set_gives_no_scores(tmp_path):
    where = logs.write_confusion(tmp_path / "logs")
    np.save(where / f"CIFAR10_interclasslabelswap_{SIZE}_10_deletion.npy", np.arange(10))
    found, _ = taken(where, tmp_path)
    assert "no part of the manipulated set" in found.failed[f"{CONFUSION}/10_EU_unlearn_4000_-1"]


def test_the_same_logs_give_the_same_tables(published, tmp_path):
    taken(published, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "results" / "theirs" / "tables").iterdir()}
    taken(published, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "theirs" / "tables").iterdir()} == before
