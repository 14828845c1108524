"""A worker holds the memory that a step frees for the next one, instead of asking the system for it again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS, MEGABYTES = 20, 24  # glibc before 2.35 holds no piece above 32
PROGRAM = f"""
import resource, sys
import torch
from cu_ray.stages.process import set_up_worker
if sys.argv[1] == "worker":
    set_up_worker()
def step():
    tensors = [torch.ones({MEGABYTES} * 2**18) for _ in range(5)]
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
before = pages()
for _ in range({STEPS}):
    step()
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_a_worker_touches_no_new_memory_once_it_is_warm():
    new = {}
    for kind in ("worker", "plain"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True, timeout=120)
        new[kind] = int(done.stdout)
    huge = 512  # pages in one that the system may take instead
    assert new["plain"] > STEPS * 5 * MEGABYTES * 256 / huge / 2, "there is nothing to gain: the test would pass without"
    assert new["worker"] < new["plain"] / 100
