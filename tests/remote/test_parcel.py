"""What is sent with a sweep: all that it needs of this machine, and nothing else."""

from __future__ import annotations

import sys

import pytest

from cu_ray import config
from cu_ray.errors import UserError
from cu_ray.plugins import own_files
from cu_ray.remote.parcel import pack
from tests import sweeps


@pytest.fixture
def forgotten():
    """Afterwards the modules of a test are not imported."""
    yield
    for name in [name for name in sys.modules if name.startswith("parcel_")]:
        del sys.modules[name]


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


@pytest.mark.usefixtures("forgotten")
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
    found = sent(file, tmp_path / "sent")
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


def test_what_a_link_leads_to_goes_under_the_name_that_the_sweep_file_gives(here, tmp_path):
    disk = tmp_path / "disk"
    (disk / "cats").mkdir(parents=True)
    (disk / "cats" / "1.txt").touch()
    (disk / "real.csv").write_text("index,label\n3,4\n")
    (here / "bad.csv").symlink_to(disk / "real.csv")
    (here / "pictures").symlink_to(disk)
    file = sweeps.small(here)
    text = file.read_text().replace("{name: backdoor, size: 300}", "{name: from_file, file: ./sweeps/../bad.csv}")
    file.write_text(text.replace("dataset: fashion_mnist_small", "dataset: {name: image_folder, path: ./pictures}"))
    paths = pack(file, tmp_path / "sent")
    assert {str(path) for path in paths} == {"small.yaml", "bad.csv", "pictures"}
    assert (tmp_path / "sent" / "bad.csv").read_text() == "index,label\n3,4\n"
    assert (tmp_path / "sent" / "pictures" / "cats" / "1.txt").is_file()
    assert not any(path.is_symlink() for path in (tmp_path / "sent").rglob("*"))


def test_of_what_a_file_extends_only_what_it_keeps_is_sent(here, tmp_path):
    for name in ("kept.csv", "replaced.csv", "mine.csv"):
        (here / name).write_text("index\n1\n")
    base = sweeps.small(here / "sweeps", name="base.yaml")
    text = base.read_text().replace("dataset: fashion_mnist_small", "dataset: {name: parquet, path: ./kept.csv}")
    base.write_text(text + "original: {weights: ./replaced.csv}\n")
    (here / "own.yaml").write_text("extends: sweeps/base.yaml\nname: own\noriginal: {weights: ./mine.csv}\n")
    assert {str(path) for path in pack(here / "own.yaml", tmp_path / "sent")} == {
        *("own.yaml", "sweeps/base.yaml", "kept.csv", "mine.csv")
    }


METHOD = """from dataclasses import dataclass

from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting


@dataclass(frozen=True)
class Mine(CatastrophicForgetting):
    def unlearn(self, task):
        import colorsys

        import parcel_late
        from parcel_package.inner import rates

        return super().unlearn(task)
"""


@pytest.mark.usefixtures("forgotten")
def test_modules_that_a_plug_in_imports_when_it_is_run_go_along_with_what_they_import(here, tmp_path):
    (here / "sweeps" / "parcel_method.py").write_text(METHOD)
    (here / "sweeps" / "parcel_late.py").write_text("from parcel_later import X\n")
    (here / "parcel_later.py").write_text("X = 1\n")  # in the working directory, where modules are looked for, too
    inner = here / "sweeps" / "parcel_package" / "inner"
    inner.mkdir(parents=True)
    for name in ("../__init__.py", "__init__.py", "unused.py"):
        (inner / name).touch()
    (inner / "rates.py").write_text("from . import deeper\n")
    (inner / "deeper.py").write_text("X = 1\n")
    file = sweeps.small(here / "sweeps", more="parcel_method:Mine: {steps: 4}")
    package = {f"parcel_package/{name}" for name in ("__init__.py", "inner/__init__.py", "inner/rates.py", "inner/deeper.py")}
    beside = {"parcel_method.py", "parcel_late.py", *package}
    assert sent(file, tmp_path / "sent") == {"sweeps/small.yaml", "parcel_later.py", *(f"sweeps/{name}" for name in beside)}
    to_workers = own_files(here, here / "sweeps")
    assert {str(path) for path in to_workers} == {*beside, "parcel_later.py"}
    assert all(path.is_file() for path in to_workers.values())


@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_imported_from_elsewhere_is_not_taken_from_here(here, tmp_path):
    """As cu-ray itself, installed, where the command is given in its repository."""
    (here / "parcel_method.py").write_text(METHOD.replace("import parcel_late\n", "import cu_ray.parcel\n"))
    (here / "cu_ray").mkdir()
    for name in ("__init__.py", "parcel.py"):
        (here / "cu_ray" / name).touch()
    file = sweeps.small(here, more="parcel_method:Mine: {steps: 4}")
    assert sent(file, tmp_path / "sent") == {"small.yaml", "parcel_method.py"}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("link", ["parcel_method.py", "parcel_lab"])
def test_a_plug_in_behind_a_link_goes_under_the_name_that_it_is_imported_by(here, tmp_path, link):
    (tmp_path / "elsewhere").mkdir()
    for name in ("parcel_method.py", "__init__.py", "really_so.py"):
        (tmp_path / "elsewhere" / name).write_text("" if name == "__init__.py" else METHOD.replace("parcel_", "no_parcel_"))
    (here / link).symlink_to(tmp_path / "elsewhere" / ("really_so.py" if link.endswith(".py") else ""))
    module = "parcel_method" if link.endswith(".py") else "parcel_lab.parcel_method"
    file = sweeps.small(here, more=f"{module}:Mine: {{steps: 4}}")
    modules = {link} if link.endswith(".py") else {f"{link}/__init__.py", f"{link}/parcel_method.py"}
    assert sent(file, tmp_path / "sent") == {"small.yaml", *modules}
