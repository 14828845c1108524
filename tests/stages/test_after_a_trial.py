"""After a trial: what no tensor needs of a GPU's memory is given back, and a GPU that is lost to the process is not touched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.stages import pipeline, process
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.process import device_is_lost
from cu_ray.stages.warm import Warm
from tests.faults.bad_methods import Raises
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

DATASET = tiny_dataset()


def run(bench, method):
    return bench.run_trial(trial_spec(DATASET, method))


@pytest.fixture
def bench():
    return Workbench(DATASET, MemoryStore())


# ---------------------------------------------------------------------------------------------------------- a GPU that is lost


def test_where_the_gpu_is_lost_nothing_on_it_is_looked_at_and_the_first_error_is_told(bench, monkeypatch):
    monkeypatch.setattr(pipeline, "device_is_lost", lambda device: True)
    monkeypatch.setattr(bench._warm, "require_untouched", lambda: pytest.fail("it looks"))
    monkeypatch.setattr(bench._warm, "give_back_spare", lambda: pytest.fail("it frees"))
    record = run(bench, Raises())
    assert record.status == "failed"
    assert record.facts["device_lost"]
    assert "no luck" in record.error


def test_a_device_is_lost_where_it_can_no_more_be_waited_for(monkeypatch):
    def synchronize(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    assert not device_is_lost(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not device_is_lost(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert device_is_lost(torch.device("cuda"))


@pytest.mark.parametrize("lost", [True, False])
def test_generators_of_a_lost_gpu_hide_no_error(monkeypatch, lost):
    def refuse(states):
        raise RuntimeError("CUDA error: it cannot be set")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", refuse)
    monkeypatch.setattr(process, "device_is_lost", lambda device: lost)
    with pytest.raises(RuntimeError, match="^the first$" if lost else "it cannot be set"), process.state_kept():
        raise RuntimeError("the first")


# --------------------------------------------------------------------------------------------------------- memory given back


@pytest.mark.parametrize(("reserved", "given_back"), [(1000 + 63, False), (1000 + 70, True)])
def test_what_no_tensor_needs_of_a_gpus_memory_is_given_back_where_it_is_much(monkeypatch, reserved, given_back):
    calls = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=128 * 65))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(True))
    Warm(MemoryStore(), torch.device("cuda")).give_back_spare()
    Warm(MemoryStore(), torch.device("cpu")).give_back_spare()
    assert calls == [True] * given_back


def test_every_trial_gives_back_what_it_does_not_need(bench, monkeypatch):
    calls = []
    monkeypatch.setattr(bench._warm, "give_back_spare", lambda: calls.append(True))
    run(bench, Raises())
    assert run(bench, NoUnlearning()).ok
    assert len(calls) == 2
