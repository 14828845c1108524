"""A signal ends a real sweep soon, with exit code 130 and tables, and leaves no process of Ray behind."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests import sweeps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_starts_ends_the_sweep_within_ten_seconds(tmp_path, number):
    process = sweeps.start(tmp_path, "sweep", str(sweeps.small(tmp_path)))
    deadline, children = time.monotonic() + 60, []
    while time.monotonic() < deadline and not children:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    assert children
    process.send_signal(number)
    assert process.wait(timeout=10) == 130, (tmp_path / "driver.log").read_text()
    said = (tmp_path / "driver.log").read_text()
    assert "Interrupted: 0 of 30 trials are done. The same command goes on" in said
    assert "Traceback" not in said
    assert (tmp_path / "results" / "small" / "tables" / "trials.parquet").exists()
    assert not psutil.wait_procs(children, timeout=5)[1]
