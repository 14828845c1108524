"""Whether a driver is on a head, as the head's shell sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cu_ray import __version__, config
from cu_ray.places import Folder
from cu_ray.remote.away import MARK, RUN, Away, start
from cu_ray.remote.launcher import HeadFailed
from tests import sweeps


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


def fetched(away, tmp_path, code):
    """What is noted after results were fetched of a driver with this exit code, None while it runs."""
    (tmp_path / "files" / "results" / "small" / "tables").mkdir(parents=True)
    (tmp_path / "files" / "results" / "small" / "tables" / "trials.parquet").write_bytes(b"rows")
    cluster = SimpleNamespace(
        ask=ask, path="cluster.yaml", name="lab", fetch=lambda there, here: shutil.copytree(there, here, dirs_exist_ok=True)
    )
    if code is not None:
        (tmp_path / "exit").write_text(code)
    away = replace(away, cluster=cluster)
    status = away.fetch()
    assert (tmp_path / "home" / "tables" / "trials.parquet").read_bytes() == b"rows"
    mark = tmp_path / "home" / MARK
    return status, json.loads(mark.read_text())["ended"] if mark.exists() else False


@pytest.mark.parametrize("code", ["0", "1", "137"])
def test_what_was_fetched_after_the_end_is_all_and_the_cluster_is_not_asked_again(away, tmp_path, code):
    assert fetched(away, tmp_path, code) == (code, True)


def test_what_is_fetched_of_one_that_runs_is_not_its_end(away, started, tmp_path):
    assert fetched(away, tmp_path, None) == ("running", False)


def test_a_sweep_that_could_not_be_sent_is_not_taken_for_one_that_runs_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def send(parcel, folder):
        raise HeadFailed("the head is not reached")

    (tmp_path / "head").mkdir()
    there = SimpleNamespace(
        ask=lambda command: (
            __version__ if "--version" in command else ask(f"cd {tmp_path}/head; HOME={tmp_path}/head; {command}")
        ),
        **{"send": send, "path": tmp_path / "cluster.yaml", "name": "lab"},
    )
    sweep = config.load(sweeps.small(tmp_path))
    for ended in (True, False):  # None was sent before; one was, whose results are still there
        if not ended:
            Away(there, "~/cu-ray/small", "results/small", sweep.folder).note()
            (tmp_path / "cluster.yaml").write_text("cluster_name: lab\nprovider: {type: local, head_ip: h, worker_ips: []}\n")
        with pytest.raises(HeadFailed):
            start(sweep, there, [], Console(quiet=True))
        assert json.loads(sweep.folder.read(MARK))["ended"] == ended
