"""Content-addressed artefacts on a local path: original models and memos, as safetensors with a checksum.

An entry appears finished or not at all: it is written under a temporary name in the same folder, flushed and renamed.
Nothing read here can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cu_ray.identity import canonical_json
from cu_ray.types import Tensors

LIMITS = {"memos": 4 << 30}  # bytes kept of a kind; the least recently used entries go first


class LocalStore:
    """A store in a folder: `<folder>/<kind>/<key>.safetensors`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an entry; it may still turn out to be damaged."""
        return self._path(kind, key).exists()

    def load(self, kind: str, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """The arrays of an entry and its metadata; None where there is no entry or it is damaged (it is then removed)."""
        path = self._path(kind, key)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return None
        if metadata.pop("checksum", None) != checksum(tensors, metadata):
            path.unlink(missing_ok=True)
            return None
        if kind in LIMITS:
            with contextlib.suppress(FileNotFoundError):  # another process trimmed it meanwhile
                os.utime(path)
        return tensors, metadata

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry; the oldest of a limited kind make room."""
        path = self._path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{key}.{uuid.uuid4().hex}.tmp")
        try:
            tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
            save_file(tensors, temporary, metadata={**metadata, "checksum": checksum(tensors, metadata)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if kind in LIMITS:
            _trim(path.parent, LIMITS[kind])

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.safetensors"


def checksum(tensors: Tensors, metadata: dict[str, str]) -> str:
    """SHA-256 over the metadata and over names, types, shapes and values of the arrays."""
    digest = hashlib.sha256(canonical_json(metadata).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _trim(folder: Path, limit: int) -> None:
    entries = []
    for path in folder.glob("*.safetensors"):
        try:
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
        except FileNotFoundError:  # another process trimmed it
            continue
    excess = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
