"""A time limit ends a sweep cleanly: partial tables, an exit code of its own, and the same command goes on."""

from __future__ import annotations

import pytest

from cu_ray.config import seconds_of
from cu_ray.errors import UserError
from tests import sweeps


def test_a_time_limit_ends_a_sweep_and_the_same_command_goes_on(tmp_path):
    file = sweeps.small(tmp_path, fractions="[1.0]", trials=2)
    ended = sweeps.command(tmp_path, "sweep", str(file), "--time-limit", "1s")  # Ray alone takes longer to start
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "Time is up: 0 of" in ended.stdout
    folder = tmp_path / "results" / "small"
    assert set(sweeps.table(folder, "best")["coverage"]) == {0.0}
    status = sweeps.command(tmp_path, "status", str(folder))
    assert "not running" in status.stdout
    done = sweeps.command(tmp_path, "sweep", str(file), "--time-limit", "1h")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(sweeps.table(folder, "best")["coverage"]) == {1.0}


@pytest.mark.parametrize(("given", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("0s", 0)])
def test_a_time_is_hours_minutes_and_seconds(given, seconds):
    assert seconds_of(given) == seconds


@pytest.mark.parametrize("given", ["", "8", "h", "1.5h", "30m1h", "-1h", "8 h", "8H"])
def test_other_times_are_refused(given):
    with pytest.raises(UserError, match=r"--time-limit .*hours, minutes and seconds"):
        seconds_of(given)
