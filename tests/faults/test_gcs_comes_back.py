"""A joined cluster whose gcs is killed and started again from what it kept in Redis: the sweep waits for it and goes on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests import sweeps
from tests.faults.driver import Driver

REDIS = shutil.which("redis-server")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def redis():
    """The address of a Redis server."""
    port = free_port()
    process = subprocess.Popen([REDIS, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL)
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


class Head:
    """A head whose gcs keeps what it knows in Redis."""

    def __init__(self, folder: Path, redis: str) -> None:
        self._port, self._log = free_port(), folder / "head.log"
        self._place = f"/tmp/ray-{self._port}"  # short: the sockets in it have long names
        where = [f"--port={self._port}", f"--temp-dir={self._place}", "--include-dashboard=false", "--disable-usage-stats"]
        self._run([str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus=2", *where], redis).wait()
        self.address = next(line.split("'")[1] for line in self._log.read_text().splitlines() if "--address=" in line)

    def kill_gcs(self, seconds: float) -> None:
        """Kill it, and start it again after so long."""
        gcs = next(each for each in self._processes() if each.name().startswith("gcs_server"))
        command, environment = gcs.cmdline(), gcs.environ()
        gcs.kill()
        time.sleep(seconds)
        self._run(command, environment["RAY_REDIS_ADDRESS"])

    def close(self) -> None:
        """End it."""
        for process in self._processes():
            process.kill()
        shutil.rmtree(self._place)

    def _run(self, command: list[str], redis: str) -> subprocess.Popen:
        with open(self._log, "a", encoding="utf-8") as log:
            environment = {**os.environ, "RAY_REDIS_ADDRESS": redis}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if f"{self._place}/" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.mark.slow
@pytest.mark.skipif(REDIS is None, reason="there is no redis-server")
@pytest.mark.parametrize("seconds", [3, 15])
def test_a_gcs_that_comes_back_within_half_a_minute_costs_nothing(undisturbed, tmp_path, redis, seconds, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as `ray start` has it
    head = Head(tmp_path, redis)
    try:
        driver = Driver(tmp_path, str(sweeps.small(tmp_path)), "--address", head.address)
        driver.wait_for_trials(3)
        head.kill_gcs(seconds)
        assert driver.process.wait(timeout=240) == 0, driver.said
    finally:
        head.close()
    sweeps.assert_same_tables(undisturbed / "results" / "small", tmp_path / "results" / "small")
