"""`cu-ray explain`, `cu-ray diff` and `cu-ray table --latex`: read off the tables alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cu_ray.cli import main
from cu_ray.places import at
from cu_ray.plugins import name_of
from cu_ray.report.difference import facts, scores
from cu_ray.report.frame import best_frame
from cu_ray.report.lineage import explain
from cu_ray.report.results import read
from cu_ray.sweep.ledger import Ledger
from tests.report.made import METHODS, folder, smooth
from tests.sweep.simulator import SCRUB, record_of, sweep_file


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("lineage") / "one")


def cu_ray(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_trial_is_explained_by_its_first_digits(one):
    made = read(one)
    row = made.best[(made.best["method"] == "ssd") & (made.best["rule"] == "oracle")].iloc[0]
    key = row["trial_keys"][0]
    known = explain(made, key[:12])
    trial = made.trials.set_index("trial_key").loc[key]
    assert known["trial"] == key
    assert known["original"].startswith(trial["original_key"])
    assert known["given to the method"] == f"{row['deletion_size']} samples, all of them manipulated, found by uniform"
    assert f"oracle at {row['deletion_fraction']:g}" in known["chosen by"]
    assert f"oracle at {row['deletion_fraction']:g}" in known["reported by"]
    assert "repetition" not in known
    assert f"acc_retain {trial['report_acc_retain']:.3g}" in known["scores, report half"]
    assert not {"again", "its weights", "row numbers"} & known.keys()  # there are tables alone
    assert key in cu_ray("explain", one, key[:12]).output.replace("\n", "")


def test_of_a_sweep_that_is_there_it_says_how_to_make_a_trial_again(tmp_path):
    where = folder(tmp_path / "one")
    (where / "ledger").mkdir()
    (where / "ledger" / "000001.log").write_bytes(b"")
    found = read(where).trials.set_index("method")["trial_key"]
    known = explain(read(where), found["scrub"].iloc[0])
    which = f"{where} {known['trial'][:16]}"
    assert (known["again"], known["its weights"]) == (f"cu-ray replay {which}", f"cu-ray export {which}")
    assert known["row numbers"].endswith(f"samples: in sets.parquet, which `cu-ray bundle {where}` writes")
    assert "row numbers" not in explain(read(where), found["no_unlearning"].iloc[0])
    (where / "sets.parquet").write_bytes(b"")  # as in a bundle
    assert explain(read(where), known["trial"])["row numbers"].endswith(f"samples: in {where / 'sets.parquet'}")


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        (1.0, "50 samples, all of them manipulated,"),
        (0.5, "50 samples, 25 of them manipulated,"),
        (0.0, "50 samples, 0 of them"),
        (None, "50 samples, found by uniform"),
    ],
)
def test_false_positives_are_told_from_what_was_manipulated(tmp_path, precision, said):
    def found(job):
        record = record_of(job)
        return replace(record, facts={**record.facts, "detection_precision": precision}) if job.kind == "trial" else record

    made = read(folder(tmp_path / "one", outcome=found, search={"seeds": "each", "defender": True}))
    half = made.trials[(made.trials["deletion_size"] == 50) & (made.trials["method"] == "ssd")]
    for held_out, own in half.groupby("held_out"):
        known = explain(made, own["trial_key"].iloc[0])["given to the method"]
        assert known.startswith(said)
        assert known.endswith("held out for the defender") == held_out


def test_a_trial_without_a_deletion_set_and_one_that_no_rule_chose(one):
    made = read(one)
    none = made.trials[made.trials["method"] == "no_unlearning"].iloc[0]["trial_key"]
    assert explain(made, none)["given to the method"].startswith("nothing")
    chosen = {key for keys in made.best["trial_keys"] for key in keys}
    passed_over = next(key for key in made.trials["trial_key"] if key not in chosen)
    assert explain(made, passed_over)["reported by"] == "no rule"


def test_a_point_is_chosen_by_one_seed_and_reported_on_others(tmp_path):
    made = read(folder(tmp_path / "one", search={"seeds": "first"}))
    row = made.best[
        (made.best["method"] == "ssd") & (made.best["rule"] == "oracle") & (made.best["deletion_fraction"] == 0.5)
    ].iloc[0]
    trials = made.trials[(made.trials["study_key"] == row["study_keys"][0]) & ~made.trials["held_out"]]
    of_point = trials[
        trials["hyperparameters"].map(lambda text: json.loads(row["hyperparameters"][0]).items() <= json.loads(text).items())
    ]
    assert sorted(of_point["seed"]) == [0, 1, 2]
    for key, seed in zip(of_point["trial_key"], of_point["seed"], strict=True):
        known = explain(made, key)
        assert "oracle at 0.5" in known["chosen by"]
        assert ("oracle at 0.5" in known["reported by"]) == (seed != 0)


def test_a_repetition_is_told_from_the_trial_that_it_repeats(tmp_path):
    made = read(folder(tmp_path / "one", controls={"unlearning_seeds": 2}))
    repeated = made.trials[made.trials["unlearning_seed"] == 1].iloc[0]["trial_key"]
    assert explain(made, repeated)["repetition"] == "unlearning seed 1, all else the same"


def test_tables_name_the_detection_and_the_recipe_where_there_are_several(tmp_path):
    where = folder(tmp_path / "one", detection=["uniform", "single_sample"], train=[{"steps": 20}, {"steps": 30}])
    frame = best_frame(at(where / "tables"))
    assert frame.index.names == ["setting", "method", "fraction"]
    assert not frame.index.has_duplicates
    settings = set(frame.index.get_level_values("setting"))
    assert len(settings) == 4
    assert all("detection=" in each and "train.steps=" in each for each in settings)
    assert "detection=single_sample" in cu_ray("table", where).output.replace("\n", "")


@pytest.mark.parametrize(("key", "message"), [("xyz", "no trial of"), ("", "trials of")])
def test_digits_of_no_trial_or_of_several_are_one_message(one, key, message):
    done = cu_ray("explain", one, key)
    assert done.exit_code == 2
    assert message in done.output


def test_equal_results_do_not_differ(one, tmp_path):
    same = folder(tmp_path / "same")
    assert facts(read(one), read(same)) == {}
    assert scores(read(one), read(same), "oracle") == []
    done = cu_ray("diff", one, same)
    assert done.exit_code == 0
    assert "36 scores in common; 0 means differ" in done.output


def test_differences_are_held_to_the_noise_of_seeds(one, tmp_path):
    def shifted(spec, seed):
        corr, retain = smooth(spec, seed)
        if name_of(spec.method) == "exact_unlearning":  # far, and not by the same on each seed
            corr -= 0.05 + 0.0002 * (seed - 1)
        if name_of(spec.method) == "no_unlearning":  # to and fro
            retain += 0.02 * (seed - 1)
        return corr, retain

    other = folder(tmp_path / "other", shifted)
    rows = scores(read(one), read(other), "oracle")
    found = {(row["method"], row["metric"]): row for row in rows if row["fraction"] == 0.5}
    assert set(found) == {("exact_unlearning", "acc_corr"), ("no_unlearning", "acc_retain")}
    assert found["exact_unlearning", "acc_corr"]["difference"] == pytest.approx(-0.05)
    assert found["exact_unlearning", "acc_corr"]["beyond"]
    assert not found["no_unlearning", "acc_retain"]["beyond"]
    done = cu_ray("diff", one, other)
    assert done.exit_code == 1
    assert "3 of them beyond the noise of seeds" in done.output


def test_a_cell_is_called_the_same_in_both(one, tmp_path):
    several = folder(tmp_path / "several", manipulation={"name": "backdoor", "size": 100, "patch": [3, 2]})
    done = cu_ray("diff", one, several)
    assert done.exit_code == 0
    assert "36 scores in common; 0 means differ" in done.output
    assert "Only in several: backdoor 100 patch=2\n" in done.output
    assert "Only in one" not in done.output


def test_results_that_share_nothing_are_refused_with_what_each_has(tmp_path):
    cifar, svhn = (folder(tmp_path / name, dataset=name) for name in ("cifar10", "svhn"))
    done = cu_ray("diff", cifar, svhn)
    assert done.exit_code == 2
    assert "data: cifar10 | svhn" in done.output
    assert "cu-ray: under oracle_validation no cell, method, fraction and seed is in both\n" in done.output
    extent = "methods no_unlearning, exact_unlearning, scrub, ssd; fractions 0.1, 0.5, 1; seeds 0, 1, 2"
    assert f"  cifar10 has cells backdoor 100 dataset=cifar10; {extent}\n" in done.output


def test_the_rule_is_that_of_the_search(tmp_path):
    where = [folder(tmp_path / name, search={"seeds": "each", "objective": "oracle"}) for name in ("one", "two")]
    assert "Chosen by oracle: 36 scores in common" in cu_ray("diff", *where).output
    refused = cu_ray("diff", *where, "--rule", "oracel")
    assert refused.exit_code == 2 and "Did you mean 'oracle'?" in refused.output


def test_what_was_asked_for_otherwise_is_said(one, tmp_path):
    other = folder(tmp_path / "other", train={"steps": 30, "batch_size": 16, "precision": "auto"}, seeds=[0, 1])
    said = facts(read(one), read(other))
    assert said["seeds"] == ("0, 1, 2", "0, 1")
    assert "steps 20" in said["training"][0]
    assert "steps 30" in said["training"][1]


def test_sweep_files_are_compared_path_by_path(tmp_path):
    steps = {"steps": 30, "batch_size": 16, "precision": "auto"}
    sections = {"one": {}, "two": {"train": steps, "name": "other", "runtime": {"workers": 2}, "search": {"lag": 3}}}
    methods = {"one": {**METHODS, "scrub": {**SCRUB, "alpha": [0.1, 1]}}, "two": {**METHODS, "sap": {}}}
    for name in ("one", "two"):
        folder(tmp_path / name)
        (tmp_path / name / "sweep.yaml").write_text(sweep_file(methods[name], **sections[name]))
    said = facts(read(tmp_path / "one"), read(tmp_path / "two"))
    assert {name.removeprefix("sweep.yaml "): pair for name, pair in said.items()} == {
        "train.steps": ("20", "30"),
        "methods.scrub.alpha": ("[0.1, 1]", "-"),
        "methods.scrub.trials": ("-", "4"),
        "methods.scrub.sampler": ("-", "random"),
        "methods.sap": ("-", "{}"),
        "search.lag": ("-", "3"),
    }
    assert "sweep.yaml train.steps: 20 | 30\n" in cu_ray("diff", tmp_path / "one", tmp_path / "two").output
    (tmp_path / "two" / "sweep.yaml").unlink()
    assert facts(read(tmp_path / "one"), read(tmp_path / "two")) == {}


def test_manipulations_in_a_list_are_compared_one_by_one(tmp_path):
    for name, size in (("one", 50), ("two", 60)):
        folder(tmp_path / name)
        several = [{"name": "backdoor", "size": 100}, {"name": "backdoor", "size": size}]
        (tmp_path / name / "sweep.yaml").write_text(sweep_file(METHODS, manipulation=several))
    assert facts(read(tmp_path / "one"), read(tmp_path / "two")) == {"sweep.yaml manipulation[1].size": ("50", "60")}


def test_versions_of_methods_and_their_code_are_compared(tmp_path):
    for name, version, fingerprint in (("one", 1, "aa"), ("two", 2, "bb")):
        path = folder(tmp_path / name) / "tables" / "trials.parquet"
        table = pq.read_table(path)
        versions = [version if method == "ssd" else 1 for method in table["method"].to_pylist()]
        place = table.column_names.index("method_version")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(versions)), path)
        with Ledger(tmp_path / name / "ledger") as book:
            code = {"ssd": {"version": version, "fingerprint": fingerprint}, "scrub": {"version": 1, "fingerprint": "cc"}}
            book.note_code(code | {f"only_in_{name}": {"version": 1, "fingerprint": "dd"}})
    said = cu_ray("diff", tmp_path / "one", tmp_path / "two").output.splitlines()
    assert said[:2] == ["version of ssd: 1 | 2", "code of ssd: version 1, aa | version 2, bb"]
    assert said[2].startswith("Chosen by")


def test_of_many_differences_the_first_are_shown(tmp_path):
    for name in ("one", "two"):
        folder(tmp_path / name)
        steps = {f"my_methods:Fine{number}": {"steps": number if name == "one" else 99} for number in range(40)}
        (tmp_path / name / "sweep.yaml").write_text(sweep_file(steps))
    said = cu_ray("diff", tmp_path / "one", tmp_path / "two").output.splitlines()
    assert said[29:31] == ["sweep.yaml methods.my_methods:Fine29.steps: 29 | 99", "... and 10 more"]


def test_a_table_for_latex_is_the_one_of_the_report(one):
    done = cu_ray("table", one, "--latex", "recovered", "--rule", "oracle")
    assert done.exit_code == 0
    assert "chosen by oracle" in done.output
    assert "\\midrule" in done.output
    assert "\\toprule" in done.output
