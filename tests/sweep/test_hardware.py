"""What trials run on is decided by the nodes of a Ray that is joined, whatever machine the driver is on."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from cu_ray import config
from cu_ray.errors import UserError
from cu_ray.learning.precision import resolve
from cu_ray.sweep import hardware, runner
from cu_ray.sweep.growth import UNKNOWN
from cu_ray.sweep.hardware import device_of
from cu_ray.sweep.ledger import Ledger
from cu_ray.sweep.preview import preview
from cu_ray.types import Record
from tests import sweeps

HEAD = {"node:10.0.0.1": 1.0}  # without CPUs for trials, as the driver's node often is


@pytest.mark.parametrize(
    ("nodes", "grown", "device"),
    [
        ([{"CPU": 4}], None, "cpu"),
        ([HEAD, {"CPU": 4}, {"CPU": 8, "GPU": 1}], None, "cuda"),
        ([HEAD], {"CPU": 32, "GPU": 8}, "cuda"),
        ([{"CPU": 4}], {"CPU": 32, "GPU": 8}, "cuda"),
        ([HEAD], {"CPU": 32}, "cpu"),
        ([HEAD, {"CPU": 8, "GPU": 1}], {"CPU": UNKNOWN, "GPU": UNKNOWN}, "cuda"),
        ([HEAD, {"CPU": 8}], {"CPU": UNKNOWN, "GPU": UNKNOWN}, "cpu"),
    ],
)
def test_a_gpu_on_any_node_or_on_one_to_come_decides(nodes, grown, device):
    assert device_of(nodes, grown) == device


def test_where_nothing_says_what_the_nodes_to_come_have_the_user_has_to():
    with pytest.raises(UserError, match=r"runtime\.device: no node for trials has joined yet.* give cuda or cpu"):
        device_of([HEAD], {"CPU": UNKNOWN, "GPU": UNKNOWN})


@contextmanager
def two_nodes(monkeypatch, **second):
    """A driver on a node without a GPU, and another node."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        nodes.add_node(num_cpus=1, **second)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def of_auto(folder, **settings):
    """A sweep that leaves device and precision to the hardware."""
    file = sweeps.small(folder, seeds="[0]", trials=1, storage=folder / "store")
    text = file.read_text().replace(", precision: fp32", "")
    file.write_text(text.replace("runtime: {", "runtime: {gpus_per_trial: 1, "))
    return config.with_runtime(config.load(file), output=str(folder / "results"), **settings)


def test_a_gpu_that_only_the_second_node_has_makes_it_a_sweep_on_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("cu_ray.sweep.hardware.local_device_kind", lambda: "cpu")
    with two_nodes(monkeypatch, num_gpus=1) as nodes:
        sweep = of_auto(tmp_path, address=nodes.address)
        with open(tmp_path / "said", "w") as said:
            outcome = runner.run(sweep, Console(file=said, width=140))
    assert "Trials run on cuda in bf16: so say the nodes of this Ray." in (tmp_path / "said").read_text()
    facts = json.loads(sweep.folder.read("status.json"))
    assert (facts["device"], facts["auto_precision"]) == ("cuda", "bf16")
    assert outcome.num_failed  # the GPU is a pretended one
    originals = pd.read_parquet(tmp_path / "results/small/tables/originals.parquet")
    assert set(originals["precision"]) == {"bf16"}


def test_a_gpu_of_the_driver_s_machine_that_no_node_has_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("cu_ray.sweep.hardware.local_device_kind", lambda: "cuda")
    monkeypatch.setattr(hardware, "local_flags", _without_bf16)
    with two_nodes(monkeypatch) as nodes:
        sweep = of_auto(tmp_path, address=nodes.address)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        settled = hardware.of_nodes(sweep).settle(sweep)
    assert settled.runtime.device == "cpu"
    assert {train.precision for train in settled.trains} == {"fp32"}


def _without_bf16(device):
    return frozenset({"avx2"})


@pytest.mark.parametrize(
    ("device", "first", "second", "precision"),
    [
        ("cpu", {"avx512_bf16", "avx2"}, {"avx512_bf16"}, "bf16"),
        ("cpu", {"avx512_bf16", "avx2"}, {"avx2"}, "fp32"),
        ("cuda", {"sm_80"}, {"sm_80"}, "bf16"),
        ("cuda", {"sm_80"}, set(), "fp32"),
    ],
)
def test_bf16_is_taken_where_the_devices_of_all_nodes_have_it(monkeypatch, device, first, second, precision):
    flags = {("first", device): frozenset(first), ("second", device): frozenset(second)}
    monkeypatch.setattr(hardware, "_flags_of", lambda nodes, device: ([flags[node, device] for node in nodes], []))
    assert resolve("auto", device, hardware.common(["first", "second"], device)) == precision


def test_a_node_that_is_up_and_does_not_answer_decides_nothing_by_its_silence(tmp_path, monkeypatch):
    def sleeps(device):
        time.sleep(60)

    with two_nodes(monkeypatch) as nodes:
        sweep = of_auto(tmp_path, address=nodes.address)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        assert hardware.of_nodes(sweep).device == "cpu"
        monkeypatch.setattr(hardware, "local_flags", sleeps)
        monkeypatch.setattr(hardware, "ANSWERS_IN", 2.0)
        said = r"train\.precision: what it comes to all nodes decide, and (\S+), \1 did not answer within 2 s\. Give a precision"
        with pytest.raises(UserError, match=said):
            hardware.of_nodes(sweep)


@pytest.mark.parametrize(
    ("precision", "before", "told"),
    [
        (
            "auto",
            "bf16",
            "the precision came to bf16 and now to fp32: no trial of then counts. `train: {precision: bf16}` goes on",
        ),
        ("auto", "fp32", None),
        ("auto", None, None),
        ("fp32", "bf16", None),
    ],
)
def test_a_precision_that_auto_does_not_come_to_any_more_is_told_before_all_runs_anew(tmp_path, precision, before, told):
    sweep = of_auto(tmp_path)
    sweep = replace(sweep, trains=tuple(replace(train, precision=precision) for train in sweep.trains))
    if before is not None:
        done_on(sweep, "cpu", before)
    with open(tmp_path / "said", "w") as said:
        runner._tell_what_is_otherwise(sweep, hardware.Hardware("cpu", frozenset()), Console(file=said, width=140))
    text = (tmp_path / "said").read_text()
    assert (f"Before, from head, {told}" in text) if told else not text


def test_originals_that_were_kept_elsewhere_are_told_of(tmp_path):
    sweep = of_auto(tmp_path)
    done_on(sweep, "cpu", "fp32")
    facts = json.loads(sweep.folder.read("status.json"))
    for storage, told in ((str((tmp_path / "store").resolve()), False), ("/shared/cu-ray", True)):
        sweep.folder.write("status.json", json.dumps(facts | {"storage": storage}).encode())
        with open(tmp_path / "said", "w") as said:
            runner._tell_what_is_otherwise(sweep, hardware.Hardware("cpu", frozenset()), Console(file=said, width=140))
        assert ("kept in /shared/cu-ray and now in" in (tmp_path / "said").read_text()) == told


def test_a_node_that_answers_with_an_error_is_no_silent_one(tmp_path, monkeypatch):
    """What it lacks `require_alike` says of it, before anything runs."""

    def lacks(device):
        raise ImportError("no cu_ray here")

    monkeypatch.setattr(hardware, "local_flags", lacks)
    with two_nodes(monkeypatch) as nodes:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        up = [node["NodeID"] for node in ray.nodes()]
        assert hardware._flags_of(up, "cpu") == ([], [])


def done_on(sweep, device, precision):
    """What a sweep leaves behind that ran on such nodes: its originals, and the status."""
    flags = frozenset({"avx512_bf16"} if precision == "bf16" else ())
    settled = hardware.Hardware(device, flags).settle(sweep)
    originals = list(runner.make_plan(settled, runner.load_datasets(settled)).originals())
    with Ledger(sweep.folder / "ledger") as book:
        for spec in originals:
            facts = {"started_at": 0.0, "finished_at": 1.0, "host": "head"}
            book.write(Record("original", spec.key, spec.describe(), "ok", scores={"acc_retain": 1.0}, facts=facts)).result()
    counts = dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), 0)
    facts = {"running": False, "process": 1, "host": "head", "storage": "", "device": device, "auto_precision": precision}
    sweep.folder.write("status.json", json.dumps(facts | counts).encode())
    return len(originals)


@pytest.mark.parametrize(
    ("device", "precision", "other"),
    [("cuda", "bf16", "fp32"), ("cuda", "fp32", "bf16"), ("cpu", "bf16", "fp32"), ("cpu", "fp32", "bf16")],
)
def test_a_plan_counts_what_was_done_where_the_sweep_last_ran(tmp_path, monkeypatch, device, precision, other):
    """On a laptop, of a sweep whose results came from a cluster, or lie in a bucket."""
    monkeypatch.setattr(hardware, "local_device_kind", lambda: "cpu")
    monkeypatch.setattr(hardware, "local_flags", lambda device: frozenset({"amx_bf16"} if other == "bf16" else ()))
    sweep = of_auto(tmp_path)
    assert preview(sweep).remarks("`cu-ray sweep`") == []
    number = done_on(sweep, device, precision)
    found = preview(sweep)
    assert (found.estimate.originals_done, found.device, found.precisions) == (number, device, [precision])
    assert found.remarks("`cu-ray sweep`") == [
        f"Counted for {device} in {precision}, as it last ran, from head; this machine would decide otherwise."
    ]
    said = preview(replace(sweep, runtime=replace(sweep.runtime, device="cpu")))
    assert said.device == "cpu", "a device that the file names is not decided by an earlier run"
    assert said.estimate.originals_done == (number if device == "cpu" else 0)


def test_a_plan_goes_by_this_machine_where_nothing_is_told_of_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "local_device_kind", lambda: "cpu")
    monkeypatch.setattr(hardware, "local_flags", _without_bf16)
    sweep = of_auto(tmp_path)
    done_on(sweep, "cuda", "bf16")
    facts = json.loads(sweep.folder.read("status.json"))
    sweep.folder.write("status.json", json.dumps(facts | {"auto_precision": None}).encode())
    found = preview(sweep)
    assert (found.estimate.originals_done, found.device, found.precisions, found.elsewhere) == (0, "cpu", ["fp32"], None)


def test_nodes_are_not_asked_what_no_precision_depends_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "common", lambda nodes, device: pytest.fail("asked"))
    with two_nodes(monkeypatch) as nodes:
        sweep = of_auto(tmp_path, address=nodes.address)
        said = replace(sweep, trains=tuple(replace(train, precision="bf16") for train in sweep.trains))
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        found = hardware.of_nodes(said)
    assert (found.device, found.auto_precision) == ("cpu", None)
    facts = {"device": "cuda", "auto_precision": None}
    assert hardware.as_before(sweep, facts) is None, "what auto came to is not told"
    before = hardware.as_before(said, facts)
    assert before is not None
    assert before.settle(said).runtime.device == "cuda"
