"""The files of this repository for clusters: taken by Ray's own checks, pinned, with a secret and a folder that all nodes see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    source = {"cluster.yaml": "~/cu-ray-source", "aws.yaml": "/tmp/cu-ray-source"}[name]  # of a user; of a container
    assert any(f"pip install -q -c {source}/constraints.txt {source}" in command for command in config["setup_commands"])
    assert config["file_mounts"][source] == "."
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


def test_the_container_s_shared_memory_is_given_as_docker_takes_it():
    """By Ray, from the memory of the machine, as long as the file says nothing of it; Docker takes a number with a unit."""
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    docker = launched("aws.yaml")["docker"]
    runner = object.__new__(DockerCommandRunner)
    runner.docker_config = docker
    runner.ssh_command_runner = SimpleNamespace(run=lambda command, with_output: b"MemAvailable:   16000000 kB\n")
    options = " ".join(runner._auto_configure_shm(docker["run_options"])).split()
    sizes = [option.partition("=")[2].strip("'") for option in options if re.match(r"--(shm-size|memory)", option)]
    assert len(sizes) == 1
    assert all(re.fullmatch(r"[\d.]+[bkmg]", size) for size in sizes)


def test_in_a_cloud_what_sweeps_have_done_lies_on_the_file_system_that_stays(tmp_path):
    (command,) = [each for each in launched("aws.yaml")["head_setup_commands"] if "/shared" in each]
    for home in ("head", "head", "next_head"):  # `ray up` again, and after `ray down`
        (tmp_path / home).mkdir(exist_ok=True)
        here = command.replace("/shared", f"{tmp_path}/shared")
        subprocess.run(["bash", "-c", here], env={**os.environ, "HOME": str(tmp_path / home)}, check=True)
    there = tmp_path / "head" / "cu-ray" / "small" / "files"  # as a sweep is sent
    there.mkdir(parents=True)
    assert list((tmp_path / "shared").rglob("files")) == [tmp_path / "shared/cu-ray-sweeps/small/files"]
    assert (tmp_path / "next_head" / "cu-ray" / "small" / "files").is_dir()


PIP = "#!/bin/bash\necho begin >> ~/log\nsleep 0.3\necho end >> ~/log\n"


def test_machines_with_one_home_folder_install_one_after_the_other(tmp_path):
    (command,) = [each for each in launched("cluster.yaml")["setup_commands"] if "pip install" in each]
    (tmp_path / "python3").write_text("#!/bin/bash\n")
    (tmp_path / "cu-ray-venv" / "bin").mkdir(parents=True)
    (tmp_path / "cu-ray-venv" / "bin" / "pip").write_text(PIP)
    for each in (tmp_path / "python3", tmp_path / "cu-ray-venv" / "bin" / "pip"):
        each.chmod(0o755)
    variables = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    machines = [subprocess.Popen(["bash", "-c", command], env=variables) for _ in range(3)]
    assert [machine.wait(timeout=30) for machine in machines] == [0, 0, 0]
    assert (tmp_path / "log").read_text().split() == ["begin", "end"] * 3


PAGES = ("cluster.yaml", "clusters/aws.yaml", "README.md", "docs/clusters.md")


def test_the_secret_is_made_so_that_nobody_else_can_read_it(tmp_path):
    made = {found for page in PAGES for found in re.findall(r"`([^`\n]*get-auth-token[^`\n]*)`", (ROOT / page).read_text())}
    (command,) = made
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # a secret among them
    variables = {**others, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"umask 022; {command}"], env=variables, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_no_page_has_the_secret_printed():
    for page in PAGES:
        for command in re.findall(r"`([^`\n]*\.ray/[^`\n]*)`", (ROOT / page).read_text()):
            assert command.startswith(("~/.ray/auth_token", "ssh NODE 'sha256sum ~/.ray/auth_token'")), command


def test_what_is_not_copied_to_machines_is_not_copied_into_the_image():
    left_out = launched("cluster.yaml")["rsync_exclude"]
    assert (ROOT / ".dockerignore").read_text().split() == left_out == launched("aws.yaml")["rsync_exclude"]


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
