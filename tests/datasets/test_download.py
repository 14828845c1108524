"""Servers that do not do what they should."""

from __future__ import annotations

import socket
import time

import pytest

from cu_ray.datasets import _download


def test_a_server_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(_download, "SILENT_AFTER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}/images.gz"
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="timed out"):
            _download._download(_download.Archive("images.gz", "0" * 32, (address,)), tmp_path)
    assert time.monotonic() - began < 20
    assert socket.getdefaulttimeout() is None
    assert not list(tmp_path.rglob("*.tmp"))
