"""A Ray whose raylet or gcs is killed: the sweep says so and ends, nothing of Ray is left, the same command goes on."""

from __future__ import annotations

import socket
import time

import pytest

from tests import sweeps
from tests.faults.driver import Driver, left_of


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_sweep_whose_ray_dies_ends_within_ten_seconds_with_one_message(undisturbed, tmp_path, server):
    file, results = sweeps.small(tmp_path), tmp_path / "results" / "small"
    driver = Driver(tmp_path, str(file))
    driver.wait_for_trials(3)
    family = driver.family()
    driver.member(server).kill()
    killed = time.monotonic()
    assert driver.process.wait(timeout=10) == 1, driver.said
    assert f"cu-ray: Ray's {server} ended: see " in driver.said
    assert driver.said.count("Nothing is lost; the same command goes on from there.") == 1
    assert "Traceback" not in driver.said
    assert len(sweeps.table(results, "trials")) == driver.num_trials()
    assert not left_of(family, killed + 10 - time.monotonic())
    last = sweeps.command(tmp_path, "sweep", str(file))
    assert last.returncode == 0, last.stdout + last.stderr
    sweeps.assert_same_tables(undisturbed / "results" / "small", results)


def test_a_cluster_that_dies_while_it_is_joined_is_one_message(tmp_path):
    file = sweeps.small(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        driver = Driver(tmp_path, str(file), "--address", address)
        server.settimeout(60)
        server.accept()[0].close()  # it was there
    assert driver.process.wait(timeout=40) in (1, 2), driver.said
    assert "Traceback" not in driver.said
    assert driver.said.count("cu-ray: ") == 1
    assert address in driver.said
