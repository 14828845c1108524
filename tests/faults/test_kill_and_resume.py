"""A real sweep on a real Ray, killed and given again: nothing is lost, nothing runs twice, the tables are the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

from cu_ray.places import ABANDONED_AFTER
from cu_ray.sweep import ledger
from tests import sweeps
from tests.faults.driver import Driver

KILLS = 3


def test_the_sweep_ends_with_its_table_and_every_trial_ok(undisturbed):
    trials = sweeps.table(undisturbed / "results" / "small", "trials")
    assert set(trials["status"]) == {"ok"}
    assert set(trials["method"]) == {"no_unlearning", "catastrophic_forgetting", "scrub", "ssd"}


def test_the_same_command_again_does_nothing_and_says_so(undisturbed):
    before = {path: path.read_bytes() for path in (undisturbed / "results" / "small" / "ledger").glob("*.log")}
    started = time.monotonic()
    again = sweeps.command(undisturbed, "sweep", "small.yaml")
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert "Starting Ray" not in again.stdout
    assert time.monotonic() - started < 30
    assert {path: path.read_bytes() for path in before} == before


def test_what_killed_drivers_left_half_written_is_taken_away_once_nobody_can_be_at_it(undisturbed, tmp_path):
    results = tmp_path / "copy" / "results" / "small"
    shutil.copytree(undisturbed, tmp_path / "copy")
    old, new = results / "tables" / ".trials.parquet.1.tmp", results / ".status.json.2.tmp"
    for half in (old, new):
        half.write_bytes(b"half")
    os.utime(old, (0, time.time() - ABANDONED_AFTER - 60))
    assert sweeps.command(tmp_path / "copy", "sweep", "small.yaml").returncode == 0
    assert not old.exists()
    assert new.exists()


def test_tables_do_not_depend_on_the_number_of_workers(undisturbed, tmp_path):
    alone = sweeps.command(tmp_path, "sweep", str(sweeps.small(tmp_path)), "--workers", "1")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    sweeps.assert_same_tables(undisturbed / "results" / "small", tmp_path / "results" / "small")


def test_raising_trials_and_adding_a_fraction_runs_only_what_is_new(undisturbed, tmp_path):
    """On a copy of the undisturbed run."""
    shutil.copytree(undisturbed, tmp_path / "copy")
    folder = tmp_path / "copy"
    known = ledger.read(folder / "results" / "small" / "ledger")
    file = sweeps.small(folder, fractions="[0.1, 0.5, 1.0]", trials=8)
    assert sweeps.counts(folder, file)["trials_done"] == sum(not is_confirmation(record) for record in known.trials.values())
    done = sweeps.command(folder, "sweep", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    after = ledger.read(folder / "results" / "small" / "ledger")
    for key, record in known.trials.items():
        assert after.trials[key] == record  # not run again: its times are the old ones
    assert len(after.trials) > len(known.trials)
    assert sweeps.counts(folder, file)["trials_done"] == sweeps.counts(folder, file)["trials"]


def is_confirmation(record):
    """Whether it confirms a best point of SCRUB, whose studies are open again when `trials` is raised: their best may change."""
    return record.spec["method"]["name"] == "scrub" and record.spec["original"]["setting"]["seed"] != 0


def test_the_status_after_a_kill_counts_what_the_ledger_has(tmp_path):
    driver = Driver(tmp_path, str(sweeps.small(tmp_path)))
    driver.wait_for_trials(4)  # fewer than the half minute after which the status is written anew
    driver.process.kill()
    driver.process.wait()
    trials = driver.num_trials()
    said = sweeps.command(tmp_path, "status", "results/small").stdout
    assert f"small: stopped before its end; {trials} of 34 trials done, 0 failed" in said
    assert "originals: 1 of 2" in said or "originals: 2 of 2" in said
    written = json.loads((tmp_path / "results" / "small" / "status.json").read_text())
    assert written["trials_done"] < trials


def kill_at_random(folder, arguments, rng):
    """Start the sweep and kill -9 its driver once it has finished some more trials; tell whether it was still running."""
    process = sweeps.start(folder, *arguments)
    logs = folder / "results" / "small" / "ledger"
    before = len(ledger.read(logs).trials) if logs.exists() else 0
    goal, deadline = before + rng.randint(1, 6), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if logs.exists() and len(ledger.read(logs).trials) >= goal:
            break
        time.sleep(0.05)
    time.sleep(rng.random())
    was_running = process.poll() is None
    if was_running:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return was_running


def test_a_driver_killed_again_and_again_loses_nothing_and_repeats_nothing(undisturbed, tmp_path):
    rng = random.Random(int(os.environ.get("CU_RAY_KILL_SEED", "0")))
    file = sweeps.small(tmp_path)
    logs = tmp_path / "results" / "small" / "ledger"
    finished = {}
    kills = int(os.environ.get("CU_RAY_KILLS", KILLS))
    for _ in range(kills):
        if not kill_at_random(tmp_path, ["sweep", str(file)], rng):
            break
        known = ledger.read(logs).trials
        for key, record in finished.items():
            assert known[key] == record  # neither lost nor run again
        finished = dict(known)
    last = sweeps.command(tmp_path, "sweep", str(file))
    assert last.returncode == 0, last.stdout + last.stderr
    known = ledger.read(logs).trials
    assert {key: known[key] for key in finished} == finished
    sweeps.assert_same_tables(undisturbed / "results" / "small", tmp_path / "results" / "small")


def start_and_kill_one(folder, file, is_it):
    """The sweep, of whose processes the first that is it was killed once the originals were there."""
    import psutil

    process, logs = sweeps.start(folder, "sweep", str(file)), folder / "results" / "small" / "ledger"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if logs.exists() and len(ledger.read(logs).originals) == 2:
            for child in filter(is_it, psutil.Process(process.pid).children(recursive=True)):
                child.kill()
                return process
        time.sleep(0.1)
    raise AssertionError(f"nothing was killed: {(folder / 'driver.log').read_text()}")


def test_a_killed_worker_is_replaced_and_the_tables_are_the_same(undisturbed, tmp_path):
    process = start_and_kill_one(tmp_path, sweeps.small(tmp_path), _is_stage_worker)
    assert process.wait(timeout=240) == 0, (tmp_path / "driver.log").read_text()
    assert "Traceback" not in (tmp_path / "driver.log").read_text(), "what Ray says of it is in its log"
    sweeps.assert_same_tables(undisturbed / "results" / "small", tmp_path / "results" / "small")


def test_when_the_desk_is_killed_the_sweep_ends_with_a_message_and_the_same_command_goes_on(undisturbed, tmp_path):
    file = sweeps.small(tmp_path)
    process = start_and_kill_one(tmp_path, file, _is_desk)
    assert process.wait(timeout=120) == 1
    said = " ".join((tmp_path / "driver.log").read_text().split())
    assert "cu-ray: the desk at which workers wait for their jobs ended: ActorDiedError (see " in said
    assert "Traceback" not in said
    known = ledger.read(tmp_path / "results" / "small" / "ledger")
    assert all(record.ok for record in {**known.originals, **known.trials}.values())
    again = sweeps.command(tmp_path, "sweep", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    sweeps.assert_same_tables(undisturbed / "results" / "small", tmp_path / "results" / "small")


def _is_desk(process):
    import psutil

    try:
        return process.name().startswith("ray::Desk")
    except psutil.Error:
        return False


def _is_stage_worker(process):
    import psutil

    try:
        return process.name().startswith("ray::StageTrain") or any("StageTrainable" in part for part in process.cmdline())
    except psutil.Error:
        return False
