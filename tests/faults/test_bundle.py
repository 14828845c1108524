"""`cu-ray bundle`: what is archived is whole, says what was used, and makes the same again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file

from cu_ray import config, plugins
from cu_ray.cli import main
from cu_ray.stages import pipeline
from cu_ray.stages.poison import detect, poison
from cu_ray.store import LocalStore
from cu_ray.sweep import bundle as bundles
from tests import by_hand, sweeps


@pytest.fixture(scope="module")
def finished(undisturbed, tmp_path_factory):
    """A folder with a finished sweep, its store and its bundle."""
    folder = tmp_path_factory.mktemp("bundled")
    shutil.copytree(undisturbed, folder, dirs_exist_ok=True)
    status = folder / "results" / "small" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"storage": str(folder / "store")}))
    done = sweeps.command(folder, "bundle", "results/small")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_checksums_are_those_of_all_files(finished):
    bundle = finished / "small-bundle"
    checked = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {line.rpartition(": ")[0] for line in checked.stdout.splitlines()} == files - {"SHA256SUMS"}
    assert yaml.safe_load((bundle / "CITATION.cff").read_text())["cff-version"] == "1.2.0"


def test_tables_and_originals_are_those_of_the_sweep(finished):
    bundle, results = finished / "small-bundle", finished / "results" / "small"
    for table in ("trials", "originals", "best", "curves"):
        assert (bundle / "tables" / f"{table}.parquet").read_bytes() == (results / "tables" / f"{table}.parquet").read_bytes()
    keys = pd.read_parquet(bundle / "tables" / "originals.parquet")["original_key"]
    assert {path.stem for path in (bundle / "originals").iterdir()} == set(keys)
    for key in keys:
        kept = LocalStore(finished / "store").load("originals", key)[0]
        written = load_file(bundle / "originals" / f"{key}.safetensors")
        assert {name: array.tobytes() for name, array in written.items()} == {name: a.tobytes() for name, a in kept.items()}


def test_sets_are_those_that_were_used(finished):
    sweep = config.load(finished / "small-bundle" / "sweep.yaml")
    sets = pd.read_parquet(finished / "small-bundle" / "sets.parquet")
    trials = pd.read_parquet(finished / "results" / "small" / "tables" / "trials.parquet")
    dataset, manipulation = sweep.manipulations[0]
    for seed, originals in trials.groupby("seed")["original_key"]:
        poisoned = poison(dataset.load(), manipulation, seed=seed)
        expected = {
            ("manipulated", None): poisoned.corruption.indices,
            ("selection_half", None): np.flatnonzero(poisoned.selection_half),
            **{("deletion", size): detect(poisoned, sweep.detections[0], size, None).deletion for size in (30, 300)},
        }
        (original,) = originals.unique()
        mine = sets[sets["original_key"] == original]
        found = {
            (row.set, None if np.isnan(row.deletion_size) else int(row.deletion_size)): row.rows for row in mine.itertuples()
        }
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            assert found[name].tolist() == rows.tolist()


def test_the_sweep_file_of_the_bundle_asks_for_what_was_run(finished):
    done = sweeps.command(finished, "sweep", "small-bundle/sweep.yaml")
    assert "Nothing to do" in done.stdout, done.stdout + done.stderr


def test_so_does_that_of_a_part_with_further_seeds(tmp_path):
    sections = {"methods": by_hand.METHODS, "controls": {"never_manipulated": True}, "deletion_fractions": [0.5, 1.0]}
    runtime = {"output": str(tmp_path / "results"), "storage": str(tmp_path / "store"), "device": "cpu"}
    text = yaml.safe_dump({**by_hand.SWEEP, **sections, "runtime": runtime})
    asked = config.parse(text, seeds=[2, 3], only=["method=gradient_ascent,method=no_unlearning", "fraction=0.5", "seed=0"])
    assert len(by_hand.run(asked)) == 10  # three originals, and on them three trials without unlearning and four with
    tables = {path.name: path.read_bytes() for path in (tmp_path / "results" / "small" / "tables").iterdir()}
    assert by_hand.run(config.load(tmp_path / "results" / "small" / "sweep.yaml")) == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "small" / "tables").iterdir()} == tables


def test_what_is_in_the_way_or_missing_is_one_message(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    again = CliRunner().invoke(main, ["bundle", "results/small"])
    assert again.exit_code == 2
    assert "small-bundle is there already: give another folder with --to" in again.output
    nothing = CliRunner().invoke(main, ["bundle", str(tmp_path)])
    assert nothing.exit_code == 2
    assert "the folder of a sweep" in nothing.output


OWN = """
from dataclasses import dataclass
from typing import ClassVar

from bundled_lab.deep.helper import VERSION
from cu_ray.methods.no_unlearning import NoUnlearning


@dataclass(frozen=True)
class Same(NoUnlearning):
    version: ClassVar[int] = VERSION
"""


def test_it_has_what_was_rescored_own_plugins_with_what_they_import_and_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    files = {"bundled_lab/fancy.py": OWN, "bundled_lab/deep/helper.py": "VERSION = 1\n", "bundled_lab/other.py": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    by_hand.run(by_hand.sweep(tmp_path, evidence=True, methods={"bundled_lab.fancy:Same": {}}, seeds=[0]))
    rescored = CliRunner().invoke(main, ["rescore", "results/small", "--metric", "asr"])
    assert rescored.exit_code == 0, rescored.output
    done = CliRunner().invoke(main, ["bundle", "results/small"])
    assert done.exit_code == 0, done.output
    bundle = tmp_path / "small-bundle"
    assert (bundle / "tables" / "rescored.parquet").read_bytes() == Path("results/small/tables/rescored.parquet").read_bytes()
    code = {str(path.relative_to(bundle / "code")): path.read_text() for path in (bundle / "code").rglob("*") if path.is_file()}
    assert code == {name: files[name] for name in ("bundled_lab/fancy.py", "bundled_lab/deep/helper.py")}
    sums = (bundle / "SHA256SUMS").read_text()
    assert f"{hashlib.sha256(OWN.encode()).hexdigest()}  code/bundled_lab/fancy.py\n" in sums
    versions = json.loads((bundle / "versions.json").read_text())
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == version("torch") and versions["ray"] == version("ray")


def test_sets_are_of_trials_of_earlier_versions_too_as_far_as_those_installed_can_tell_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {"catastrophic_forgetting": {"steps": 2}}
    for number in (1, 2):  # versions of the method, which has no say in the sets
        monkeypatch.setattr(plugins.find("methods", "catastrophic_forgetting"), "version", number)
        by_hand.run(by_hand.sweep(tmp_path, methods=methods, seeds=[0], deletion_fractions=[number / 2]))
    made = bundles.bundle("results/small", None)
    assert made.num_untold == 0
    sets = pd.read_parquet("small-bundle/sets.parquet")
    assert sets["deletion_size"].dropna().tolist() == [30, 60]

    monkeypatch.setattr(plugins.find("detections", "uniform"), "version", 2)
    by_hand.run(by_hand.sweep(tmp_path, methods=methods, seeds=[0], deletion_fractions=[0.9]))
    made = bundles.bundle("results/small", tmp_path / "later")
    assert made.num_untold == 2
    sets = pd.read_parquet("later/sets.parquet")
    assert sets["deletion_size"].dropna().tolist() == [54]
    assert len(pd.read_parquet("later/tables/trials.parquet")) == 3
    told = "row numbers (without those of 2 trials, whose plug-ins are others here or not found, or whose detection needs an "
    told += "original that is gone)\n"
    assert told in Path("later/README.txt").read_text()
    assert "row numbers\n" in Path("small-bundle/README.txt").read_text()


def test_sets_that_an_original_found_are_those_that_were_used_or_left_out(tmp_path, monkeypatch):
    """Nothing is trained for a bundle, and what a GPU ranked a processor does not rank anew."""
    monkeypatch.chdir(tmp_path)
    methods = {"catastrophic_forgetting": {"steps": 2}}
    sweep = by_hand.sweep(tmp_path, methods=methods, seeds=[0], detection=["uniform", "loss_ranking"])
    by_hand.run(sweep)
    (entry,) = (tmp_path / "store" / "memos").glob("*.safetensors")
    kept = entry.read_bytes()
    key, (losses, facts) = entry.stem, LocalStore(tmp_path / "store").load("memos", entry.stem)
    LocalStore(tmp_path / "store").save("memos", key, {"losses": -losses["losses"]}, facts)  # as if of another device
    monkeypatch.setattr(pipeline, "train", lambda *given: pytest.fail("an original is trained"))
    bundles.bundle("results/small", tmp_path / "a")
    sets = pd.read_parquet("a/sets.parquet").set_index("detection")["rows"]
    ranked = next(rows for name, rows in sets.items() if "loss_ranking" in str(name))
    assert sorted(ranked) == sorted(np.argsort(losses["losses"], kind="stable")[:30])

    entry.write_bytes(kept)
    for original in (tmp_path / "store" / "originals").glob("*.safetensors"):
        original.unlink()
    assert bundles.bundle("results/small", tmp_path / "b").num_untold == 0
    entry.unlink()
    assert bundles.bundle("results/small", tmp_path / "c").num_untold == 1
    sets = pd.read_parquet("c/sets.parquet")
    assert ["uniform" in name for name in sets["detection"].dropna()] == [True]


def test_a_row_has_a_model_a_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {"no_unlearning": {}, "gradient_ascent": {"steps": 2, "trials": 2}}
    by_hand.run(by_hand.sweep(tmp_path, methods=methods, search={"sampler": "random", "seeds": "each"}))
    done = CliRunner().invoke(main, ["bundle", "results/small", "--models"])
    assert done.exit_code == 0, done.output
    best = pd.read_parquet("results/small/tables/best.parquet")
    (keys,) = best.loc[best["rule"] == best["search_objective"], "trial_keys"]
    assert len(keys) == 2
    assert {path.name for path in Path("small-bundle/models").iterdir()} == {key[:16] for key in keys}
    bundles.bundle("results/small", Path("again"), models=True)
    same = [line for line in Path("again/SHA256SUMS").read_text().splitlines() if "CITATION" not in line]  # it has a date
    assert set(same) < set(Path("small-bundle/SHA256SUMS").read_text().splitlines())


def test_what_is_unfinished_says_so(finished, tmp_path, monkeypatch):
    assert "UNFINISHED" not in (finished / "small-bundle" / "README.txt").read_text()
    shutil.copytree(finished / "results" / "small", tmp_path / "small")
    status = tmp_path / "small" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"trials": 65, "trials_done": 40}))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["bundle", "small"])
    assert done.exit_code == 0, done.output
    assert "Note: unfinished: 40 of 65 trials are done.\n" in done.output
    assert "\nUNFINISHED: 40 of 65 trials are done.\n\n" in (tmp_path / "small-bundle" / "README.txt").read_text()


def test_an_original_that_is_gone_is_said_and_corrected_models_are_written_where_asked(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    lost = next((finished / "store" / "originals").glob("*.safetensors"))
    lost.rename(tmp_path / lost.name)
    try:
        done = CliRunner().invoke(main, ["bundle", "results/small", "--to", str(tmp_path / "b")])
    finally:
        (tmp_path / lost.name).rename(lost)
    assert done.exit_code == 0, done.output
    assert "1 originals are in the store no more" in done.output
    assert not (tmp_path / "b" / "originals" / lost.name).exists()

    done = CliRunner().invoke(main, ["bundle", "results/small", "--to", str(tmp_path / "with"), "--models"])
    assert done.exit_code == 0, done.output
    models = sorted((tmp_path / "with" / "models").iterdir())
    best = pd.read_parquet(finished / "results" / "small" / "tables" / "best.parquet")
    rows = best[(best["rule"] == best["search_objective"]) & best["score"].notna()]
    assert {path.name for path in models} == {key[:16] for key in rows["trial_keys"].explode()}
    assert all((path / "model.safetensors").exists() for path in models)
    assert f"models/{models[0].name}/model.safetensors" in (tmp_path / "with" / "SHA256SUMS").read_text()


@pytest.fixture
def here(tmp_path):
    """An empty folder."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("there", [False, True])
def test_after_a_kill_in_the_middle_the_same_command_makes_the_same_bundle(finished, here, there):
    """Killed with -9 by itself, where it has written most of it; in a folder that is empty or not there."""
    if there:
        (here / "whole").mkdir()
    half = (
        "import os, signal; from cu_ray.sweep import bundle; from cu_ray import cli;"
        "bundle._citation = lambda name: os.kill(os.getpid(), signal.SIGKILL); cli.main()"
    )
    command = ["bundle", str(finished / "results" / "small"), "--to", "whole"]
    killed = subprocess.run([sys.executable, "-c", half, *command], cwd=here, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    left = here / "whole" / ".unfinished" if there else here / ".whole.unfinished"
    assert [path.name for path in left.parent.iterdir()] == [left.name]
    assert len([path for path in left.rglob("*") if path.is_file()]) > 5
    (left / "of an earlier version").touch()
    done = sweeps.command(here, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in here.iterdir()] == ["whole"]
    sums = [(folder / "SHA256SUMS").read_text().splitlines() for folder in (here / "whole", finished / "small-bundle")]
    assert set(sums[0]) == set(sums[1])
    assert not (here / "whole" / ".unfinished").exists()


def test_a_bundle_in_the_current_folder_is_seen_there(finished, here, monkeypatch):
    monkeypatch.chdir(here)
    before = here.stat().st_ino
    done = CliRunner().invoke(main, ["bundle", str(finished / "results" / "small"), "--to", "."])
    assert done.exit_code == 0, done.output
    assert here.stat().st_ino == before
    assert {"README.txt", "SHA256SUMS", "tables"} <= set(os.listdir("."))


@pytest.fixture
def disturbed(finished, here, monkeypatch):
    """`cu-ray bundle --to whole` in an folder of its own, during which something else happens."""
    monkeypatch.chdir(here)
    citation = bundles._citation

    def run(disturb):
        def cited(name: str) -> str:
            monkeypatch.setattr(bundles, "_citation", citation)
            disturb()
            return citation(name)

        monkeypatch.setattr(bundles, "_citation", cited)
        return bundle_of(finished, "whole")

    return run


def bundle_of(finished: Path, target: str):
    return CliRunner().invoke(main, ["bundle", str(finished / "results" / "small"), "--to", target])


def test_of_two_at_once_one_makes_it_and_the_other_is_told_so(finished, disturbed, here):
    others = []
    done = disturbed(lambda: others.append(bundle_of(finished, "whole")))
    assert done.exit_code == 0, done.output
    (refused,) = others
    assert refused.exit_code == 2
    process = f"process {os.getpid()} on {platform.node()}"
    assert refused.output == f"cu-ray: whole is being written by {process}: wait for it or stop it\n"
    assert [path.name for path in here.iterdir()] == ["whole"]
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd="whole", check=True)


def test_what_came_into_its_place_meanwhile_stays_as_it_is(disturbed, here):
    refused = disturbed(lambda: (Path("whole").mkdir(), Path("whole/mine").write_text("mine")))
    assert refused.exit_code == 2
    assert refused.output == "cu-ray: whole is there already: give another folder with --to\n"
    assert [path.name for path in here.rglob("*")] == ["whole", "mine"]


def test_after_an_interrupt_there_is_nothing(disturbed, here):
    def interrupt():
        raise KeyboardInterrupt

    assert disturbed(interrupt).exit_code == 130
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/proc/x", "cannot be written: "),
        ("file/below", "cannot be written: "),
        ("shut/x", "cannot be written: Permission denied"),
        ("dangling", "is there already"),
        ("round", "is there already"),
        ("x" * 250, "cannot be written: File name too long"),
        ("/proc", "is there already"),
    ],
)
def test_where_nothing_can_be_written_there_is_one_message_and_nothing_left(finished, here, monkeypatch, target, said):
    monkeypatch.chdir(here)
    (here / "file").touch()
    (here / "dangling").symlink_to("nothing")
    (here / "round").symlink_to("round")
    (here / "shut").mkdir()
    make = Path.mkdir

    def mkdir(path, *arguments, **options):  # a mode would not stop root
        if path.parent == here / "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused = bundle_of(finished, target)
    assert refused.exit_code == 2, refused.output
    assert refused.output.startswith(f"cu-ray: {target} {said}"), refused.output
    assert refused.output.endswith("ive another folder with --to\n") and refused.output.count("\n") == 1
    assert {path.name for path in here.rglob("*")} == {"file", "dangling", "round", "shut"}


@pytest.fixture
def copied(finished, here):
    """A copy of the results in a folder of its own, to be damaged."""
    return Path(shutil.copytree(finished / "results" / "small", here / "small"))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(ledger: Path) -> None:
    for file in ledger.glob("*.log"):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "what", "said"),
    [
        (halve, "tables/curves.parquet", r"tables/curves.parquet cannot be read: .*`cu-ray sweep` writes it anew"),
        (halve, "sweep.yaml", "small/sweep.yaml is damaged: the same `cu-ray sweep` command writes it again"),
        (lambda file: file.write_text("name: small\n"), "sweep.yaml", "small/sweep.yaml is damaged: "),
        (shutil.rmtree, "ledger", r"the ledger lacks (\d+) of \1 trials .*`cu-ray sweep` command makes them again; `cu-ray "),
        (empty, "ledger", r"the ledger lacks (\d+) of \1 trials "),
    ],
)
def test_damaged_or_contradicting_results_are_refused(copied, here, damage, what, said):
    damage(copied / what)
    refused = CliRunner().invoke(main, ["bundle", str(copied), "--to", str(here / "bundle")])
    assert refused.exit_code == 2, refused.output
    assert re.search(said, refused.output, re.DOTALL), refused.output
    assert [path.name for path in here.iterdir()] == ["small"]


def test_rows_of_published_logs_are_in_no_ledger(copied, here):
    file = copied / "tables" / "trials.parquet"
    trials = pq.read_table(file)
    rows = [{**trials.slice(0, 1).to_pylist()[0], "trial_key": "f" * 64, "source": "logs/run"}]
    pq.write_table(pa.concat_tables([trials, pa.Table.from_pylist(rows, trials.schema)]), file)
    bundles.bundle(copied, here / "bundle")
    assert len(pd.read_parquet(here / "bundle" / "tables" / "trials.parquet")) == len(trials) + 1
