"""A machine whose memory does not suffice for two trials at a time: Ray's memory monitor ends workers of a real sweep."""

from __future__ import annotations

import os

import psutil
import pytest

from tests import sweeps

HUNGRY = """
from __future__ import annotations
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
import numpy as np
from cu_ray.methods import Method
from cu_ray.plugins import Bound
from cu_ray.types import Cost, Sizes, UnlearningTask

@dataclass(frozen=True)
class Hungry(Method):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "takes memory for a while"
    megabytes: Annotated[int, Bound(low=0)] = 0
    seconds: Annotated[float, Bound(low=0)] = 3.0

    def unlearn(self, task: UnlearningTask) -> Any:
        taken = []
        for _ in range(self.megabytes // 100):
            taken.append(np.ones(12_500_000))
            time.sleep(0.02)
        time.sleep(self.seconds)
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()
"""


def swept(folder, megabytes: str, room: float):
    """What came of a sweep of a hungry method where Ray sees so many more gigabytes than are used now."""
    memory = psutil.virtual_memory()
    if memory.available < (room + 3) * 1e9:
        pytest.skip("not enough memory here")
    (folder / "hungry.py").write_text(HUNGRY)
    more = f"hungry:Hungry: {{megabytes: {megabytes}, seconds: [3.0, 3.1, 3.2], sampler: grid}}"
    file = sweeps.small(folder, fractions="[1.0]", seeds="[0]", trials=1, more=more)
    limit = {"RAY_memory_usage_threshold": str((memory.used + room * 1e9) / memory.total), "RAY_memory_monitor_refresh_ms": "250"}
    done = sweeps.command(folder, "sweep", str(file), "--local", "--workers", "2", env={**os.environ, **limit})
    trials = sweeps.table(folder / "results" / "small", "trials")
    return done, trials[trials["method"] == "hungry:Hungry"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_that_fit_one_by_one_only_are_done_by_fewer_workers(tmp_path):
    done, trials = swept(tmp_path, "2000", room=3.8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running low on memory" in done.stdout
    assert "by fewer workers for now." in done.stdout
    assert list(trials["status"]) == ["ok"] * 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_that_do_not_fit_alone_fail_with_the_reason_and_others_do_not(tmp_path):
    done, trials = swept(tmp_path, "[100, 4000]", room=3.8)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed: see the columns status and error" in done.stdout
    assert set(zip(trials["hp_megabytes"], trials["status"], strict=True)) == {(100, "ok"), (4000, "failed")}
    assert trials[trials["status"] == "failed"]["error"].str.contains("running low on memory").all()
