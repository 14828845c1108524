"""The garbage collector rests while torch is imported, and does not look through all modules once more as a command ends."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from cu_ray import collector
from cu_ray.lazy import _Deferred


def said_by(code: str, *arguments: str) -> dict[str, object]:
    """The last line that a fresh Python prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
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
import atexit, gc, json, sys
def say():  # registered before cu-ray's own, so called after it
    print(json.dumps({"frozen": gc.get_freeze_count(), "threshold": gc.get_threshold()[0]}), flush=True)
atexit.register(say)
sys.argv = ["cu-ray", *sys.argv[1:]]
from cu_ray.cli import command
command()
"""


def test_a_command_ends_without_a_last_look():
    said = said_by(AS_COMMAND, "--version")
    assert said["frozen"] > 10_000  # all that lives
    assert said["threshold"] == collector.SELDOM


def test_only_a_process_of_its_own_is_changed():
    before = gc.get_threshold()
    from click.testing import CliRunner

    from cu_ray.cli import main

    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
    assert gc.get_threshold() == before != (collector.SELDOM, *before[1:])
