"""Whole sweeps on a real GPU, whose workers are Ray's: they share it, it runs out of memory, the driver is killed.

python -m pytest -m gpu tests/sweep/test_sweep_on_a_gpu.py
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch

from cu_ray.sweep import ledger
from tests import sweeps

pytestmark = pytest.mark.gpu

HALF = '''
"""A method that fits into a GPU once, not twice."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from cu_ray.methods import Method
from cu_ray.types import Cost


@dataclass(frozen=True)
class TakesHalf(Method):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "takes more than half of a GPU for two seconds, the first time together with another"
    turn: int = 0

    def unlearn(self, task):
        Path(FOLDER, f"came {self.turn}").touch()
        deadline = time.monotonic() + 200  # the other may still compile kernels
        while len(list(Path(FOLDER).glob("came *"))) < TOGETHER and time.monotonic() < deadline:
            time.sleep(0.05)
        taken = torch.empty(int(0.55 * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device="cuda")
        taken[::4096] = 1
        torch.cuda.synchronize()
        time.sleep(2)
        return task.original

    def cost(self, sizes):
        return Cost()
'''


def plug_in(folder, *, share, together):
    """Write the method that takes this share of the GPU into the folder; so many wait for each other there at first."""
    text = HALF.replace("0.55", str(share)).replace("FOLDER", repr(str(folder))).replace("TOGETHER", str(together))
    (folder / "half.py").write_text(text)


def free_bytes():
    """What is free on the GPU for all processes."""
    return torch.cuda.mem_get_info()[0]


def free_again(before, seconds=15.0):
    """Whether as much is free as before, but for a hundredth of the GPU, within some seconds."""
    total, deadline = torch.cuda.mem_get_info()[1], time.monotonic() + seconds
    while before - free_bytes() > 0.01 * total and time.monotonic() < deadline:
        time.sleep(0.2)
    return before - free_bytes() <= 0.01 * total


def at_once(trials):
    """The most trials that ran at the same time."""
    starts, ends = (pd.to_datetime(trials[column]) for column in ("started_at", "finished_at"))
    return max(int(((starts <= moment) & (moment < ends)).sum()) for moment in starts)


def test_workers_share_a_gpu_and_a_killed_sweep_goes_on(tmp_path):
    before = free_bytes()
    file = sweeps.small(tmp_path, fractions="[0.1, 0.5, 1.0]", trials=8)
    file.write_text(file.read_text().replace("steps: 12", "steps: 300").replace("steps: 6", "steps: 150"))
    process, folder = sweeps.start(tmp_path, "sweep", str(file)), tmp_path / "results" / "small"
    deadline = time.monotonic() + 120
    while not folder.exists() or len(ledger.read(folder / "ledger").trials) < 10:
        assert process.poll() is None, (tmp_path / "driver.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    known = ledger.read(folder / "ledger").trials
    assert free_again(before), "nobody is left on the GPU"

    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {key: ledger.read(folder / "ledger").trials[key] for key in known} == known
    assert free_again(before), "nobody is left on the GPU"
    trials = pd.read_parquet(folder / "tables" / "trials.parquet")
    assert set(trials["status"]) == {"ok"}
    assert set(trials["device"]) == {torch.cuda.get_device_name()}
    assert set(trials["gpu_share"]) == {0.125}, "small trials: as many as share a GPU at most"
    assert at_once(trials) > 2
    assert (trials["peak_memory_bytes"] < 1 << 30).all()
    again = sweeps.command(tmp_path, "sweep", str(file))
    assert "Nothing to do" in again.stdout


def test_training_and_retraining_work_on_a_gpu(tmp_path):
    """Scores, not weights: retraining without any of the manipulated images does not know the trigger."""
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", more="exact_unlearning: {}")
    file.write_text(file.read_text().replace("steps: 12", "steps: 600").replace("width: 2", "width: 8").replace("fp32", "auto"))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert set(trials["precision"]) == {"bf16"}
    assert trials.loc["no_unlearning", "asr"] > 0.8
    assert trials.loc["exact_unlearning", "asr"] < 0.2
    assert trials.loc["exact_unlearning", "acc_retain"] > 0.75


def test_what_runs_out_of_a_real_gpus_memory_beside_others_is_run_again_alone(tmp_path):
    plug_in(tmp_path, share=0.55, together=2)
    more = "half:TakesHalf: {turn: [1, 2, 3], sampler: grid}"
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more=more)
    file.write_text(file.read_text().replace("runtime: {", "runtime: {gpus_per_trial: 0.5, "))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    trials = pd.read_parquet(tmp_path / "results" / "small" / "tables" / "trials.parquet")
    half = trials[trials["method"] == "half:TakesHalf"]
    assert len(half) == 3
    assert set(half["status"]) == {"ok"}
    assert half["num_out_of_memory"].sum() >= 1
    alone = half[half["gpu_share"] == 1.0]
    assert len(alone) >= 2
    spans = sorted(zip(pd.to_datetime(alone["started_at"]), pd.to_datetime(alone["finished_at"]), strict=True))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), "one after the other"
    assert set(trials.loc[trials["method"] == "ssd", "gpu_share"]) == {0.5}


def test_a_method_that_no_gpu_can_hold_is_a_failed_row(tmp_path):
    plug_in(tmp_path, share=1.1, together=1)
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more="half:TakesHalf: {}")
    file.write_text(file.read_text().replace("runtime: {", "runtime: {gpus_per_trial: 0.5, "))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert trials.loc["half:TakesHalf", "status"] == "failed"
    assert "out of memory" in trials.loc["half:TakesHalf", "error"]
    assert set(trials.drop("half:TakesHalf")["status"]) == {"ok"}


ASSERTS = '''
"""A method whose kernel finds a row that is not there."""

import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from cu_ray.methods import Method
from cu_ray.types import Cost


@dataclass(frozen=True)
class Asserts(Method):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "looks up a row that is not there"

    def unlearn(self, task):
        with open(f"{__file__}.tries", "a") as file:
            file.write(f"{os.getpid()}\\n")
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].sum().item()
        return task.original

    def cost(self, sizes):
        return Cost(10**9, 10**9)  # what takes longest is run first
'''


@pytest.mark.parametrize("share", [0.5, "auto"])
def test_a_kernel_that_fails_takes_no_other_trial_with_it(tmp_path, share):
    (tmp_path / "asserts.py").write_text(ASSERTS)
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more="asserts:Asserts: {}")
    file.write_text(file.read_text().replace("runtime: {", f"runtime: {{gpus_per_trial: {share}, "))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert "in asserts:Asserts" in trials.loc["asserts:Asserts", "error"]
    assert "CUDA error" in trials.loc["asserts:Asserts", "error"]
    tries = (tmp_path / "asserts.py.tries").read_text().split()
    assert len(set(tries)) == 4 + (share == "auto"), "three times beside others and once alone, and by a canary"
    assert set(trials.drop("asserts:Asserts")["status"]) == {"ok"}


@pytest.fixture
def mps(tmp_path, monkeypatch):
    """NVIDIA's Multi-Process Service for what the test starts: the folder of its logs."""
    if not shutil.which("nvidia-cuda-mps-control"):
        pytest.skip("no MPS here")
    place = tmp_path / "mps"
    place.mkdir()
    for variable in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.setenv(variable, str(place))
    subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True, timeout=30)
    yield place
    subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=True, timeout=60)


def test_under_mps_a_kernel_that_fails_takes_its_neighbours_down_and_the_sweep_goes_on(tmp_path, mps):
    (tmp_path / "asserts.py").write_text(ASSERTS)
    file = sweeps.small(tmp_path, fractions="[0.1, 0.5, 1.0]", trials=8, more="asserts:Asserts: {}")
    text = file.read_text().replace("steps: 12", "steps: 300").replace("steps: 6", "steps: 600")
    file.write_text(text.replace("runtime: {", "runtime: {gpus_per_trial: 0.125, "))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    logs = "\n".join(file.read_text() for file in mps.glob("*.log"))
    assert logs.lower().count("new client") >= 8, f"the workers were not under MPS: {logs}"
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert set(trials.loc["asserts:Asserts", "status"]) == {"failed"}
    assert trials.loc["asserts:Asserts", "error"].str.contains("CUDA error").all()
    assert set(trials.drop("asserts:Asserts")["status"]) == {"ok"}
