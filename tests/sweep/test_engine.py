"""Sweeps on a real Ray: every node is used, a memo is paid for once, what hangs is ended, what is too large has its turn."""

from __future__ import annotations

import io
import json
import math
import platform
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

from cu_ray import config
from cu_ray.errors import RayStopped, SearchFailed
from cu_ray.sweep import crew, ledger, runner, sampling, status
from cu_ray.sweep.desk import Packed
from cu_ray.sweep.measuring import measured_share
from cu_ray.sweep.ready import Job
from cu_ray.sweep.trainable import StageTrainable
from cu_ray.types import OriginalSpec, Record, TrialSpec
from tests import sweeps
from tests.sweep.simulator import record_of

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own, which come up in this process
HERE = Path(__file__).parent


def quiet() -> Console:
    return Console(file=io.StringIO())


# --------------------------------------------------------------------------------------------------------------- nodes


class Waits(StageTrainable):
    """A worker that spends its time on nothing and tells on which node."""

    def _record(self, job: Packed) -> Record:
        began = time.time()
        spec = (OriginalSpec if job["kind"] == "original" else TrialSpec).build(json.loads(job["spec"]))
        record = record_of(Job(job["kind"], spec))
        time.sleep(0.2)
        record.facts.update(host=ray.get_runtime_context().get_node_id(), started_at=str(began), finished_at=str(time.time()))
        return record


@pytest.fixture
def cluster(monkeypatch):
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Waits"]))
    monkeypatch.setattr(crew, "StageTrainable", Waits)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(__import__(__name__, fromlist=["Waits"]))


def run_there(cluster, folder: Path, points: int) -> list[Record]:
    """The records of a sweep of so many trials on the cluster, in the order in which they began."""
    methods = {"scrub": {"steps": 6, "trials": points, "sampler": "random"}}
    file = folder / "waits.yaml"
    file.write_text(
        json.dumps(
            {
                "name": "waits",
                "dataset": "fashion_mnist_small",
                "model": {"name": "resnet9", "width": 2},
                "manipulation": {"name": "backdoor", "size": 100},
                "train": {"steps": 20, "precision": "fp32"},
                "deletion_fractions": [0.5],
                "methods": methods,
                "runtime": {
                    "storage": str(folder / "store"),
                    "output": str(folder / "results"),
                    "address": cluster.address,
                    "device": "cpu",
                },
            }
        )
    )
    outcome = runner.run(config.load(file), quiet())
    assert outcome.estimate.trials_done == points
    trials = ledger.read(folder / "results" / "waits" / "ledger").trials.values()
    return sorted(trials, key=lambda record: float(record.facts["started_at"]))


def test_short_trials_use_both_nodes_from_start_to_end(cluster, tmp_path):
    cluster.add_node(num_cpus=1)
    records = run_there(cluster, tmp_path, 60)
    quarters = [Counter(record.facts["host"] for record in records[begin : begin + 15]) for begin in range(0, 60, 15)]
    assert all(len(each) == 2 and min(each.values()) >= 5 for each in quarters[1:]), quarters
    assert len(quarters[0]) == 2, "the second worker may arrive a little later than the first"


def test_a_node_that_joins_is_used_and_one_that_dies_loses_only_what_was_in_flight(cluster, tmp_path):
    def seen() -> Counter:
        known = ledger.read(tmp_path / "results" / "waits" / "ledger").trials.values()
        return Counter(record.facts["host"] for record in known)

    def wait_until(nodes: int, trials: int) -> None:
        while len(seen()) < nodes or min(seen().values()) < trials:
            assert sweep.is_alive(), "the sweep ended before"
            time.sleep(0.2)

    records: list[Record] = []
    sweep = threading.Thread(target=lambda: records.extend(run_there(cluster, tmp_path, 200)))
    sweep.start()
    wait_until(1, 5)
    joined = cluster.add_node(num_cpus=1)
    wait_until(2, 5)
    cluster.remove_node(joined, allow_graceful=False)
    sweep.join()
    assert len(records) == 200
    assert all(record.ok for record in records)


class Stillborn(StageTrainable):
    """A worker that does not come up."""

    def setup(self, config: dict, **shared) -> None:
        raise RuntimeError("no CUDA driver here")


def test_a_sweep_whose_workers_die_while_they_start_ends_with_one_message(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "StageTrainable", Stillborn)
    with pytest.raises(RayStopped, match=r"no worker comes up, they die while they start: RuntimeError: no CUDA driver here"):
        run_there(cluster, tmp_path, 3)


class Firstborn(Waits):
    """A worker that does not come up unless it is the first."""

    mark = ""  # a file that the first one makes

    def setup(self, config: dict, **shared) -> None:
        Path(self.mark).touch(exist_ok=False)
        super().setup(config, **shared)


def test_a_sweep_goes_on_with_the_worker_that_is_up_where_no_other_comes(cluster, tmp_path, monkeypatch):
    """As where a cluster has a broken node, on which all further workers land."""
    monkeypatch.setattr(crew, "StageTrainable", Firstborn)
    monkeypatch.setattr(Firstborn, "mark", str(tmp_path / "first"))
    cluster.add_node(num_cpus=3)
    records = run_there(cluster, tmp_path, 40)
    assert len(records) == 40
    assert all(record.ok for record in records)
    assert len({record.facts["host"] for record in records}) == 1


# --------------------------------------------------------------------------------------------------------------- memos


@pytest.mark.parametrize("workers", [1, 2])
def test_50_ssd_points_pay_one_importance_pass_for_each_set(workers, tmp_path):
    file = sweeps.small(tmp_path, fractions="[0.5]", seeds="[0]")
    text = file.read_text()
    begin, end = text.index("methods:"), text.index("search:")
    shares = "{low: 0.002, high: 0.1, log: true, num: 10}"
    grid = f"ssd: {{selection_share: {shares}, relative_dampening: [0.2, 0.4, 0.6, 0.8, 1], sampler: grid}}"
    file.write_text(text[:begin] + f"methods:\n  {grid}\n" + text[end:])
    done = sweeps.command(tmp_path, "sweep", str(file), "--workers", str(workers))
    assert done.returncode == 0, done.stdout + done.stderr
    trials = pd.read_parquet(tmp_path / "results" / "small" / "tables" / "trials.parquet")
    assert len(trials) == 50
    assert set(trials["deletion_size"]) == {150}
    num_train = 6000
    assert set(trials["images_forward"]) == set(trials["images_backward"]) == {num_train}, "what each costs alone"
    assert trials["images_forward_spent"].sum() == trials["images_backward_spent"].sum() == num_train, "what all paid"


# ------------------------------------------------------------------------------------------------------ what does not end


def sweep_of(folder: Path, methods: str, limit: str = "24h") -> Path:
    shutil.copy(HERE / "stuck_methods.py", folder)
    file = sweeps.small(folder, fractions="[1.0]", seeds="[0]", trials=1, more=methods)
    file.write_text(file.read_text().replace("runtime: {", f"runtime: {{trial_time_limit: {limit}, "))
    return file


def test_a_method_that_hangs_is_a_failed_row_and_the_others_finish(tmp_path):
    file = sweep_of(tmp_path, "stuck_methods:Loops: {}\n  stuck_methods:HangsInC: {}", limit="15s")
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    for method, ended in (("stuck_methods:Loops", ""), ("stuck_methods:HangsInC", ", and its worker had to be ended")):
        assert trials.loc[method, "status"] == "failed"
        assert trials.loc[method, "error"].startswith(f"{method} took longer than runtime.trial_time_limit (15 s)")
        assert ended in trials.loc[method, "error"]
    assert set(trials.loc[["no_unlearning", "catastrophic_forgetting", "scrub", "ssd"], "status"]) == {"ok"}


def test_a_search_whose_sampler_fails_is_one_message_and_nothing_done_is_lost(tmp_path, monkeypatch):
    """Tune makes a text of what is raised while it tells us of a result; the message is ours, and status says that it ended."""
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=8)
    monkeypatch.chdir(tmp_path)
    real = sampling._sampler

    def fails_in_the_end(study, index):
        if index == 7:
            raise ValueError("no kernel fits")
        return real(study, index)

    monkeypatch.setattr(sampling, "_sampler", fails_in_the_end)
    with pytest.raises(
        SearchFailed, match=r"the sampler 'tpe' cannot choose point 7 .*\(scrub at .* 1.0\): ValueError: no kernel fits"
    ):
        runner.run(config.load(file), quiet())
    trials = sweeps.table(tmp_path / "results" / "small", "trials")
    assert (trials["method"] == "scrub").sum() >= 4
    assert not status.read(tmp_path / "results" / "small")["running"]
    monkeypatch.setattr(sampling, "_sampler", real)
    assert runner.run(config.load(file), quiet()).num_failed == 0


# ------------------------------------------------------------------------------------------------------- shares of a GPU


@pytest.fixture
def with_a_gpu():
    """Ray that holds this machine for one with a GPU."""
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_what_runs_out_of_memory_is_run_again_alone_after_all_others(with_a_gpu, tmp_path, monkeypatch):
    file = sweep_of(tmp_path, "stuck_methods:NeedsAWholeGpu: {}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(runner._Work, "_share", lambda self: 0.5)
    sweep = config.with_runtime(config.load(file), address=ray.get_runtime_context().gcs_address, device="cpu")
    outcome = runner.run(sweep, quiet())
    assert outcome.num_failed == 0
    trials = pd.read_parquet(tmp_path / "results" / "small" / "tables" / "trials.parquet").set_index("method")
    assert trials.loc["stuck_methods:NeedsAWholeGpu", "gpu_share"] == 1.0
    assert trials.loc["stuck_methods:NeedsAWholeGpu", "num_out_of_memory"] == 1
    assert set(trials.loc[["scrub", "ssd", "no_unlearning"], "gpu_share"]) == {0.5}


def test_a_worker_that_lost_its_gpu_ends_and_a_new_one_goes_on(tmp_path):
    file = sweep_of(tmp_path, "stuck_methods:LosesTheGpu: {}")
    done = sweeps.command(tmp_path, "sweep", str(file), "--workers", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert "device-side assert" in trials.loc["stuck_methods:LosesTheGpu", "error"]
    assert set(trials.drop("stuck_methods:LosesTheGpu")["status"]) == {"ok"}
    tries = (tmp_path / "stuck_methods.py.tries").read_text().split()
    assert len(tries) == len(set(tries)) == 2, "once more, by another process"


@dataclass
class FakeProbe:
    """A GPU of 10 GiB on which everything takes 1 GiB."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    name: str = f"no GPU of {platform.machine()}"
    total_bytes: int = 10 << 30

    def begin(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return 1 << 30

    def lost(self) -> bool:
        return False


@dataclass
class LosingProbe(FakeProbe):
    """Each process loses its GPU at the second canary."""

    begun: int = 0

    def begin(self) -> None:
        self.begun += 1
        assert self.begun <= 2, "it is lost"

    def peak_bytes(self) -> int:
        assert not self.lost()
        return 1 << 30

    def lost(self) -> bool:
        return self.begun == 2


@pytest.fixture
def planned(with_a_gpu, tmp_path):
    """The plan of a small sweep and its data sets; the probes of this file can travel to a process of Ray."""
    this = __import__(__name__, fromlist=["FakeProbe"])
    ray.cloudpickle.register_pickle_by_value(this)
    sweep = config.load(sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]"))
    datasets = runner.load_datasets(sweep)
    yield runner.make_plan(sweep, datasets), list(datasets.values())
    ray.cloudpickle.unregister_pickle_by_value(this)


def test_canaries_run_on_a_gpu_of_the_cluster_once(planned, tmp_path):
    share = measured_share(*planned, tmp_path / "canaries.json", make_probe=FakeProbe)
    assert 0.1 < share.gpus < 0.25
    kept = json.loads((tmp_path / "canaries.json").read_text())
    assert {each["stopped"] for each in kept.values()} == {None}
    assert len(kept) >= 5
    began = time.monotonic()
    again = measured_share(*planned, tmp_path / "canaries.json", make_probe=FakeProbe)
    assert again == share
    assert time.monotonic() - began < 10


def test_a_canary_that_loses_the_gpu_takes_no_other_with_it(planned, tmp_path):
    share = measured_share(*planned, tmp_path / "canaries.json", make_probe=LosingProbe)
    assert 0.1 < share.gpus < 0.25
    kept = json.loads((tmp_path / "canaries.json").read_text())
    assert {each["peak_bytes"] for each in kept.values()} == {1 << 30}
    measured_share(*planned, tmp_path / "canaries.json", make_probe=FakeProbe)
    whole = json.loads((tmp_path / "canaries.json").read_text())
    assert len(kept) == math.ceil(len(whole) / 2), "every other one lost the GPU, and is measured again"
    assert kept.items() <= whole.items()


class HangingProbe(FakeProbe):
    def begin(self) -> None:
        time.sleep(1000)


class NoDriver(FakeProbe):
    def begin(self) -> None:
        raise RuntimeError("no CUDA driver here")


@pytest.mark.parametrize(("probe", "reason"), [(HangingProbe, "timed out"), (NoDriver, "RuntimeError: no CUDA driver here")])
def test_canaries_that_come_to_no_end_stop_the_sweep_with_a_way_out(planned, tmp_path, probe, reason):
    with pytest.raises(RayStopped, match=f"measuring on a GPU failed: .*{reason}.*A number as runtime.gpus_per_trial"):
        measured_share(*planned, tmp_path / "canaries.json", seconds=8, make_probe=probe)
