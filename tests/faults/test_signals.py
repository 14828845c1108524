"""A signal ends a real sweep soon, with exit code 130 and tables, and leaves no process of Ray behind."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests import sweeps
from tests.faults.driver import Driver, left_of


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_starts_ends_the_sweep_within_ten_seconds(tmp_path, number):
    driver = Driver(tmp_path, str(sweeps.small(tmp_path)))
    deadline, family = time.monotonic() + 60, []
    while time.monotonic() < deadline and not family:
        family = driver.family()
        time.sleep(0.05)
    assert family
    driver.process.send_signal(number)
    assert driver.process.wait(timeout=10) == 130, driver.said
    assert "Interrupted: 0 of 34 trials are done. The same command goes on" in driver.said
    assert "Traceback" not in driver.said
    assert (tmp_path / "results" / "small" / "tables" / "trials.parquet").exists()
    assert not left_of(family, 5)


@pytest.mark.parametrize("pause", [0.1, 0.4, 0.8])
def test_two_of_them_while_ray_starts_leave_nothing_of_it(tmp_path, pause):
    driver = Driver(tmp_path, str(sweeps.small(tmp_path)))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not driver.member("raylet"):
        time.sleep(0.05)
    driver.process.send_signal(signal.SIGINT)
    time.sleep(pause)
    family = driver.family()
    driver.process.send_signal(signal.SIGINT)
    ends = (130, -signal.SIGINT)  # which is 130 for a shell, too: as Python itself ends, all else being done, it hears no more
    assert driver.process.wait(timeout=10) in ends, driver.said
    assert "he same command goes on from there." in driver.said
    assert not left_of(family, 5)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_server_of_ray_that_does_not_answer_holds_no_leaving_up_for_ever(tmp_path, server):
    driver = Driver(tmp_path, str(sweeps.small(tmp_path)))
    driver.wait_for_trials(1)
    family = driver.family()
    driver.member(server).suspend()
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(timeout=40) == 130, driver.said
    assert "The same command goes on from there." in driver.said
    assert not left_of(family, 5)


def test_signals_in_mid_run_end_one_sweep_again_and_again_and_it_goes_on(undisturbed, tmp_path):
    file, results = sweeps.small(tmp_path), tmp_path / "results" / "small"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        driver = Driver(tmp_path, str(file))
        driver.wait_for_trials(2)
        family = driver.family()
        driver.process.send_signal(number)
        assert driver.process.wait(timeout=10) == 130, driver.said
        said = re.search(r"Interrupted: (\d+) of \d+ trials are done\. The same command goes on from there\.", driver.said)
        assert said, driver.said
        assert "Traceback" not in driver.said
        done = len(sweeps.table(results, "trials"))
        assert int(said[1]) == done
        assert driver.num_trials() - 1 <= done <= driver.num_trials(), "the signal may come just after a record was written"
        assert not left_of(family, 5)
    for pause in (0.1, 0.2, 0.3, 0.4):  # seconds: while workers end, while Ray is left, and after it
        driver = Driver(tmp_path, str(file))
        driver.wait_for_trials(1)
        family = driver.family()
        driver.process.send_signal(signal.SIGINT)
        time.sleep(pause)
        driver.process.send_signal(signal.SIGINT)
        assert driver.process.wait(timeout=3) in (130, -signal.SIGINT), (pause, driver.said)
        assert "he same command goes on from there." in driver.said
        assert "Traceback" not in driver.said
        assert not left_of(family, 5)
    last = sweeps.command(tmp_path, "sweep", str(file))
    assert last.returncode == 0, last.stdout + last.stderr
    sweeps.assert_same_tables(undisturbed / "results" / "small", results)
