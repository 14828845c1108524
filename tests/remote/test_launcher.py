"""What this machine knows of a cluster without asking anybody."""

from __future__ import annotations

import json
import tarfile
import time

import pytest

from cu_ray.errors import UserError
from cu_ray.remote import launcher
from cu_ray.remote.launcher import Cluster, HeadFailed, _harmless, quoted

OWN = "cluster_name: ours\nprovider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}\n"
CLOUD = (
    "cluster_name: theirs\nprovider: {type: aws, region: us-west-2}\n"
    "available_node_types: {head: {min_workers: 0}, gpu: {min_workers: 4}}\n"
)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A function from the text of a cluster.yaml to its cluster, on a machine where nothing was launched."""
    monkeypatch.setattr(launcher, "RAY_FOLDER", tmp_path)
    monkeypatch.setattr(launcher.tempfile, "gettempdir", lambda: str(tmp_path))

    def of(text):
        (tmp_path / "cluster.yaml").write_text(text)
        return Cluster.of(tmp_path / "cluster.yaml")

    return of


def state(folder, status, state="running"):
    head = {"tags": {"ray-node-type": "head", "ray-node-status": status}, "state": state}
    (folder / "cluster-ours.state").write_text(json.dumps({"10.0.0.1": head}))


def test_a_cluster_of_given_machines_is_up_when_the_launcher_has_finished_with_its_head(cluster, tmp_path):
    ours = cluster(OWN)
    assert not ours.was_launched()
    state(tmp_path, "setting-up")
    assert not ours.was_launched()
    state(tmp_path, "up-to-date")
    assert ours.was_launched()
    assert not cluster(OWN.replace("10.0.0.1", "10.0.0.9")).was_launched()
    state(tmp_path, "up-to-date", "terminated")
    assert not ours.was_launched()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"10.0.0.1": {}}'])
def test_a_damaged_state_says_that_nothing_is_up(cluster, tmp_path, content):
    (tmp_path / "cluster-ours.state").write_text(content)
    assert not cluster(OWN).was_launched()


def test_a_cluster_in_a_cloud_is_known_by_the_configuration_that_the_launcher_keeps(cluster, tmp_path):
    theirs = cluster(CLOUD)
    assert not theirs.was_launched()
    (tmp_path / "ray-config-1").write_text(json.dumps({"config": {"cluster_name": "theirs", "provider": {"type": "aws"}}}))
    assert theirs.was_launched()
    assert theirs.num_nodes == 5


def test_the_number_of_nodes_is_what_the_file_says(cluster):
    assert cluster(OWN).num_nodes == 3
    assert cluster(OWN).addresses == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert cluster(CLOUD).addresses == []


def test_the_answer_takes_less_than_a_second_and_no_network(cluster, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *given: pytest.fail("the network was used"))
    since = time.monotonic()
    cluster(OWN).was_launched()
    assert time.monotonic() - since < 1


def test_a_cluster_that_is_not_up_is_not_asked(cluster):
    with pytest.raises(
        HeadFailed, match=r"ours \(.*cluster.yaml\) is not up as far as this machine knows\. `ray up .*` starts it"
    ):
        cluster(OWN).ask("true")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable as YAML"),
        ("[]", "not a file for `ray up`"),
        ("cluster_name: 3\nprovider: {type: local}", "it needs cluster_name and provider.type"),
        ("cluster_name: x\nprovider: {}", "it needs cluster_name and provider.type"),
    ],
)
def test_what_is_no_cluster_file_is_one_message(cluster, text, said):
    with pytest.raises(UserError, match=said):
        cluster(text)


def test_a_link_out_of_what_is_fetched_is_left_out(tmp_path):
    there, here, packed = tmp_path / "there", tmp_path / "here", tmp_path / "packed.tar.gz"
    there.mkdir()
    (there / "tables").write_text("rows")
    (there / "latest").symlink_to("tables")
    (there / "lock").symlink_to(tmp_path / "elsewhere")
    with tarfile.open(packed, "w:gz") as file:
        file.add(there, ".")
    with tarfile.open(packed) as file:
        file.extractall(here, filter=_harmless)
    assert sorted(path.name for path in here.iterdir()) == ["latest", "tables"]
    assert (here / "latest").read_text() == "rows"
    (there / "ledger").symlink_to(tmp_path / "elsewhere")
    with tarfile.open(packed, "w:gz") as file:
        file.add(there, ".")
    with tarfile.open(packed) as file, pytest.raises(tarfile.FilterError):
        file.extractall(here, filter=_harmless)


def test_a_path_on_the_head_is_quoted_and_its_home_is_not():
    assert quoted("~/cu-ray/a b") == "~/'cu-ray/a b'"
    assert quoted("results/$(reboot)") == "'results/$(reboot)'"
