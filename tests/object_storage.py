"""An S3 server on this machine, moto's: for tests of what lies at a URI. Or Google's emulator of its own storage, if it runs:

git clone https://github.com/googleapis/storage-testbench && cd storage-testbench   # in an environment of its own
pip install . && python testbench_run.py localhost 9123 4 &
GOOGLE_STORAGE=http://localhost:9123 pytest tests/test_object_storage.py
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

GOOGLE = os.environ.get("GOOGLE_STORAGE")  # where the emulator is
SECRET = "a-secret-that-nothing-repeats"


@dataclass(frozen=True)
class ObjectStorage:
    """A server and how to reach it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know of it."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIATESTING",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def bucket(self, name: str) -> str:
        """The URI of a new bucket."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"))
        return f"s3://{name}"


@dataclass(frozen=True)
class GoogleStorage:
    """The emulator and how to reach it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know of it."""
        return {"CLOUD_STORAGE_EMULATOR_ENDPOINT": self.endpoint}

    def bucket(self, name: str) -> str:
        """The URI of a new bucket."""
        made = urllib.request.Request(f"{self.endpoint}/storage/v1/b?project=tests", json.dumps({"name": name}).encode())
        made.add_header("Content-Type", "application/json")
        urllib.request.urlopen(made).close()
        return f"gs://anonymous@{name}"


@contextlib.contextmanager
def server() -> Iterator[ObjectStorage | GoogleStorage]:
    """A server that ends with the context; the emulator, where there is one, goes on."""
    if GOOGLE:
        yield GoogleStorage(GOOGLE)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}) as process:
        try:
            storage = ObjectStorage(f"http://127.0.0.1:{port}")
            for _ in range(300):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"{storage.endpoint}/moto-api/").close()
                    break
                time.sleep(0.1)
            yield storage
        finally:
            process.terminate()
