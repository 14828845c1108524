"""Whether a driver is on a head, as the head's shell sees it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cu_ray.places import Folder
from cu_ray.remote.away import RUN, Away


def ask(command):
    """The head is this machine."""
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def wait_for(file):
    """Until something is in it."""
    deadline = time.monotonic() + 20
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def away(tmp_path):
    (tmp_path / "files").mkdir()
    return Away(SimpleNamespace(ask=ask), str(tmp_path), "results/small", Folder(tmp_path / "home"))


@pytest.fixture
def started(away, tmp_path):
    """The number of a driver's process, which is there for a minute."""
    (tmp_path / "run.sh").write_text(RUN.format(command="sleep 60", results="results/small"))
    shell = subprocess.Popen(["bash", str(tmp_path / "run.sh")], start_new_session=True)
    wait_for(tmp_path / "process")
    yield int((tmp_path / "process").read_text())
    subprocess.run(["kill", "--", f"-{shell.pid}"], check=False)
    shell.wait()


def test_a_driver_runs_until_it_ends_or_is_stopped(away, started, tmp_path):
    assert away.status == "running"
    away.stop()
    wait_for(tmp_path / "exit")
    assert away.status == str(128 + 15)


def test_another_process_with_its_number_is_not_the_driver(away, started, tmp_path):
    since = tmp_path / "since"
    since.write_text(str(int(since.read_text()) - 100))  # it began a second before: that process has ended since
    assert away.status == "lost"
    with pytest.raises(subprocess.CalledProcessError):
        away.stop()
    assert Path(f"/proc/{started}").exists(), "nobody else is stopped"


def test_a_head_that_was_started_anew_has_lost_its_driver(away, tmp_path):
    (tmp_path / "process").write_text("4194304")  # no process has this number
    (tmp_path / "since").write_text("100")
    assert away.status == "lost"


def test_without_the_time_of_its_start_a_driver_is_known_by_its_number_alone(away, started, tmp_path):
    (tmp_path / "since").unlink()
    assert away.status == "running"
    (tmp_path / "process").write_text("")
    assert away.status == "lost"
