"""A cluster that its autoscaler lets grow: how far, and how many workers are asked for then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from cu_ray.errors import UserError
from cu_ray.sweep import growth
from cu_ray.sweep.room import Room, require, shape

AWS = Path(__file__).parents[2] / "clusters" / "aws.yaml"


def config(**sections):
    kinds = {
        "head": {"resources": {"CPU": 2}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "cpu": {"resources": {"CPU": 16}},
    }
    return {"max_workers": 5, "head_node_type": "head", "available_node_types": kinds, **sections}


def test_a_cluster_grows_to_all_workers_of_its_configuration_and_the_head():
    assert growth.most_of(config()) == {"CPU": 2 + 3 * 8 + 5 * 16, "GPU": 3}
    assert growth.most_of(config(max_workers=1)) == {"CPU": 2 + 8 + 16, "GPU": 1}


def test_a_configuration_that_does_not_say_what_nodes_have_lets_nothing_grow():
    assert growth.most_of(yaml.safe_load(AWS.read_text())) is None  # the launcher fills in what instances have
    assert growth.most_of({"provider": {"type": "local"}, "max_workers": 2}) is None


def resources(monkeypatch, **there):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", list)


@pytest.mark.parametrize(
    ("there", "grown", "wanted", "limit", "room"),
    [
        ({}, None, 9, None, 0),
        ({}, {"CPU": 4.0}, 9, None, 4),
        ({}, {"CPU": 4.0}, 2, None, 2),  # no node for whom there is no job
        ({"CPU": 3.0}, {"CPU": 4.0}, 1, None, 1),
        ({}, {"CPU": 4.0}, 9, 3, 3),
        ({"CPU": 6.0}, {"CPU": 4.0}, 9, None, 6),  # another one's nodes joined
        ({}, {"CPU": growth.UNKNOWN, "GPU": growth.UNKNOWN}, 9, None, 9),
    ],
)
def test_room_is_what_fits_when_the_cluster_is_grown_and_no_more_than_is_wanted(monkeypatch, there, grown, wanted, limit, room):
    resources(monkeypatch, **there)
    assert Room(shape(None), limit, grown, lambda: wanted)() == room


def test_room_on_gpus_counts_whole_ones(monkeypatch):
    resources(monkeypatch, CPU=2.0)
    assert Room(shape(0.5), None, {"CPU": 34.0, "GPU": 4.0}, lambda: 100)() == 8
    assert Room(shape(0.6), None, {"CPU": 34.0, "GPU": 5.0}, lambda: 100)() == 5
    assert Room(shape(1.0), None, {"CPU": growth.UNKNOWN, "GPU": growth.UNKNOWN}, lambda: 100)() == 100


def test_a_head_without_cpus_is_enough_where_it_grows_and_refused_where_it_does_not(monkeypatch):
    resources(monkeypatch)
    require(Room(shape(None), None, {"CPU": 4.0}), shape(None))
    with pytest.raises(UserError, match="not one worker fits"):
        require(Room(shape(1.0), None, {"CPU": 4.0, "GPU": 0.0}), shape(1.0))
    with pytest.raises(UserError, match="not one worker fits"):
        require(Room(shape(None), None), shape(None))


def test_the_monitor_beside_a_gcs_tells_how_far_it_grows(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    arguments = ["--gcs-address=10.0.0.1:6379", f"--autoscaling-config={tmp_path}/config.yaml"]
    monitor = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", *arguments], stdin=-1, stdout=-1)
    try:
        monitor.stdout.readline()
        assert growth._config_of("10.0.0.1:6379") == config()
        assert growth._config_of("10.0.0.1:6380") is None
        (tmp_path / "config.yaml").unlink()
        assert growth._config_of("10.0.0.1:6379") is None
    finally:
        monitor.communicate(b"\n")


def test_kuberay_s_own_autoscaler_is_known_by_how_the_pod_was_started(monkeypatch):
    monkeypatch.setenv(growth.KUBERAY, "ulimit -n 65536; ray start --head --no-monitor --num-cpus=0")
    assert growth.growth() == {"CPU": growth.UNKNOWN, "GPU": growth.UNKNOWN}


def test_nodes_that_are_no_more_are_told_of(monkeypatch):
    resources(monkeypatch, CPU=2)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}])
    gone = []
    assert Room({"cpu": 1.0}, None, gone=gone.append)() == 2
    assert gone == ["b"]
