"""Content-addressed artefacts in a folder or at a URI: original models and memos, as safetensors with a checksum.

An entry appears finished or not at all. Nothing read here can run code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from cu_ray.errors import StoreFailed
from cu_ray.identity import canonical_json
from cu_ray.lease import Lease, Taken
from cu_ray.places import Folder, Remote, at
from cu_ray.types import Tensors

ABANDONED_AFTER = 24 * 3600.0  # seconds; nobody writes an entry for so long
LIMITS = {"memos": 4 << 30}  # bytes kept of a kind; the least recently used entries go first


def open_store(where: str) -> LocalStore | RemoteStore:
    """The store in a folder or at a URI."""
    place = at(where)
    if isinstance(place, Remote):
        return RemoteStore(place)
    assert isinstance(place, Folder)
    return LocalStore(place.path)


class LocalStore:
    """A store in a folder: `<folder>/<kind>/<key>.safetensors`, written under a temporary name, flushed and renamed."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an entry; it may still turn out to be damaged."""
        return self._path(kind, key).exists()

    def load(self, kind: str, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """The arrays of an entry and its metadata; None where there is no entry or it is damaged (it is then removed)."""
        path = self._path(kind, key)
        try:
            with _failing(path, but=FileNotFoundError), safe_open(path, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            return None
        except SafetensorError:
            tensors, metadata = {}, {}
        if metadata.pop("checksum", None) != checksum(tensors, metadata):
            with _failing(path):
                path.unlink(missing_ok=True)
            return None
        if kind in LIMITS:
            with contextlib.suppress(OSError):  # another process trimmed it meanwhile, or it is somebody else's
                os.utime(path)
        return tensors, metadata

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry; the oldest of a limited kind make room."""
        path = self._path(kind, key)
        temporary = path.with_name(f".{key}.{uuid.uuid4().hex}.tmp")
        tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        with _failing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_abandoned(path.parent)
            try:
                _write(tensors, temporary, {**metadata, "checksum": checksum(tensors, metadata)})
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if kind in LIMITS:
                _trim(path.parent, LIMITS[kind])

    @contextlib.contextmanager
    def claimed(self, kind: str, key: str) -> Iterator[None]:
        """While others that claim the entry wait: who made it has kept it then. A claim ends with its process at the latest."""
        path = self.folder / kind / f".{key}.lock"
        with _failing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = open(path, "ab")  # noqa: SIM115 (closed below)
        with opened as file:
            with contextlib.suppress(OSError):  # a file system without locks: the entry may be made twice
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # it says nothing of what was done meanwhile
                    path.unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / _name(key)


class RemoteStore:
    """A store at a URI, of objects with the same names and content. Entries of a limited kind go in the order they came."""

    def __init__(self, place: Remote) -> None:
        self.place = place

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an entry; it may still turn out to be damaged."""
        with _failing(self.place):
            return (self.place / kind).has(_name(key))

    def load(self, kind: str, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """The arrays of an entry and its metadata; None where there is no entry or it is damaged (it is then removed)."""
        try:
            with _failing(self.place, but=FileNotFoundError):
                content = (self.place / kind).read(_name(key))
        except FileNotFoundError:
            return None
        try:
            tensors, metadata = load(content), _metadata(content)
        except (SafetensorError, ValueError, KeyError, TypeError):
            tensors, metadata = {}, {}
        if metadata.pop("checksum", None) != checksum(tensors, metadata):
            with _failing(self.place):
                (self.place / kind).delete(_name(key))
            return None
        return tensors, metadata

    @contextlib.contextmanager
    def claimed(self, kind: str, key: str) -> Iterator[None]:
        """While others that claim the entry wait, until it is there. A claim is free some time after its process died."""
        lease = None
        while lease is None and not self.has(kind, key):
            with contextlib.suppress(Taken), _failing(self.place):
                lease = Lease(self.place / "claims" / f"{kind}-{key}")
        try:
            yield
        finally:
            if lease is not None:
                with contextlib.suppress(OSError):  # it ends by itself
                    lease.close()

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry; the oldest of a limited kind make room."""
        folder = self.place / kind
        tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        with _failing(self.place):
            folder.write(_name(key), save(tensors, metadata={**metadata, "checksum": checksum(tensors, metadata)}))
            if kind in LIMITS:
                entries = sorted(folder.files())
                excess = sum(entry.size for entry in entries) - LIMITS[kind]
                while excess > 0:
                    oldest = entries.pop(0)
                    folder.delete(oldest.name)
                    excess -= oldest.size


@contextlib.contextmanager
def _failing(place: Path | Remote, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """A context in which StoreFailed, with the place, takes the place of what a file system says, but for one kind."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        where = "" if isinstance(place, Remote) else f" ({place})"  # a URI is in the message already
        raise StoreFailed(f"runtime.storage: {error.strerror or error}{where}") from error


def _write(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # also what the system says, by its number
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _name(key: str) -> str:
    return f"{key}.safetensors"


def _metadata(content: bytes) -> dict[str, str]:
    """What stands in the head of a safetensors file besides its arrays."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def checksum(tensors: Tensors, metadata: dict[str, str]) -> str:
    """SHA-256 over the metadata and over names, types, shapes and values of the arrays."""
    digest = hashlib.sha256(canonical_json(metadata).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _clear_abandoned(folder: Path) -> None:
    """Take away what writers that were killed left under temporary names."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process was first, or it is somebody else's
            if path.stat().st_mtime < time.time() - ABANDONED_AFTER:
                path.unlink()


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
