"""Equal tables whatever a sweep does not depend on: workers, caches, folder, time zone, locale, hash seed.

And nothing is written outside the folders of results and storage.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.sweeps import assert_same_tables, command, small


def foreign():
    """A locale with a decimal comma, and a letter i of its own where it can be had; C.UTF-8 where none is installed."""
    installed = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    return next((name for name in ("tr_TR.utf8", "de_DE.utf8") if name in installed), "C.UTF-8")


PLAIN = {"PYTHONHASHSEED": "0"}
CASES = {
    "one worker, the C locale and a random hash seed": (1, {"LC_ALL": "C", "PYTHONHASHSEED": "random"}),
    "another time zone, locale and language": (2, {"TZ": "Asia/Kathmandu", "LC_ALL": foreign(), "LANG": "de_DE.UTF-8"}),
}


def swept(file, folder, *options, **variables):
    """The results of the sweep, run in that folder."""
    folder.mkdir(exist_ok=True)
    arguments = ("sweep", str(file), "--output", str(folder / "results"), *options)
    done = command(folder, *arguments, env={**os.environ, "PYTHONPATH": os.getcwd(), **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "small"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The results on two workers, and the storage that they left."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return swept(small(folder, storage=folder / "store"), folder, "--workers", "2", **PLAIN), folder / "store"


@pytest.mark.parametrize("case", CASES)
def test_the_tables_are_the_same_from_another_folder_with(case, undisturbed, tmp_path):
    workers, variables = CASES[case]
    elsewhere, store = tmp_path / "a folder with spaces", tmp_path / "store"
    result = swept(small(tmp_path, storage=store), elsewhere, "--workers", str(workers), **variables)
    assert_same_tables(undisturbed[0], result)
    assert [path.name for path in elsewhere.iterdir()] == ["results"]
    assert [path.name for path in result.parent.iterdir()] == ["small"]
    assert not [*Path.home().rglob("*")]
    for path in store.rglob("*.*"):
        assert re.fullmatch(r"(originals|memos)/[0-9a-f]{64}\.safetensors", str(path.relative_to(store)))


def test_the_tables_are_the_same_when_originals_and_memos_are_in_the_storage_already(undisturbed, tmp_path):
    known, store = undisturbed
    before = {path.name: path.read_bytes() for path in store.rglob("*.safetensors")}
    result = swept(small(tmp_path, storage=store), tmp_path, "--workers", "2", PYTHONHASHSEED="3")
    assert before, "the storage was warm"
    assert before == {path.name: path.read_bytes() for path in store.rglob("*.safetensors")}
    assert_same_tables(known, result)
