"""The garbage collector rests while torch is imported, and does not look through all modules once more as a command ends."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import subprocess
import sys

import pytest

from cu_ray import collector
from cu_ray.lazy import _Deferred


def said_by(code: str) -> dict[str, object]:
    """The last line that a fresh Python prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_deferred_module_is_imported_while_it_rests(tmp_path, monkeypatch):
    (tmp_path / "says_it.py").write_text("import gc\nruns = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert gc.isenabled()
    assert _Deferred("says_it").runs is False
    assert gc.isenabled()


def test_it_goes_on_after_a_fault_and_stays_off_where_it_was():
    with pytest.raises(ImportError), collector.at_rest():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector.at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


AS_COMMAND = """
import atexit, gc, json
from cu_ray import cli
class Late:
    pass
def main():  # in the place of all commands
    global kept, frozen
    kept, frozen = Late(), gc.get_freeze_count()
def say():  # registered before cu-ray's own, so called after it
    looked_at = any(isinstance(each, Late) for each in gc.get_objects())
    print(json.dumps({"frozen meanwhile": frozen, "looked at in the end": looked_at}))
atexit.register(say)
cli.main = main
cli.command()
"""


def test_as_a_command_ends_nothing_that_lives_is_looked_through_once_more():
    said = said_by(AS_COMMAND)
    assert said == {"frozen meanwhile": 0, "looked at in the end": False}


def test_the_installed_command_is_that_one():
    (found,) = importlib.metadata.entry_points(group="console_scripts", name="cu-ray")
    assert found.value == "cu_ray.cli:command"
