"""Whether a driver is on a head, as the head's shell sees it."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from cu_ray import __version__, config
from cu_ray.cli import main
from cu_ray.cli.run import _cluster_for
from cu_ray.errors import UserError
from cu_ray.places import Folder, is_locked
from cu_ray.remote import launcher
from cu_ray.remote.away import MARK, RUN, Away, start
from cu_ray.remote.launcher import Cluster, HeadFailed
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
        ask=ask,
        state=dict,
        path="cluster.yaml",
        name="lab",
        fetch=lambda there, here: shutil.copytree(there, here, dirs_exist_ok=True),
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
        **{"send": send, "state": dict, "path": tmp_path / "cluster.yaml", "name": "lab"},
    )
    sweep = config.load(sweeps.small(tmp_path))
    for ended in (True, False):  # None was sent before; one was, whose results are still there
        if not ended:
            Away(there, "~/cu-ray/small", "results/small", sweep.folder).note()
            (tmp_path / "cluster.yaml").write_text("cluster_name: lab\nprovider: {type: local, head_ip: h, worker_ips: []}\n")
        with pytest.raises(HeadFailed):
            start(sweep, there, [], Console(quiet=True))
        assert json.loads(sweep.folder.read(MARK))["ended"] == ended


@pytest.fixture
def head(tmp_path, monkeypatch):
    """A head on this machine, in the folder `head`, whose `cu-ray` takes a minute; a sweep file is in the working directory."""
    monkeypatch.chdir(tmp_path)
    sweeps.small(tmp_path)
    home, program = tmp_path / "head", tmp_path / "bin" / "cu-ray"
    home.mkdir()
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ $1 != --version ] || exec echo cu-ray, version {__version__}\nexec sleep 60\n")
    program.chmod(0o755)

    def send(parcel, folder):
        shutil.copytree(parcel, home / folder.removeprefix("~/"), dirs_exist_ok=True)

    yield SimpleNamespace(
        ask=lambda command: ask(f"export HOME={home} PATH={program.parent}:$PATH; {command}"),
        send=send,
        state=dict,
        path=tmp_path / "cluster.yaml",
        name="lab",
    )
    for process in home.glob("cu-ray/*/process"):
        subprocess.run(["kill", process.read_text().strip()], check=False)


def begun(head, *options, seconds=math.inf):
    return start(config.load("small.yaml"), head, options, Console(quiet=True), seconds)


def test_the_same_command_follows_what_runs_and_one_with_other_files_or_options_is_refused(head, tmp_path):
    assert begun(head, seconds=3600).status == "running"
    process = (tmp_path / "head/cu-ray/small/process").read_text()
    assert begun(head, seconds=1800).status == "running"
    refused = r"^small runs on lab with other files or options than these\. cu-ray stop results/small ends it, .* cu-ray attach "
    with pytest.raises(UserError, match=refused):
        begun(head, "--workers", "2")
    file = tmp_path / "small.yaml"
    file.write_text(file.read_text().replace("steps: 12", "steps: 13"))
    with pytest.raises(UserError, match=refused):
        begun(head)
    assert (tmp_path / "head/cu-ray/small/process").read_text() == process


def test_of_two_commands_at_once_one_starts_the_sweep(head, tmp_path):
    folder = tmp_path / "head/cu-ray/small"
    folder.mkdir(parents=True)
    (folder / "process").write_text("of the other one")
    send = head.send

    def another_is_first(parcel, to):
        fcntl.flock(lock, fcntl.LOCK_EX)
        send(parcel, to)

    with open(folder / "lock", "w") as lock:
        head.send = another_is_first
        for _ in range(2):  # the other one begins while this one sends; before it sends
            with pytest.raises(subprocess.CalledProcessError) as failed:
                begun(head)
            assert failed.value.returncode == 75
            assert failed.value.stdout == "another command sends or runs this sweep at the moment\n"
            assert (folder / "process").read_text() == "of the other one"
            head.send = None
    head.send = send
    assert begun(head).status == "running"
    assert is_locked(folder / "lock"), "as long as it runs"


OWN = "cluster_name: ours\nprovider: {type: local, head_ip: 10.0.0.1, worker_ips: []}\n"


def test_a_sweep_that_was_sent_and_is_not_at_home_is_not_begun_here_without_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "RAY_FOLDER", tmp_path / "ray")
    monkeypatch.setattr("cu_ray.sweep.runner.run", None)
    (tmp_path / "cluster.yaml").write_text(OWN)
    sweep, ours = config.load(sweeps.small(tmp_path)), Cluster.of("cluster.yaml")
    assert _cluster_for(sweep, None, Console(quiet=True)) is None
    sent = Away(ours, "~/cu-ray/small", "results/small", sweep.folder)
    sent.note()
    refused = CliRunner().invoke(main, ["sweep", "small.yaml"])
    assert refused.exit_code == 2, repr(refused.exception)
    assert "small was sent to ours, and not all of it has come home: --cluster " in refused.output
    assert "--local runs it here" in refused.output

    file = tmp_path / "ray" / "cluster-ours.state"
    file.parent.mkdir()
    file.write_text(json.dumps({"10.0.0.1": {"tags": {"ray-node-status": "up-to-date"}, "state": "running"}}))
    sent.note()
    shutil.rmtree(file.parent)  # as after a restart of this machine
    assert _cluster_for(sweep, None, Console(quiet=True)) == ours
    replace(sent, ended=True).note()
    shutil.rmtree(file.parent)
    assert _cluster_for(sweep, None, Console(quiet=True)) is None


def test_a_folder_on_the_head_is_one_word_for_its_shell_whatever_was_noted(tmp_path):
    (tmp_path / "cluster.yaml").write_text(OWN)
    Away(Cluster.of(tmp_path / "cluster.yaml"), "x; reboot", "results/small", Folder(tmp_path)).note()
    assert Away.of(Folder(tmp_path)).folder == "'x; reboot'"
