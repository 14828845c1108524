"""A Ray that a sweep starts lets in who has its token, and nobody else; a Ray that it joins is joined with the user's own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from rich.console import Console

from cu_ray.config import RuntimeSection
from cu_ray.sweep import cluster, tokens
from tests.sweeps import command, small

CLIENT = (
    "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('in', ray.get(ray.remote(lambda: 5).remote()))"
)
CLUSTER = """
import ray, sys
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
KNOWN = "0123456789abcdef" * 4
SWEEP_OF_KNOWN_TOKEN = f"""
import os, secrets
secrets.token_hex = lambda size: {KNOWN!r}
from cu_ray.cli import main
main(standalone_mode=False)
assert not [name for name, value in os.environ.items() if value == {KNOWN!r}]
"""

ray_s_leftovers = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def plain(**more: str) -> dict[str, str]:
    """The environment of somebody who has set nothing about tokens, and these variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | more


def client(address: str, token: str | None) -> subprocess.Popen[str]:
    """A process of somebody else's that wants to join."""
    variables = plain() if token is None else plain(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, address], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def no_token_set():
    """A process in which nobody has set one; Ray reads the environment again when it is as before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        yield
    tokens._look_at_environment()


@ray_s_leftovers
def test_who_has_no_token_or_another_is_refused(no_token_set, tmp_path):
    before, tokens = dict(os.environ), set()
    for _ in range(2):  # a notebook runs sweep after sweep
        nowhere = {"own_files": {}, "log": tmp_path / "log", "last_words": lambda message: None}
        with cluster.connected(RuntimeSection(workers=1), Console(file=io.StringIO()), **nowhere):
            address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
            tokens.add(token)
            if len(tokens) == 1:
                clients = {"right": client(address, token), "none": client(address, None), "wrong": client(address, "0" * 64)}
                said = {name: process.communicate(timeout=120)[0] for name, process in clients.items()}
        changed = {name for name in os.environ.keys() | before.keys() if os.environ.get(name) != before.get(name)}
        assert not [name for name in changed if name.startswith("RAY_AUTH")]
    assert len(tokens) == 2
    assert "in 5" in said["right"]
    for name in ("none", "wrong"):
        assert clients[name].returncode == 1
        assert "ConnectionError" in said[name]
    assert not (Path.home() / ".ray").exists()


@pytest.fixture
def ray_s_folder():
    """Where the Ray of a test keeps its logs: a short path, as sockets are in it."""
    folder = tempfile.mkdtemp(prefix="cr", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("mode", [{}, {"RAY_AUTH_MODE": "token"}], ids=["no mode", "mode token"])
def test_a_token_that_the_user_has_is_neither_used_nor_changed_and_the_run_s_is_left_nowhere(mode, ray_s_folder, tmp_path):
    kept = Path.home() / ".ray" / "auth_token"
    kept.parent.mkdir()
    kept.write_text("the user's own, kept in a file")
    file = small(tmp_path, fractions="[1.0]", seeds="[0]", trials=2)
    arguments = ["sweep", str(file), "--workers", "1", "--only", "method=scrub"]
    variables = plain(RAY_AUTH_TOKEN="the user's own, in a variable", RAY_TMPDIR=str(ray_s_folder), **mode)
    script = [sys.executable, "-c", SWEEP_OF_KNOWN_TOKEN, *arguments]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept.read_text() == "the user's own, kept in a file"
    files = [path for folder in (tmp_path, ray_s_folder) for path in folder.rglob("*") if path.is_file()]
    assert {"trials.parquet", "tune.log", "raylet.out", "gcs_server.out"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert KNOWN.encode() not in content, path
        assert b"in a variable" not in content, path
    assert KNOWN not in done.stdout + done.stderr


@contextlib.contextmanager
def running_cluster(**variables: str):
    """The address of a Ray that somebody else has started with these variables."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=plain(**variables), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def test_a_cluster_is_joined_with_the_token_that_the_user_has_set(tmp_path):
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    file = small(tmp_path, fractions="[1.0]", seeds="[0]", trials=2)
    with running_cluster(**own) as address:
        arguments = ("sweep", str(file), "--address", address, "--only", "method=no_unlearning")
        wrong, none = ({"RAY_AUTH_MODE": "token", **more} for more in ({"RAY_AUTH_TOKEN": "b" * 64}, {}))
        refused = [command(tmp_path, *arguments, env=plain(**variables)) for variables in (wrong, none)]
        done = command(tmp_path, *arguments, env=plain(**own))
    for each in refused:
        assert each.returncode == 2, each.stdout + each.stderr
        assert f"no Ray cluster answers at {address}" in each.stderr
        assert "RAY_AUTH_TOKEN" in each.stderr
        assert "Traceback" not in each.stderr
    assert done.returncode == 0, done.stdout + done.stderr
