"""Which number format is computed in, and how images are counted."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cu_ray.errors import UserError
from cu_ray.learning import precision as precision_of
from cu_ray.learning.meter import Meter
from cu_ray.learning.precision import autocast, require, resolve
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.stages.pipeline import Workbench
from cu_ray.types import Cost
from tests.protocol import fakes
from tests.protocol.tiny import RECIPE, MemoryStore, tiny_dataset, trial_spec

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wish", "device_kind", "flags", "resolved"),
    [
        ("auto", "cuda", ("sm_80",), "bf16"),
        ("auto", "cuda", (), "fp32"),
        ("auto", "cpu", ("avx512_bf16",), "bf16"),
        ("auto", "cpu", ("amx_bf16", "avx2"), "bf16"),
        ("auto", "cpu", ("avx512f", "avx2"), "fp32"),
        ("auto", "cpu", (), "fp32"),
        ("fp32", "cuda", ("amx_bf16",), "fp32"),
        ("fp16", "cuda", (), "fp16"),
        ("bf16", "cpu", (), "bf16"),
        ("published", "cuda", (), "fp16"),
        ("published", "cpu", (), "fp32"),
        ("published", "cpu", ("amx_bf16",), "bf16"),
    ],
)
def test_precision_is_resolved_from_device_kind_and_flags(wish, device_kind, flags, resolved):
    assert resolve(wish, device_kind, frozenset(flags)) == resolved


A100, A10G, L4, H100, RTX_5090 = 0x20B0, 0x2237, 0x27B8, 0x2330, 0x2B85
P100, V100, T4, GTX_1660 = 0x15F8, 0x1DB4, 0x1EB8, 0x2184


@pytest.mark.parametrize(
    ("gpus", "resolved"),
    [
        *(([gpu], "bf16") for gpu in (A100, A10G, L4, H100, RTX_5090)),
        *(([gpu], "fp32") for gpu in (P100, V100, T4, GTX_1660)),
        ([A100, T4], "fp32"),
        ([], "bf16"),  # nothing is known of them
    ],
)
def test_auto_is_bf16_on_gpus_from_compute_capability_8(gpus, resolved, tmp_path, monkeypatch):
    monkeypatch.setattr(precision_of, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(precision_of, "PCI_DEVICES", tmp_path / "devices")
    (tmp_path / "gpus" / "0000:ff:00.0").mkdir(parents=True)  # of which there is no number
    for place, number in enumerate(gpus):
        address = f"0000:{place:02x}:00.0"
        (tmp_path / "gpus" / address).mkdir()
        (tmp_path / "devices" / address).mkdir(parents=True)
        (tmp_path / "devices" / address / "device").write_text(f"0x{number:04x}\n")
    assert resolve("auto", "cuda") == resolved
    assert resolve("published", "cuda") == "fp16"


@pytest.mark.parametrize(("there", "resolved"), [(("nvidia0",), "bf16"), (("nvidia0", "nvidia1"), "fp32")])
def test_a_gpu_that_is_not_given_to_a_container_does_not_count(there, resolved, tmp_path, monkeypatch):
    for name, folder in (("GPUS", "gpus"), ("PCI_DEVICES", "devices"), ("DEVICES", "dev")):
        monkeypatch.setattr(precision_of, name, tmp_path / folder)
    (tmp_path / "dev").mkdir()
    for name in there:
        (tmp_path / "dev" / name).touch()
    for place, number in enumerate((A100, T4)):
        files = (("gpus", "information", f"Device Minor: \t {place}\n"), ("devices", "device", f"0x{number:04x}\n"))
        for folder, file, text in files:
            (tmp_path / folder / f"0000:{place:02x}:00.0").mkdir(parents=True)
            (tmp_path / folder / f"0000:{place:02x}:00.0" / file).write_text(text)
    assert resolve("auto", "cuda") == resolved


@pytest.mark.parametrize(("capability", "refuses"), [(7, True), (8, False), (9, False)])
def test_a_gpu_that_would_only_emulate_bf16_is_refused(capability, refuses, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    require("fp32", torch.device("cuda"))
    require("fp16", torch.device("cuda"))
    refused = pytest.raises(UserError, match="precision bf16 was chosen, which this worker's cuda lacks")
    with refused if refuses else contextlib.nullcontext():
        require("bf16", torch.device("cuda"))


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_passes_run_in_the_precision(precision, kind):
    with autocast(precision, CPU):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == kind


def test_a_precision_that_the_worker_lacks_is_refused():
    require("fp32", CPU)
    require("bf16", CPU)
    with pytest.raises(UserError, match="fp16"):
        require("fp16", CPU)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_evaluation_runs_in_the_precision_of_training(precision, kind):
    kinds = []
    dataset = tiny_dataset()
    spec = trial_spec(dataset, NoUnlearning(), recipe=replace(RECIPE, precision=precision))
    bench = Workbench(dataset, MemoryStore())
    model = bench.unlearned(spec).model
    model.register_forward_hook(lambda _, args, output: kinds.append(output.dtype))
    bench.scores(spec, model)
    assert set(kinds) == {kind}


def watched(meter):
    return meter.watch(fakes.small_net(0))


def images(count):
    return fakes.some_batches(0, [count])[0].images


@pytest.mark.parametrize(
    ("context", "backward", "expected"),
    [
        (contextlib.nullcontext, True, Cost(5, 5)),
        (contextlib.nullcontext, False, Cost(5, 0)),
        (torch.no_grad, False, Cost(5, 0)),
        (torch.inference_mode, False, Cost(5, 0)),
    ],
)
def test_a_meter_counts_the_images_of_each_pass(context, backward, expected):
    meter = Meter()
    model = watched(meter)
    with context():
        output = model(images(5))
    if backward:
        output.sum().backward()
    assert meter.cost == expected


def test_a_meter_counts_gradients_that_are_asked_for_by_name():
    meter = Meter()
    model = watched(meter)
    torch.autograd.grad(model(images(3)).sum(), list(model.parameters()))
    assert meter.cost == Cost(3, 3)


def test_a_meter_counts_copies_and_all_models_that_it_watches_together():
    meter = Meter()
    first, second = watched(meter), watched(meter)
    for model in (first, second, copy.deepcopy(first)):
        model(images(2)).sum().backward()
    assert meter.cost == Cost(6, 6)


def test_a_meter_counts_models_that_are_frozen_in_part():
    meter = Meter()
    model = watched(meter)
    model[0].requires_grad_(False)
    model(images(4)).sum().backward()
    model.requires_grad_(False)(images(4))
    assert meter.cost == Cost(8, 4)


def test_costs_add():
    assert Cost(5, 2) + Cost(1, 1) == Cost(6, 3)
