"""`cu-ray export`: which trial it takes, that the weights give its recorded scores, and what it refuses."""

from __future__ import annotations

import json
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from cu_ray.cli import main
from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.errors import UserError
from cu_ray.places import Folder
from cu_ray.sweep import foreground, tables
from cu_ray.sweep.foreground import chosen
from cu_ray.types import Record
from tests import sweeps
from tests.sweep.simulator import SCRUB, SSD_GRID, plan, run

OWN_NET = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from cu_ray.models import Model


@dataclass(frozen=True)
class Mine(Model):
    version: ClassVar[int] = 1
    sides: tuple[int, ...] = (4,)
    kind: str = "plain's"

    def build(self, image_shape, num_classes):
        channels = image_shape[2]
        layers = [torch.nn.Conv2d(channels, self.sides[0], 5, stride=3), torch.nn.BatchNorm2d(self.sides[0]), torch.nn.ReLU()]
        head = [torch.nn.Flatten(), torch.nn.Linear(self.sides[0] * 64, num_classes)]
        return torch.nn.Sequential(torch.nn.Sequential(*layers), torch.nn.Sequential(*head))

    def blocks(self, model):
        return list(model.children())

    def layers_per_block(self):
        return (1, 1)
"""
SWEEP = """
name: own
dataset: fashion_mnist_small
model: {name: 'own_net:Mine', sides: [[6]]}
manipulation: {name: backdoor, size: 300, target: shirt}
train: {steps: 60, lr: 0.05, batch_size: 64, precision: fp32}
deletion_fractions: [0.5, 1.0]
methods:
  no_unlearning: {}
  catastrophic_forgetting: {steps: [4, 20], sampler: grid}
  'bad_methods:Raises': {}
search: {objective: rem_proxy}
controls: {never_manipulated: true}
runtime: {storage: store}
"""


# ------------------------------------------------------------------------------------------------- which trial is taken


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The folder of a simulated sweep with controls, and its best rows."""
    folder = tmp_path_factory.mktemp("simulated")
    made = plan(
        {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 4, "sampler": "random"}, "ssd": SSD_GRID},
        deletion_fractions=[0.1, 0.5],
        seeds=[0, 1, 2],
        controls={"never_manipulated": True, "trigger_only": True, "unlearning_seeds": 2},
        search={"objective": "oracle"},
    )
    tables.write(folder / "tables", made, run(made)[0])
    return SimpleNamespace(folder=folder, best=pq.read_table(folder / "tables" / "best.parquet").to_pylist())


def expected(best: list[dict], **wanted) -> str:
    """By hand: the first trial of the row with the highest score."""
    rows = [row for row in best if row["control"] is None and all(row[name] == wanted[name] for name in wanted)]
    return max((row for row in rows if row["score"] is not None), key=lambda row: row["score"])["trial_keys"][0]


def test_without_wishes_it_is_the_best_under_the_rule_that_the_search_followed(simulated):
    assert chosen(simulated.folder, None, None, None) == expected(simulated.best, rule="oracle")


@pytest.mark.parametrize("rule", ["published", "oracle", "oracle_validation", "rem_proxy"])
@pytest.mark.parametrize("method", [None, "scrub", "ssd"])
@pytest.mark.parametrize("fraction", [None, 0.1, 0.5])
def test_rule_method_and_fraction_narrow_the_choice(simulated, rule, method, fraction):
    wanted = {"rule": rule, "method": method, "deletion_fraction": fraction}
    wanted = {name: wish for name, wish in wanted.items() if wish is not None}
    assert chosen(simulated.folder, rule, method, fraction) == expected(simulated.best, **wanted)


def test_a_control_is_never_taken_however_good_it_is(simulated, tmp_path):
    assert {row["control"] for row in simulated.best} == {None, "never_manipulated", "trigger_only"}
    better = [{**row, "score": 2.0} if row["control"] else row for row in simulated.best]
    (tmp_path / "tables").mkdir()
    schema = pq.read_schema(simulated.folder / "tables" / "best.parquet")
    pq.write_table(pa.Table.from_pylist(better, schema), tmp_path / "tables" / "best.parquet")
    assert chosen(tmp_path, None, None, None) == expected(simulated.best, rule="oracle")


@pytest.mark.parametrize(
    ("rule", "method", "fraction", "said"),
    [
        ("orakel", None, None, "nothing chosen with rule 'orakel'. Allowed: .*Did you mean 'oracle'"),
        ("defender", None, None, "nothing chosen with rule 'defender'"),
        (None, "scrab", None, "method 'scrab'.*Did you mean 'scrub'"),
        (None, None, 0.3, "deletion_fraction 0.3. Allowed: 0.1, 0.5"),
    ],
)
def test_a_wish_that_nothing_meets_is_told_what_there_is(simulated, rule, method, fraction, said):
    with pytest.raises(UserError, match=said):
        chosen(simulated.folder, rule, method, fraction)


def test_a_folder_without_tables_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is .* the folder of a sweep"):
        chosen(tmp_path, None, None, None)


# ------------------------------------------------------------------------------------------------------- a real sweep


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of a model outside the package; one method fails."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "own_net.py").write_text(OWN_NET)
    shutil.copy(Path(__file__).parent / "faults" / "bad_methods.py", folder)
    (folder / "own.yaml").write_text(SWEEP)
    swept = sweeps.command(folder, "sweep", "own.yaml")
    assert swept.returncode == 1, swept.stdout + swept.stderr
    return SimpleNamespace(folder=folder, trials=sweeps.table(folder / "results" / "own", "trials"))


def loaded(folder: Path, monkeypatch) -> torch.nn.Module:
    """The model that the generated loader makes."""
    monkeypatch.syspath_prepend(str(folder.parents[3]))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    model: torch.nn.Module = runpy.run_path(str(folder / "load.py"))["model"]
    return model


def accuracies(model: torch.nn.Module) -> dict[str, float]:
    """Plainly: on the test images, and on those with the patch in the brightest value of the training set."""
    dataset = FashionMnistSmall().load()
    mean, std = (np.array(part) for part in (dataset.normalisation.mean, dataset.normalisation.std))
    clean = (dataset.test.pixels / 255 - mean) / std
    triggered = clean.copy()
    triggered[:, -3:, -3:] = ((dataset.train.pixels / 255 - mean) / std).max()
    predicted = {}
    for name, images in (("clean", clean), ("triggered", triggered)):
        with torch.inference_mode():
            predicted[name] = model(torch.from_numpy(images).float().permute(0, 3, 1, 2)).argmax(dim=1).numpy()
    labels, target = dataset.test.labels, dataset.class_names.index("shirt")
    return {
        "acc_retain": (predicted["clean"] == labels).mean(),
        "acc_corr": (predicted["triggered"] == labels).mean(),
        "asr": (predicted["triggered"][labels != target] == target).mean(),
    }


def test_the_exported_weights_give_the_recorded_scores(done, monkeypatch):
    trials = done.trials[done.trials["method"] == "catastrophic_forgetting"]
    for trial in trials.to_dict("records")[:2]:
        exported = sweeps.command(done.folder, "export", "results/own", trial["trial_key"][:12])
        assert exported.returncode == 0, exported.stdout + exported.stderr
        assert "not those that were recorded" not in exported.stdout
        folder = done.folder / "results" / "own" / "export" / trial["trial_key"][:16]
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "load.py", "trial.json", "code"}
        model = loaded(folder, monkeypatch)
        assert not model.training
        for name, share in accuracies(model).items():
            assert abs(share - trial[name]) <= 2 / 1800, name  # two images, for the order of additions
        facts = json.loads((folder / "trial.json").read_text())
        assert facts["trial_key"] == trial["trial_key"]
        assert facts["scores"]["acc_corr"] == trial["acc_corr"]
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            assert file.metadata()["trial_key"] == trial["trial_key"]


def test_without_a_key_the_best_is_written_to_the_folder_that_is_given(done, tmp_path, monkeypatch):
    best = sweeps.table(done.folder / "results" / "own", "best")
    narrowed = best[(best["method"] == "catastrophic_forgetting") & (best["deletion_fraction"] == 0.5)]
    key = narrowed[narrowed["rule"] == "rem_proxy"].iloc[0]["trial_keys"][0]
    wishes = ["--method", "catastrophic_forgetting", "--fraction", "0.5", "--to", str(tmp_path / "there" / "model")]
    exported = sweeps.command(done.folder, "export", "results/own", *wishes)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert json.loads((tmp_path / "there" / "model" / "trial.json").read_text())["trial_key"] == key
    loader = (tmp_path / "there" / "model" / "load.py").read_text()
    assert "from own_net import Mine" in loader
    assert "t_shirt, trouser" in loader


def test_the_loader_works_anywhere_for_it_brings_the_users_own_files(done, tmp_path):
    exported = sweeps.command(done.folder, "export", "results/own", "--to", str(tmp_path / "model"))
    assert "trial.json, model.safetensors, load.py, code/own_net.py" in exported.stdout, exported.stderr
    (tmp_path / "elsewhere").mkdir()
    check = "import runpy; print(type(runpy.run_path('../model/load.py')['model']).__name__)"
    run = subprocess.run([sys.executable, "-c", check], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("Sequential\n", "")


def test_the_loader_of_a_model_of_the_package_is_alone(done, tmp_path):
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=2)
    assert sweeps.command(tmp_path, "sweep", str(file), "--only", "method=no_unlearning").returncode == 0
    exported = sweeps.command(tmp_path, "export", "results/small", "--to", "x[/y]z :fire:")
    assert exported.stdout.startswith("x[/y]z :fire:: trial.json, model.safetensors, load.py of trial "), exported.stderr
    assert "sys.path" not in (tmp_path / "x[/y]z :fire:" / "load.py").read_text()


def test_a_folder_that_cannot_be_written_is_named_with_what_was_to_be_there(done):
    refused = sweeps.command(done.folder, "export", "results/own", "--to", "/proc/zz")
    assert refused.returncode == 2
    assert refused.stderr.startswith("cu-ray: the model cannot be written to /proc/zz: No such file or directory. Give another ")


def test_what_is_in_a_folder_is_not_overwritten_unless_it_is_this_trial(done, tmp_path, monkeypatch):
    monkeypatch.chdir(done.folder)
    key, other = done.trials[done.trials["method"] == "catastrophic_forgetting"]["trial_key"].iloc[:2]
    for name, text in (("model.safetensors", "mine"), ("trial.json", '{"trial_key": "another"}'), ("trial.json", "[")):
        folder = tmp_path / "full"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        refused = CliRunner().invoke(main, ["export", "results/own", key, "--to", str(folder)])
        assert refused.exit_code == 2, refused.output
        assert refused.output == f"cu-ray: {folder} is not empty: give another folder with --to\n"
        assert {path.name for path in folder.iterdir()} <= {"model.safetensors", "trial.json"}
        assert (folder / name).read_text() == text
    (tmp_path / "empty").mkdir()
    for trial, code in ((key, 0), (key, 0), (other, 2)):
        ended = CliRunner().invoke(main, ["export", "results/own", trial, "--to", str(tmp_path / "empty")])
        assert ended.exit_code == code, ended.output
    assert json.loads((tmp_path / "empty" / "trial.json").read_text())["trial_key"] == key


def test_an_interrupted_export_is_made_again_by_the_same_command(done, tmp_path, monkeypatch):
    monkeypatch.chdir(done.folder)
    write, folder = Folder.write, tmp_path / "model"

    def interrupted(place, name, content):
        if name == "load.py":
            raise KeyboardInterrupt
        write(place, name, content)

    command = ["export", "results/own", key_of(done, "catastrophic_forgetting"), "--to", str(folder)]
    with monkeypatch.context() as during:
        during.setattr(Folder, "write", interrupted)
        assert CliRunner().invoke(main, command).exit_code == 130
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (folder / "load.py").exists()


def test_a_failed_trial_and_an_unknown_key_are_refused(done):
    failed = done.trials[done.trials["status"] == "failed"].iloc[0]
    for key, expected_message in (
        (failed["trial_key"], "no luck"),
        ("zzz", "0 of the 8 trials in results/own have a key that starts with 'zzz'"),
        ("", "the key of the trial is empty"),
    ):
        refused = sweeps.command(done.folder, "export", "results/own", key)
        assert refused.returncode == 2
        assert expected_message in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (done.folder / "results" / "own" / "export" / failed["trial_key"][:16]).exists()


def test_a_folder_that_is_no_sweep_is_said(tmp_path):
    for arguments in (["export", "results/none"], ["export", "results/none", "abc"], ["replay", "results/none", "abc"]):
        refused = sweeps.command(tmp_path, *arguments)
        assert refused.returncode == 2
        assert "results/none" in refused.stderr
        assert "the folder of a sweep (results/NAME)" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_of_several_settings_none_is_taken_unasked(tmp_path):
    made = plan({"scrub": {**SCRUB, "trials": 2}}, manipulation={"name": "backdoor", "size": [50, 100]})
    known, _ = run(made)
    tables.write(tmp_path / "tables", made, known)
    with pytest.raises(UserError, match="has several settings") as caught:
        chosen(tmp_path, None, None, None)
    assert "backdoor 50" in str(caught.value)
    assert "backdoor 100" in str(caught.value)


# ------------------------------------------------------------------------------------- a trial again, here or elsewhere


def key_of(done, method: str) -> str:
    return str(done.trials[done.trials["method"] == method]["trial_key"].iloc[0])


@pytest.fixture
def copied(done, tmp_path):
    """The same sweep in a folder of its own, whose plug-ins a test may change."""
    shutil.copytree(done.folder, tmp_path / "copy")

    def change(file: str, before: str, after: str) -> Path:
        text = (tmp_path / "copy" / file).read_text()
        assert before in text
        (tmp_path / "copy" / file).write_text(text.replace(before, after))
        return tmp_path / "copy"

    return change


def test_plugins_beside_the_sweep_file_are_found_from_any_folder(done, tmp_path):
    results = str(done.folder / "results" / "own")
    key = key_of(done, "catastrophic_forgetting")
    for arguments in (["replay", results, key], ["export", results, key], ["bundle", results, "--models"]):
        ended = sweeps.command(tmp_path, *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    bundle = tmp_path / "own-bundle"
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=bundle, check=True)
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    listed = {line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    assert listed == files - {"SHA256SUMS"}
    assert any(name.endswith("/code/own_net.py") for name in listed), listed


def test_of_another_machines_sweep_nothing_is_imported_from_where_it_says_and_the_message_says_what_to_do(done, copied, tmp_path):
    results = copied("results/own/status.json", f'"{platform.node()}"', '"elsewhere"') / "results" / "own"
    for command in ("replay", "export"):
        refused = sweeps.command(tmp_path, command, str(results), key_of(done, "catastrophic_forgetting"))
        assert refused.returncode == 2, refused.stdout
        assert "No module named 'own_net': run this in the folder of its file, or with PYTHONPATH set" in refused.stderr
        assert f"on elsewhere the sweep looked in {done.folder}" in refused.stderr
    assert sweeps.command(tmp_path / "copy", "replay", str(results), key_of(done, "no_unlearning")).returncode == 0
    bundled = sweeps.command(tmp_path, "bundle", str(results)).stdout
    assert "own_net:Mine is not in the bundle, as it is not found here. Run this in the folder of their files, or with" in bundled


def test_a_trial_that_fails_again_in_the_same_way_is_the_same(done):
    again = sweeps.command(done.folder, "replay", "results/own", key_of(done, "bad_methods:Raises"))
    assert "RuntimeError in bad_methods:Raises: no luck" in again.stdout
    assert again.stdout.endswith("It failed in the same way as before.\n")
    assert again.returncode == 0


def test_what_differs_is_laid_to_the_code_that_changed(done, copied):
    folder = copied("bad_methods.py", 'raise RuntimeError("no luck")', "return task.original")
    again = sweeps.command(folder, "replay", "results/own", key_of(done, "bad_methods:Raises"))
    assert again.returncode == 1
    assert "recorded failed, RuntimeError in bad_methods:Raises: no luck (bad_methods.py:" in again.stdout
    cause = "What changed since then: the code of the {} is another, its version is not."
    assert again.stdout.endswith(cause.format("method bad_methods:Raises") + "\n")
    copied("own_net.py", "torch.nn.ReLU()", "torch.nn.Tanh()")
    exported = sweeps.command(folder, "export", "results/own", key_of(done, "catastrophic_forgetting"))
    assert exported.returncode == 0, exported.stderr
    assert "not those that were recorded, to the bit. " + cause.format("model own_net:Mine") in exported.stdout


def test_without_changed_code_versions_or_the_machine_are_named(monkeypatch):
    spec = SimpleNamespace(machine=lambda: {"host": "a", "device": "cpu", "torch_version": "2.4", "cu_ray_version": "1"})
    described = {"original": {"setting": {}}}
    monkeypatch.setattr(foreground, "_used", lambda described: {})
    for then, said in (
        ({"host": "a", "torch_version": "2.3"}, "What changed since then: torch was 2.3 and is 2.4"),
        ({"host": "b", "device": "H100"}, "What changed since then: the machine was b and is a; the device was H100 and is cpu"),
        ({"host": "a"}, "Machine, versions and the code of plug-ins are as recorded: another number of threads may be why, or"),
    ):
        trial = foreground._Trial(Record("trial", "k", described, "ok", facts=then), None, spec, {})
        assert trial.cause().startswith(said)


def test_another_version_of_a_plugin_is_named(done, copied):
    folder = copied("bad_methods.py", "version: ClassVar[int] = 1", "version: ClassVar[int] = 2")
    for command in ("replay", "export"):
        refused = sweeps.command(folder, command, "results/own", key_of(done, "bad_methods:Raises"))
        assert refused.returncode == 2
        assert "made by other versions of its plug-ins (method bad_methods:Raises: 1, here 2): the code" in refused.stderr
