"""The hash of a plug-in's code: it changes with what the plug-in does, also in the modules beside it, and with nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from cu_ray import plugins
from tests import sweeps

METHOD = '''"""Mine."""

from {package}_helper import strength


class Mine:
    """A method."""

    def unlearn(self, task):
        return strength()
'''
HELPER = '''from {package}_deeper import DEPTH


def strength():
    """How strong."""
    return 2 * DEPTH
'''
FILES = {"mine.py": METHOD, "_helper.py": HELPER, "_deeper.py": "DEPTH = 3\n", "_other.py": "UNUSED = 1\n"}
PLACES = {"folder": "", "package": "my_lab.", "relative": "."}


@pytest.fixture(params=PLACES)
def mine(request, tmp_path, monkeypatch):
    """What gives the fingerprint of a class in a folder or a package of its own, after its files were written with changes."""
    prefix = PLACES[request.param]
    folder = tmp_path / ("my_lab" if prefix else ".")
    folder.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def print_of(**changes: tuple[str, str]) -> str:
        for name, text in FILES.items():
            before, after = changes.get(name.removesuffix(".py"), ("", ""))
            assert before in text
            (folder / name).write_text(
                text.format(package=prefix).replace(before, after) if before else text.format(package=prefix)
            )
        if prefix:
            (folder / "__init__.py").write_text("")
        module = "my_lab.mine" if prefix else "mine"
        for name in [each for each in sys.modules if each.split(".")[0] in ("my_lab", "mine", "_helper", "_deeper")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return plugins.fingerprint(importlib.import_module(module).Mine)

    return print_of


def test_it_is_of_the_code_and_of_no_words_about_it(mine):
    as_it_is = mine()
    assert mine() == as_it_is
    assert mine(mine=("A method.", "My method.")) == as_it_is
    assert mine(_helper=('"""How strong."""', "# twice as deep")) == as_it_is
    assert mine(_other=("1", "2")) == as_it_is, "nobody imports it"
    assert mine(mine=('method."""\n', 'method."""\n\n    version: int = 1\n')) == as_it_is, "its version is known besides"


@pytest.mark.parametrize("change", [("mine", "strength()\n", "0\n"), ("_helper", "2 *", "3 *"), ("_deeper", "3", "4")])
def test_it_is_also_of_what_the_file_imports_from_beside_it_and_what_that_imports(mine, change):
    name, before, after = change
    assert mine(**{name: (before, after)}) != mine()


def test_a_class_in_a_packages_own_file_has_one_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "whole_lab"
    folder.mkdir()
    (folder / "__init__.py").write_text("from whole_lab.inner import X\n\n\nclass Mine:\n    x = X\n")
    (folder / "inner.py").write_text("X = 1\n")
    before = plugins.fingerprint(importlib.import_module("whole_lab").Mine)
    (folder / "inner.py").write_text("X = 2\n")
    assert plugins.fingerprint(sys.modules["whole_lab"].Mine) != before


def test_the_packages_own_plugins_have_their_kinds_shared_code_in_it(monkeypatch):
    read = Path.read_bytes

    def changed(path):
        return read(path) + (b"\nFURTHER = 1\n" if path.name == "_dampening.py" else b"")

    names = {name: plugins.find("methods", name) for name in ("ssd", "assd_ptn", "scrub", "exact_unlearning")}
    before = {name: plugins.fingerprint(cls) for name, cls in names.items()}
    monkeypatch.setattr(Path, "read_bytes", changed)
    assert {name for name, cls in names.items() if plugins.fingerprint(cls) != before[name]} == {"ssd", "assd_ptn"}


def test_of_a_file_beside_a_package_what_is_installed_is_no_part_and_what_cannot_be_parsed_is_no_end(tmp_path, monkeypatch):
    """As in a clone of cu-ray, or where a lone module is installed: all of torch lies beside it."""
    monkeypatch.setattr(plugins, "_is_installed", lambda file: "elsewhere" in file.parts)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("X = 1\n")
    (tmp_path / "newer.py").write_text("match x:\n  what is this\n")
    (tmp_path / "lone.py").write_text(
        "try:\n    import newer\nexcept SyntaxError:\n    pass\nfrom elsewhere import X\n\n\nclass Mine:\n    x = X\n"
    )
    cls = importlib.import_module("lone").Mine
    before = plugins.fingerprint(cls)
    (tmp_path / "elsewhere" / "__init__.py").write_text("X = 2\n")
    assert plugins.fingerprint(cls) == before
    (tmp_path / "newer.py").write_text("match x:\n  what else is this\n")
    assert plugins.fingerprint(cls) != before


def test_a_sweep_says_so_where_code_changed_under_a_version(tmp_path):
    (tmp_path / "own_helper.py").write_text("FACTOR = 1\n")
    (tmp_path / "own.py").write_text(
        "from cu_ray.methods.no_unlearning import NoUnlearning\n"
        "from own_helper import FACTOR\n\n\n"
        "class Mine(NoUnlearning):\n    factor = FACTOR\n"
    )
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more="own:Mine: {}")
    text = file.read_text()
    begin, end = text.index("methods:"), text.index("search:")
    file.write_text(text[:begin] + "methods:\n  own:Mine: {}\n" + text[end:])
    first = sweeps.command(tmp_path, "sweep", str(file))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Warning" not in first.stdout
    (tmp_path / "own_helper.py").write_text("FACTOR = 2\n")
    for _ in range(2):  # as long as what earlier code made counts
        again = sweeps.command(tmp_path, "sweep", str(file))
        assert (
            "Warning: the code of the method own:Mine changed since results here were made, its version (1) did not."
            in again.stdout
        )
