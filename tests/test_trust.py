"""Nothing that is read can run code or write elsewhere: the source itself, and files made to do harm."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cu_ray
from cu_ray import config, incident
from cu_ray.cli import main
from cu_ray.datasets.npz import Npz
from cu_ray.errors import UserError
from cu_ray.identity import key_of
from cu_ray.store import LocalStore
from cu_ray.sweep import foreground, ledger, measuring, runner, weights
from cu_ray.types import DatasetFacts, Record
from tests.datasets.own import write_npz

SOURCE = Path(cu_ray.__file__).parent
FACTS = DatasetFacts(100, 10, (8, 8, 1), ("a", "b"))

# ----------------------------------------------------------------------------------------------------------- the source

MODULES = r"_?pickle|cloudpickle|dill|joblib|marshal|shelve|subprocess|runpy|code|codeop|pty|ctypes|jsonpickle"
CALLS = (
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*)|(\w+\.)*load_module"
    r"|torch\.(load|jit\.load|hub\.\w+|package\.\w+)|(\w+\.)?read_pickle|yaml\.((unsafe_|full_)?load(_all)?)"
)
READERS_OF_ARRAYS = r"(np|numpy)\.load|(\w+\.)*read_array|(\w+\.)*NpzFile"  # pickles too, if they are allowed to
ALLOWED = {"datasets/_cifar.py: pickle"}  # a batch of CIFAR is a pickle: read where its MD5 is the publisher's, see below


def dangers(source: str) -> list[str]:
    """What in a Python text can run code that is read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            found += [name for name in modules if re.fullmatch(MODULES, name.split(".")[0])]
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml", "numpy", "os"):
                found += [each.name for each in node.names if re.fullmatch(CALLS, f"{node.module}.{each.name}")]
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            found += [called] if re.fullmatch(CALLS, called) else []
            found += [called] if re.fullmatch(READERS_OF_ARRAYS, called) and given.get("allow_pickle") != "False" else []
            switches = {"allow_pickle": "False", "shell": "False", "trust_remote_code": "False", "weights_only": "True"}
            found += [name for name, safe in switches.items() if given.get(name, safe) != safe]
        elif isinstance(node, ast.ClassDef):
            found += [base for base in map(ast.unparse, node.bases) if re.fullmatch(r"yaml\.(Unsafe|Full|)Loader", base)]
    return found


def test_the_source_has_no_reader_that_runs_code():
    files = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    assert len(files) > 100
    assert {f"{name}: {danger}" for name, text in files.items() for danger in dangers(text)} == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "import joblib", "import subprocess as s", "from torch import load"),
        *("torch.load(path)", "np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text, yaml.Loader)"),
        *("eval(text)", "os.system(text)", "pd.read_pickle(path)", "f(x, trust_remote_code=True)", "class L(yaml.Loader): pass"),
    ],
)
def test_the_search_for_such_readers_finds(line):
    assert dangers(line)


# ------------------------------------------------------------------------------------------------------ malicious files


class Bomb:
    """A pickle that leaves a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path):
    """A file that is there only when code of a malicious file ran."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code from a file ran"


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").exists()


def message(attempt) -> str:
    """What a UserError says, in one line."""
    with pytest.raises(UserError) as caught:
        attempt()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def sweep_text(**changes) -> str:
    value = {"name": "x", "dataset": "fashion_mnist_small", "model": {"name": "resnet9", "width": 2}}
    value |= {"manipulation": {"name": "backdoor", "size": 100}, "methods": {"no_unlearning": {}}}
    return yaml.safe_dump(value | changes)


def test_a_pickle_under_the_name_of_an_original_is_no_entry(mark, tmp_path):
    store = LocalStore(tmp_path)
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "ab.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    assert store.load("originals", "ab") is None


def test_a_pickle_for_given_weights_is_one_message_and_stays(mark, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(content := pickle.dumps(Bomb(mark)))
    assert re.match(r"original\.weights: .*model\.pt cannot be read as safetensors", message(lambda: weights.read(path)))
    assert path.read_bytes() == content


def test_where_a_sweep_was_sent_is_believed_only_of_who_asks(mark, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "evil_provider.py").write_text(f"open({str(mark)!r}, 'w')\n")
    provider = {"type": "external", "module": "evil_provider.Provider"}
    evil = {"cluster_name": "x", "provider": provider, "auth": {"ssh_user": "x"}, "max_workers": 0, "available_node_types": {}}
    (folder / "evil.yaml").write_text(yaml.safe_dump(evil))
    facts = {"cluster": str(folder / "evil.yaml"), "folder": f"x; touch {mark};", "results": "x", "ended": False}
    (folder / "cluster.json").write_text(json.dumps(facts))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    for command in ("status", "attach", "fetch", "stop"):
        result = CliRunner().invoke(main, [command, str(folder)])
        assert result.exit_code == 2, result.output
        assert f"{folder} is of a sweep that another user sent to a cluster: only they can ask for it there" in result.output


def test_a_batch_of_cifar_that_the_publisher_did_not_write_is_not_unpickled(mark, tmp_path):
    folder = tmp_path / "downloads" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    places = {"folder": str(folder.parent), "cache": str(tmp_path / "cache")}
    said = message(lambda: load(dataset={"name": "cifar10", **places}))
    assert "data_batch_1 is damaged: its md5 is " in said


def load(**changes):
    """The data set of a sweep file."""
    (dataset,) = config.parse(sweep_text(**changes)).datasets
    return dataset.load()


@pytest.mark.parametrize("name", ["train_pixels.npy", "train_labels.npy", "test_labels.npy", "facts.json"])
@pytest.mark.parametrize("kind", ["a pickle", "an array of objects", "nothing", "half", "a list", "deep"])
def test_a_file_of_the_cache_of_images_that_is_another_is_one_message(name, kind, mark, tmp_path):
    dataset = Npz(file=str(write_npz(tmp_path / "images.npz")), cache=str(tmp_path / "cache"))
    dataset.load()
    (path,) = (tmp_path / "cache").glob(f"npz-*/{name}")
    if kind == "an array of objects":
        with open(path, "wb") as file:
            np.save(file, np.array([Bomb(mark)] * 4, dtype=object), allow_pickle=True)
    else:
        whole = path.read_bytes()
        contents = {"a pickle": pickle.dumps(Bomb(mark)), "nothing": b"", "half": whole[: len(whole) // 2]}
        path.write_bytes(contents.get(kind, {"a list": b"[]", "deep": b"[" * 10_000}.get(kind, b"")))
    assert re.match(rf"{path.parent} is damaged \(.*\): delete it, and it is made again", message(dataset.load))


def test_objects_in_npz_files_are_refused(mark, tmp_path):
    bombs = np.array([Bomb(mark)] * 12, dtype=object)
    for name in ("train_pixels", "train_labels", "test_labels", "class_names", "mean"):
        path = write_npz(tmp_path / f"{name}.npz", **{"std": np.ones(3), "mean": np.ones(3), name: bombs})
        assert f"{path} has {name} " in message(Npz(file=str(path), cache=str(tmp_path / "cache")).load)
    np.savez(tmp_path / "index.npz", index=bombs)
    assert "index.npz cannot be read" in message(lambda: incident.read(str(tmp_path / "index.npz"), FACTS))


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_a_pickle_as_a_list_of_samples_is_one_message(ending, mark, tmp_path):
    path = tmp_path / f"incident.{ending}"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert str(path) in message(lambda: incident.read(str(path), FACTS))


@pytest.mark.parametrize("name", ["npz", "parquet"])
def test_a_pickle_as_a_file_of_images_is_one_message(name, mark, tmp_path):
    path = tmp_path / f"images.{name}"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match=rf"dataset.* {path} "):
        load(dataset={"name": name, "file": str(path), "cache": str(tmp_path / "cache")})


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system", "!!python/object:os.x {}", "!!python/module:os"],
)
def test_python_in_yaml_is_refused(tag, mark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"line 1"):
        config.parse(f"name: {tag}\n")
    with pytest.raises(UserError, match=r"not YAML|the tag"):
        config.parse_methods(f"scrub: {{steps: {tag}}}", "cu-ray try scrub", config.parse(sweep_text()))
    result = CliRunner().invoke(main, ["try", "scrub", "--set", f"steps={tag}"])
    assert result.exit_code == 2, result.output
    assert result.output.startswith(f"cu-ray: --set steps={tag}: ")


# ------------------------------------------------------------------------------------------------------- where it writes


@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "..", ".", ".hidden", "a/b", "a\\b", "x\n", "", "~", "a" * 101, "a\0b", "a b", "é", "\u2215", 5, None],
)
def test_a_name_is_no_path(name, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep_text(name=name))
    for command in ("plan", "sweep"):
        result = CliRunner().invoke(main, [command, str(file), "--output", str(tmp_path / "results")])
        assert result.exit_code == 2
        assert re.search(r"name \(line \d+\): ", result.output)
        assert "Allowed: up to 100 letters" in result.output or name in ("a\0b", None)
    assert sorted(os.listdir(tmp_path)) == ["home", "sweep.yaml"]


def test_output_is_the_user_s_choice(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for output in ("../elsewhere", str(tmp_path / "else where"), "~/results"):
        sweep = config.with_runtime(config.parse(sweep_text()), output=output)
        assert Path(sweep.folder) == Path(output).expanduser() / "x"


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_keys_are_hexadecimal_whatever_they_are_of(value):
    assert re.fullmatch("[0-9a-f]{64}", key_of(value))


# ------------------------------------------------------------------------------------------- what a sweep left, damaged

GARBAGE = [
    *(b"", b"{", b"[]", b"null", b"5", b'{"running": 5}', b"\xff\xfe\x00", b'{"a": NaN}', b"[" * 5000),
    pickle.dumps({"a": 1}),
]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_status_that_is_none_is_one_message(content, tmp_path):
    (tmp_path / "status.json").write_bytes(content)
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert f"{tmp_path / 'status.json'} is damaged" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("content", [*GARBAGE, b'{"k": 5}', b'{"k": {"odd": 1}}'])
def test_kept_canaries_that_are_none_are_measured_again(content, tmp_path):
    file = tmp_path / "canaries.json"
    file.write_bytes(content)
    assert measuring.kept_in(file) == {}


@pytest.mark.parametrize("spec", [{}, {"original": 5}, {"method": "scrub"}, {"method": {"name": "scrub"}, "original": {}}])
@pytest.mark.parametrize("command", ["replay", "export"])
def test_a_recorded_trial_that_nothing_can_be_made_of_is_one_message(command, spec, tmp_path):
    with ledger.Ledger(tmp_path / "ledger") as journal:
        journal.append(Record("trial", "abcd", spec, "ok"))
    counts = dict.fromkeys(("process", "trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), 1)
    facts = {"running": False, "host": "elsewhere", "storage": str(tmp_path), "device": "cpu", "import_path": 5}
    (tmp_path / "status.json").write_text(json.dumps(facts | counts))
    result = CliRunner().invoke(main, [command, str(tmp_path), "abcd"])
    assert result.exit_code == 2, result.output
    assert "trial abcd was made by other versions of its plug-ins" in result.output


def test_class_names_stay_in_the_comment_of_an_exported_loader():
    sweep = config.parse(sweep_text())
    datasets = runner.load_datasets(sweep)
    spec = next(iter(runner.make_plan(sweep, datasets).originals()))
    trial = SimpleNamespace(original=spec)
    (dataset,) = datasets.values()
    names = ("a\nimport os", "b\rimport os", "c\x0cimport os", "d\u2028import os", *dataset.class_names[4:])
    before, after = (ast.parse(foreground._loader(trial, each)) for each in (dataset, replace(dataset, class_names=names)))
    assert ast.dump(before) == ast.dump(after)
