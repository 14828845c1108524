"""A worker holds the memory that a step frees for the next one, instead of asking the system for it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray
from rich.console import Console

from cu_ray import config
from cu_ray.sweep import process
from cu_ray.sweep.session import at_ray, say
from tests import sweeps

STEPS, MEGABYTES = 20, 48
PROGRAM = f"""
import resource
import torch
def step():
    tensors = [torch.ones({MEGABYTES} * 2**18) for _ in range(3)]
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
before = pages()
for _ in range({STEPS}):
    step()
print(pages() - before)
"""
held = pytest.mark.skipif(not process.memory_held(), reason="this C library cannot be told, or was told already")


@held
def test_with_these_variables_a_process_touches_no_new_memory_once_it_is_warm():
    new = {}
    for kind, variables in (("held", process.memory_held()), ("plain", {})):
        command, environment = [sys.executable, "-c", PROGRAM], {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
        new[kind] = int(done.stdout)
    huge = 512  # pages in one that the system may take instead
    assert new["plain"] > STEPS * 3 * MEGABYTES * 256 / huge / 2, "there is nothing to gain: the test would pass without"
    assert new["held"] < new["plain"] / 100


@held
@pytest.mark.filterwarnings("default")  # Ray's own, which come up in this process
def test_workers_of_a_ray_that_is_started_have_them_and_this_process_is_as_before(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted, before = process.memory_held(), dict(os.environ)
    sweep = config.with_runtime(config.load(sweeps.small(tmp_path)), output=str(tmp_path / "results"), address="local")
    with at_ray(sweep, Console(quiet=True), {}, say):
        seen = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    assert wanted.items() <= seen.items()
    assert not wanted.keys() & os.environ.keys()
    assert before.items() <= os.environ.items()


@pytest.mark.parametrize(("library", "names"), [(("glibc", "2.34"), 0), (("glibc", "2.35"), 2), (("", ""), 0)])
def test_a_library_that_would_only_half_understand_is_left_alone(library, names, monkeypatch):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: library)
    assert len(process.memory_held()) == names
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    assert "MALLOC_TRIM_THRESHOLD_" not in process.memory_held()
