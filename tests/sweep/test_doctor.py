"""The doctor finds what is wrong with a node, says which, and what mends it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

import cu_ray
from cu_ray import config
from cu_ray.errors import UserError
from cu_ray.sweep import doctor
from cu_ray.sweep.cluster import _require_own_code, connected
from cu_ray.sweep.doctor import CODE, PACKAGES, Node, code_of, compare, examine, look, require_alike, versions


def sound(host, **differs):
    found = {"python": "3.11.7"} | dict.fromkeys(PACKAGES, "1.0") | {CODE: versions()[CODE]} | differs.pop("versions", {})
    return Node(host, "10.0.0.1", versions=found, free={"/tmp": 50 << 30, "/dev/shm": 8 << 30}, **differs)


def faults_of(*nodes):
    """What the doctor says of nodes that answered so."""
    compare(nodes)
    for node in nodes:
        doctor._look_at_room_and_clock(node)
    return [node.faults for node in nodes]


def test_nodes_that_are_alike_have_no_fault():
    assert faults_of(sound("a"), sound("b"), sound("c", clock_off=1.0)) == [[], [], []]


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"versions": {"ray": "2.40.0"}}, "has ray 2.40.0, others 1.0: install the same everywhere"),
        ({"versions": {"python": "3.12.1"}}, "has python 3.12.1, others 3.11.7: install the same everywhere"),
        ({"clock_off": 90.0}, "has a clock that is 90 s off: have it set by NTP"),
    ],
)
def test_the_node_that_differs_is_named(differs, said):
    assert faults_of(sound("a"), sound("b", **differs), sound("c")) == [[], [said], []]


@pytest.mark.parametrize("there", [{CODE: "0123456789ab"}, {}], ids=["other", "before it was told"])
def test_nodes_that_run_other_code_of_cu_ray_than_the_one_who_asks_are_named_also_where_all_of_them_do(there):
    nodes = [sound("a"), sound("b")]
    for node in nodes:
        del node.versions[CODE]
        node.versions |= there
    code = there.get(CODE, "unknown")
    said = f"runs other code of cu-ray ({code}) than this process ({versions()[CODE]}): install the same everywhere"
    assert faults_of(*nodes) == [[said], [said]]


def test_code_is_the_same_wherever_it_is_installed_and_another_where_a_file_is(tmp_path):
    package = Path(cu_ray.__file__).parent
    copies = [tmp_path / name / "cu_ray" for name in ("wheel", "changed", "more", "less")]
    for copy in copies:
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "_data", "_page"))
    (copies[0] / ".#store.py").symlink_to("nowhere")  # as an editor leaves
    (copies[1] / "sweep" / "doctor.py").write_text("")
    (copies[2] / "methods" / "mine.py").touch()
    (copies[3] / "methods" / "ssd.py").unlink()
    wheel, *others = map(code_of, copies)
    assert wheel == code_of(package) == versions()[CODE]
    assert len({wheel, *others}) == 4


def test_other_code_in_the_working_directory_which_workers_would_run_is_refused_before_a_ray_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(cu_ray.__file__).parent, tmp_path / "cu_ray", ignore=shutil.ignore_patterns("__pycache__", "_data"))
    _require_own_code()
    changed = tmp_path / "cu_ray" / "stages" / "train.py"
    changed.write_text(f"{changed.read_text()}\n")
    own = Path(cu_ray.__file__).parent / "stages" / "train.py"
    facts = {"own_files": {}, "log": tmp_path / "log", "last_words": pytest.fail}
    with (
        pytest.raises(UserError, match=f"^{changed} differs from {own}, which this command runs"),
        connected(config.RuntimeSection(address="local", workers=1), Console(quiet=True), **facts),
    ):
        pytest.fail("it was started")
    assert not ray.is_initialized()


def test_little_room_is_a_fault():
    full = sound("a")
    full.free["/dev/shm"] = 64 << 20
    assert faults_of(full) == [["has 0.1 GiB free in /dev/shm, 1 are needed: make room"]]


def test_a_data_set_that_lies_otherwise_on_one_node_is_a_fault_and_one_that_is_missing_is_none():
    name = "cifar10-0123456789abcdef"
    nodes = [
        sound("a", data={name: "11111111"}),
        sound("b", data={name: "22222222"}),
        sound("c"),
        sound("d", data={name: "11111111"}),
    ]
    doctor._compare_data(nodes)
    assert [len(node.faults) for node in nodes] == [0, 1, 0, 0]
    assert nodes[1].faults[0].startswith(f"has {name} with the checksum 22222222, others with 11111111: one is damaged")
    assert nodes[1].faults[0].endswith(f"deleted: ~/.cache/cu-ray/datasets/{name}")


def test_what_lies_in_the_cache_is_told_with_a_checksum_that_sees_a_flipped_bit(tmp_path):
    (tmp_path / "one").touch()
    assert look(str(tmp_path), "one", 0, with_data=True)["data"] == {}
    folder = Path("~/.cache/cu-ray/datasets").expanduser() / "own-0"
    folder.mkdir(parents=True)
    (folder.parent / ".own-0.lock").touch()
    (folder / "train_pixels.npy").write_bytes(bytes(100))
    first = look(str(tmp_path), "one", 0, with_data=True)["data"]
    assert list(first) == ["own-0"]
    assert look(str(tmp_path), "one", 0, with_data=True)["data"] == first
    (folder / "train_pixels.npy").write_bytes(bytes(99) + b"\1")
    assert look(str(tmp_path), "one", 0, with_data=True)["data"] != first
    assert "data" not in look(str(tmp_path), "one", 0)


def test_nodes_that_differ_do_no_sweep_together(monkeypatch):
    nodes = [sound("a"), sound("b", versions={"torch": "2.0"}), sound("c"), sound("d", faults=[doctor.NO_ANSWER])]
    monkeypatch.setattr(doctor, "_asked", lambda storage, thorough, seconds: nodes)
    with pytest.raises(UserError, match=r"cannot do one sweep.*\n  b \(10.0.0.1\) has torch 2.0, others 1.0"):
        require_alike("store")
    nodes.pop(1)
    require_alike("store")


def test_a_storage_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written to: File exists\. Give another place as runtime\.storage"):
        examine(str(tmp_path / "file"))


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
    assert [fault[:24] for fault in faults] == ["3 of 4 nodes have joined"]
    told = [fault for node in nodes for fault in node.faults if "make room" not in fault]
    if not torch.cuda.is_available():
        assert [fault[:43] for fault in told] == ["Ray counts 1 GPUs, but torch cannot use them"[:43]]
    assert os.listdir(Path(tmp_path / "store")) == []


@pytest.mark.parametrize(
    ("named", "which"),
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], ", not 10.0.0.2, 10.0.0.3"),
        (["head", "one", "two"], ""),  # names where Ray has addresses: nothing can be told
        ([], ""),
    ],
)
def test_the_machines_that_have_not_joined_are_named_where_their_addresses_are_known(named, which, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_asked", lambda storage, thorough, seconds: [doctor.Node("h", "10.0.0.1", 0.0)])
    monkeypatch.setattr(doctor, "_look_at_room_and_clock", lambda node: None)
    _, (fault,) = examine(str(tmp_path), 3, named)
    assert fault.startswith(f"1 of 3 nodes have joined{which}: ")
    assert examine(str(tmp_path), 1, named)[1] == []


@pytest.mark.parametrize(
    "error",
    [ray.exceptions.TaskUnschedulableError("no such node"), ray.exceptions.NodeDiedError("it died")],
    ids=["never", "at it"],
)
def test_a_node_that_dies_while_it_is_asked_does_not_keep_a_sweep_from_the_others(monkeypatch, error):
    def get(reference, timeout):
        raise error

    monkeypatch.setattr(ray, "get", get)
    facts = {"NodeManagerHostname": "b", "NodeManagerAddress": "10.0.0.2", "Resources": {}}
    gone = doctor._answer(None, facts, 0.0)
    assert gone.faults == ["died while it was asked"]
    monkeypatch.setattr(doctor, "_asked", lambda storage, **how: [sound("a"), gone])
    doctor.require_alike("store")
