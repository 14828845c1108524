"""The files of this repository for clusters: taken by Ray's own checks, pinned, with a secret and a folder that all nodes see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY_VERSION = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
LAUNCHED = {"cluster.yaml": ROOT / "cluster.yaml", "aws.yaml": ROOT / "clusters" / "aws.yaml"}


def launched(name):
    return yaml.safe_load(LAUNCHED[name].read_text())


@pytest.fixture
def kubernetes():
    """The manifest's objects, by kind."""
    objects = yaml.safe_load_all((ROOT / "clusters" / "kubernetes.yaml").read_text())
    return {each["kind"]: each for each in objects}


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_the_file(name, monkeypatch):
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(launched(name))
    validate_config(config)
    with pytest.raises(Exception, match="not_a_setting"):
        validate_config({**config, "not_a_setting": 1})


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launched_cluster_has_the_pinned_versions_and_a_secret(name):
    config = launched(name)
    assert any("pip install -q -c /tmp/cu-ray-source/constraints.txt" in command for command in config["setup_commands"])
    assert config["file_mounts"]["/tmp/cu-ray-source"] == "."
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for part in ("head", "worker"):
        starts = [command for command in config[f"{part}_start_ray_commands"] if "ray start" in command]
        assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
        assert len(starts) == 1
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in config["setup_commands"])


@pytest.mark.parametrize("path", [*LAUNCHED.values(), ROOT / "clusters" / "kubernetes.yaml"], ids=lambda path: path.name)
def test_at_most_five_places_are_to_be_edited(path):
    places = path.read_text().count("# EDIT")
    assert 1 <= places <= 5


@pytest.mark.parametrize("path", [*LAUNCHED.values(), ROOT / "clusters" / "kubernetes.yaml"], ids=lambda path: path.name)
def test_originals_lie_where_all_nodes_see_them_without_a_word_in_the_sweep_file(path):
    assert re.search(r"CU_RAY_STORAGE(=|, value: )/shared/cu-ray\b", path.read_text())


def test_the_cloud_grows_from_nothing_with_spot_workers_and_sees_one_folder():
    config = launched("aws.yaml")
    worker = config["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert config["max_workers"] > 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]
    assert "-v /shared:/shared" in config["docker"]["run_options"]
    assert any(
        "mount -t nfs4" in command and command.rstrip(")").count("/shared") for command in config["initialization_commands"]
    )


def test_images_have_the_ray_of_the_constraints_file(kubernetes):
    image = f"rayproject/ray:{RAY_VERSION}-py311-gpu"
    assert launched("aws.yaml")["docker"]["image"] == image
    recipe = (ROOT / "clusters" / "Dockerfile").read_text()
    assert f"FROM {image}\n" in recipe
    assert "-c /tmp/cu-ray-source/constraints.txt /tmp/cu-ray-source" in recipe
    assert kubernetes["RayCluster"]["spec"]["rayVersion"] == RAY_VERSION


def test_on_kubernetes_all_pods_have_the_image_the_secret_and_the_volume(kubernetes):
    cluster, claim = kubernetes["RayCluster"]["spec"], kubernetes["PersistentVolumeClaim"]
    assert kubernetes["RayCluster"]["apiVersion"] == "ray.io/v1"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for has_env in (*containers, cluster["autoscalerOptions"]):
        variables = {each["name"]: each for each in has_env["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "cu-ray-token", "key": "token"}
    for group in groups:
        spec = group["template"]["spec"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in spec["volumes"]
        assert all({"name": "shared", "mountPath": "/shared"} in each["volumeMounts"] for each in spec["containers"])
        assert all(mount["name"] in {each["name"] for each in spec["volumes"]} for mount in spec["containers"][0]["volumeMounts"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_on_kubernetes_workers_come_and_go_and_have_a_gpu_each(kubernetes):
    cluster = kubernetes["RayCluster"]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    (workers,) = cluster["workerGroupSpecs"]
    assert 0 == workers["minReplicas"] == workers["replicas"] < workers["maxReplicas"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
