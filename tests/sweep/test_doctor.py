"""The doctor finds what is wrong with a node, says which, and what mends it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from cu_ray.sweep import doctor
from cu_ray.sweep.doctor import PACKAGES, Node, examine, faults_of, look


def sound(host, **differs):
    versions = {"python": "3.11.7"} | dict.fromkeys(PACKAGES, "1.0") | differs.pop("versions", {})
    return Node(host, "10.0.0.1", versions=versions, free={"/tmp": 50 << 30, "/dev/shm": 8 << 30}, **differs)


def test_nodes_that_are_alike_have_no_fault():
    nodes = [sound("a"), sound("b"), sound("c", clock_off=1.0)]
    assert faults_of(nodes, 3) == []
    assert [node.faults for node in nodes] == [[], [], []]


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"versions": {"ray": "2.40.0"}}, "ray 2.40.0, the others 1.0: install the same everywhere"),
        ({"versions": {"python": "3.12.1"}}, "python 3.12.1, the others 3.11.7"),
        ({"clock_off": 90.0}, "its clock is 90 s off"),
    ],
)
def test_the_node_that_differs_is_named(differs, said):
    nodes = [sound("a"), sound("b", **differs), sound("c")]
    assert faults_of(nodes, None) == []
    assert [len(node.faults) for node in nodes] == [0, 1, 0]
    assert said in nodes[1].faults[0]


def test_little_room_and_nodes_that_did_not_join_are_faults():
    full = sound("a")
    full.free["/dev/shm"] = 64 << 20
    (missing,) = faults_of([full], 3)
    assert missing.startswith("1 of 3 nodes have joined: ")
    assert full.faults == ["0.1 GiB free in /dev/shm, 1 are needed: make room"]


def test_a_node_that_does_not_see_the_shared_folder_says_so(tmp_path):
    (fault,) = look(str(tmp_path), "one", 0)["faults"]
    assert f"does not see what another node wrote to {tmp_path}: mount the same folder" in fault


def test_gpus_that_ray_counts_and_torch_cannot_use_are_a_fault(tmp_path, monkeypatch):
    (tmp_path / "one").touch()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (fault,) = look(str(tmp_path), "one", 2)["faults"]
    assert fault.startswith("Ray counts 2 GPUs, but torch cannot use them (RuntimeError: torch sees none)")


@pytest.mark.gpu
def test_a_gpu_is_named_with_its_memory(tmp_path):
    (tmp_path / "one").touch()
    found = look(str(tmp_path), "one", 1)
    assert found["faults"] == []
    assert all("GiB" in gpu for gpu in found["gpus"])


def test_every_node_of_a_real_ray_answers_and_nothing_is_left_in_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MOST_SECONDS", 20.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=2)
        cluster.add_node(num_cpus=1, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        since = time.monotonic()
        nodes, faults = examine(str(tmp_path / "store"), 4)
        assert time.monotonic() - since < 20
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(node.num_cpus for node in nodes) == [1, 1, 2]
    assert faults[0].startswith("3 of 4 nodes have joined")
    told = [fault for node in nodes for fault in node.faults if "make room" not in fault]
    if not torch.cuda.is_available():
        assert [fault[:43] for fault in told] == ["Ray counts 1 GPUs, but torch cannot use them"[:43]]
    assert os.listdir(Path(tmp_path / "store")) == []
