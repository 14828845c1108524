"""What all tests share: one torch thread, a private cache, and no network."""

from __future__ import annotations

import os
import secrets
import signal

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; of processes that tests start too
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)  # else Ray keeps one in the home folder, which each test has its own of
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("CU_RAY_STORAGE", None)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's background jobs and nohup hand on that they are ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    """`~/.cache/cu-ray` of a test is its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
