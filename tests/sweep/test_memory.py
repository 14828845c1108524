"""How much memory a long sweep takes: of the driver by the number of trials, of a warm worker by none."""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
import yaml
from rich.console import Console

from cu_ray import config
from cu_ray.sweep import crew, runner
from cu_ray.sweep.trainable import StageTrainable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own, which come up in this process
ENGINE = Path(__file__).parents[2] / "benchmarks" / "engine.py"
DRIVER_MB = 300.0  # between 500 trials and 5,000
WORKER_MB = 4.0  # over 25 later trials of each of four methods, together: 40 kB a trial; noise is below 1
NUM_TRIALS = 200


def test_the_driver_of_ten_times_the_trials_grows_by_a_bounded_amount():
    peaks = [peak_of_driver(trials) for trials in (500, 5_000)]
    print(f"driver: {peaks[0]:.0f} MB after 500 trials, {peaks[1]:.0f} MB after 5,000")
    assert peaks[1] - peaks[0] < DRIVER_MB


def peak_of_driver(trials: int) -> float:
    """The most MB that a driver held, in a process of its own, whose workers do nothing."""
    command = [sys.executable, str(ENGINE), "--trials", str(trials), "--studies", "20"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert figures["trials"] == trials
    return figures["driver_peak_mb"]


class Tells(StageTrainable):
    """A worker that tells after each trial how much memory it holds, libraries and shared memory apart."""

    def _record(self, job):
        record = super()._record(job)
        if record.kind == "trial":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: else a leak would fill it first
            memory = psutil.Process().memory_info()
            record.facts["host"] = f"{os.getpid()} {memory.rss - memory.shared}"
        return record


@pytest.fixture
def workers_tell(monkeypatch):
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    monkeypatch.setattr(crew, "StageTrainable", Tells)
    yield
    ray.cloudpickle.unregister_pickle_by_value(here)


def test_a_warm_worker_does_not_grow_from_trial_to_trial(workers_tell, tmp_path):
    drawn = {"trials": NUM_TRIALS // 4, "sampler": "random"}
    methods = {
        "scrub": {"steps": 4, "msteps": 2, **drawn},
        "catastrophic_forgetting": {"steps": 4, "lr": {"low": 0.001, "high": 0.1, "log": True}, **drawn},
        "bad_teaching": {"steps": 4, "lr": {"low": 0.001, "high": 0.1, "log": True}, **drawn},
        "ssd": drawn,
    }
    text = {"name": "long", "dataset": "fashion_mnist_small", "model": {"name": "resnet9", "width": 2}}
    text |= {"manipulation": {"name": "backdoor", "size": 300}, "train": {"steps": 8, "batch_size": 64, "precision": "fp32"}}
    text |= {"deletion_fractions": [1.0], "methods": methods}
    text |= {"runtime": {"storage": str(tmp_path / "store"), "output": str(tmp_path), "workers": 1, "device": "cpu"}}
    outcome = runner.run(config.parse(yaml.safe_dump(text)), Console(file=io.StringIO()))
    assert outcome.num_failed == 0
    frame = pd.read_parquet(tmp_path / "long" / "tables" / "trials.parquet").sort_values("finished_at")
    assert len(frame) == NUM_TRIALS
    told = frame["host"].str.split(expand=True).astype(int)
    assert told[0].nunique() == 1, "one warm worker"
    sizes = told[1] / 1e6
    growth = sizes.groupby(frame["method"]).agg(lambda each: each[-15:].median() - each[10:25].median())
    print(f"worker: {sizes.iloc[0]:.1f} MB first, {sizes.iloc[-1]:.1f} MB last; growth by method {growth.round(2).to_dict()}")
    assert growth.sum() < WORKER_MB
