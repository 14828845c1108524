"""What this machine knows of a cluster without asking anybody."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import click
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


def test_a_launcher_that_has_forgotten_given_machines_gets_back_what_it_knew(cluster, tmp_path):
    ours = cluster(OWN)
    state(tmp_path, "up-to-date")
    noted = ours.state()
    (tmp_path / "cluster-ours.state").unlink()
    assert not ours.was_launched()
    ours.recall(noted)
    assert ours.was_launched()
    state(tmp_path, "up-to-date", "terminated")
    ours.recall(noted)
    assert not ours.was_launched(), "what it knows is newer"
    theirs = cluster(CLOUD)
    theirs.recall(noted)
    assert not theirs.was_launched()


@pytest.fixture
def head(cluster, tmp_path, monkeypatch):
    """A cluster that is up and its head's home: there a command runs in a shell of this machine, started as Ray starts one."""
    from ray.autoscaler._private.command_runner import _with_interactive

    home = tmp_path / "there"
    home.mkdir()
    state(tmp_path, "up-to-date")

    def run(file, cmd, with_output):
        shell = ["bash", "-c", " ".join(_with_interactive(cmd))]
        environment = {**os.environ, "HOME": str(home)}
        said = subprocess.run(shell, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        return said.stdout.replace(b"\n", b"\r\n")

    monkeypatch.setattr("ray.autoscaler.sdk.run_on_cluster", run)
    return cluster(OWN), home


def test_what_the_shell_of_the_head_prints_is_no_part_of_an_answer(head):
    ours, home = head
    for name in (".bash_profile", ".bashrc", ".bash_logout"):
        (home / name).write_text(f"echo Welcome by {name}\nprintf 'without an end of the line'\n")
    assert ours.ask("true") == ""
    assert ours.ask("printf running") == "running"
    assert ours.ask("echo one; echo two >&2") == "one\ntwo\n"
    with pytest.raises(HeadFailed, match=r"^on the head of ours, exit code 3: why$"):
        ours.ask("echo why; exit 3")


def test_no_command_takes_what_this_process_is_to_read(head, tmp_path):
    ours, _ = head
    (tmp_path / "list").write_text("first\nsecond\n")
    with open(tmp_path / "list") as given, launcher._in_place_of(0, given):
        assert ours.ask("cat") == ""
        assert os.read(0, 100) == b"first\nsecond\n"


COMMAND = click.ClickException(f"Command failed:\n\n  ssh -tt {'-o Option=yes ' * 60}\n")


@pytest.mark.parametrize(
    ("remark", "error", "said"),
    [
        ("ssh: connect to host h port 22: No route\r\n", COMMAND, "ssh: connect to host h port 22: No route"),
        ("root@h: Permission denied (publickey).\r\n", COMMAND, r"root@h: Permission denied \(publickey\)"),
        ("Connection closed by 10.0.0.1 port 22\r\n", COMMAND, "Connection closed by 10.0.0.1 port 22"),
        ("Shared connection to h closed.\r\n", COMMAND, "Command failed: ssh -tt (-o Option=yes )+.{1,20}"),
        ("", AssertionError(), "AssertionError"),
        ("", LookupError("no credentials"), "no credentials"),  # a cloud's library has errors of its own
    ],
)
def test_why_a_head_is_not_reached_is_what_ssh_said_last_or_the_error(cluster, tmp_path, monkeypatch, remark, error, said):
    def fail(file, cmd, with_output):
        os.write(2, remark.encode())
        print("Use --no-config-cache to ...")  # the launcher's own, behind ssh's words
        raise error

    monkeypatch.setattr("ray.autoscaler.sdk.run_on_cluster", fail)
    state(tmp_path, "up-to-date")
    whole = rf"^the head of ours is not reached: {said}\. `ray up .* starts it, and ends sweeps that run there; "
    with pytest.raises(HeadFailed, match=whole) as failed:
        cluster(OWN).ask("true")
    assert len(str(failed.value)) < 700


def test_a_file_that_cannot_be_copied_to_a_head_that_answers_is_said_with_the_room_there(head, tmp_path, monkeypatch):
    def fail(file, source, target, down):
        raise click.ClickException("SSH command failed.")

    monkeypatch.setattr("ray.autoscaler.sdk.rsync", fail)
    said = r"^a file cannot be copied to the head of ours; it answers, free there: \S+ in /"
    with pytest.raises(HeadFailed, match=said):
        head[0].send(tmp_path / "there", str(tmp_path / "to"))


def test_what_could_not_be_packed_does_not_stay_on_the_head(head, tmp_path, monkeypatch):
    ours, home = head
    monkeypatch.setattr(launcher.uuid, "uuid4", lambda: SimpleNamespace(hex=f"test-{os.getpid()}"))
    (home / ".bashrc").write_text("tar() { echo half > $2; echo No space left; return 2; }\n")
    with pytest.raises(HeadFailed, match="exit code 1: No space left"):
        ours.fetch("~/results", tmp_path / "here")
    assert not list(Path("/tmp").glob(f"{launcher.PACKED}-test-{os.getpid()}"))


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
        ("cluster_name: x\nprovider: {type: aws}\navailable_node_types: [gpu]", "available_node_types has to be a mapping"),
        ("cluster_name: x\nprovider: {type: aws}\nmin_workers: null", "min_workers has to be a whole number"),
        (CLOUD.replace("4", "null"), "min_workers has to be a whole number"),
        (OWN.replace("[10.0.0.2, 10.0.0.3]", "null"), "worker_ips a list"),
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
