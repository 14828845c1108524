"""What is sent with a sweep: all that it needs of this machine, and nothing else."""

from __future__ import annotations

import sys

import pytest

from cu_ray import config
from cu_ray.errors import UserError
from cu_ray.remote.parcel import pack
from tests import sweeps


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "sweeps").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def sent(file, to):
    config.load(file)
    paths = pack(file, to)
    assert {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()} >= {str(path) for path in paths}
    return {str(path) for path in paths}


def test_a_sweep_file_goes_with_the_files_that_it_extends(here, tmp_path):
    sweeps.small(here / "sweeps", name="base.yaml")
    (here / "sweeps" / "own.yaml").write_text("extends: base.yaml\nname: own\n")
    assert sent(here / "sweeps" / "own.yaml", tmp_path / "sent") == {"sweeps/own.yaml", "sweeps/base.yaml"}


def test_plug_ins_go_with_the_modules_that_they_import_and_nothing_that_is_installed(here, tmp_path):
    package = here / "parcel_plugins"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rates.py").write_text("RATE = 0.01\n")
    (package / "unused.py").touch()
    (package / "methods.py").write_text(
        "from dataclasses import dataclass\n\nimport torch\n\n"
        "from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting\nfrom parcel_plugins.rates import RATE\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(CatastrophicForgetting):\n    lr: float = RATE\n"
    )
    file = sweeps.small(here, more="parcel_plugins.methods:Mine: {steps: 4}")
    try:
        found = sent(file, tmp_path / "sent")
    finally:
        for name in [name for name in sys.modules if name.startswith("parcel_plugins")]:
            del sys.modules[name]
    assert found == {"small.yaml", *(f"parcel_plugins/{name}.py" for name in ("__init__", "rates", "methods"))}


def test_files_that_a_sweep_names_by_a_relative_path_go_along(here, tmp_path):
    (here / "bad.csv").write_text("index,label\n3,4\n")
    (here / "other.csv").write_text("index\n1\n")
    file = sweeps.small(here)
    text = file.read_text().replace("{name: backdoor, size: 300}", "{name: from_file, file: bad.csv}")
    file.write_text(text.replace("[0.1, 1.0]", "[1.0]"))
    paths = pack(file, tmp_path / "sent")
    assert {str(path) for path in paths} == {"small.yaml", "bad.csv"}


def test_a_sweep_file_elsewhere_is_refused_with_what_to_do(here, tmp_path):
    file = sweeps.small(tmp_path)
    with pytest.raises(UserError, match=f"small.yaml does not lie below {here}: run the command in a folder above it"):
        pack(file, tmp_path / "sent")
