"""Content-addressed artefacts in a folder or at a URI: original models and memos, as safetensors with a checksum.

An entry appears finished or not at all. Nothing read here can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cu_ray.errors import StoreFailed
from cu_ray.identity import canonical_json
from cu_ray.lease import Lease, Taken
from cu_ray.places import File, Folder, Place, Remote, at, claimed, patiently
from cu_ray.types import Tensors

PAUSES = (1.0, 10.0, 30.0)  # seconds after which a claim at a URI that could not be looked at is looked at again
KINDS = ("originals", "memos")
ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
LIMITS = {"memos": 4 << 30}  # bytes kept of a kind; the least recently used entries go first


def open_store(where: str) -> LocalStore | RemoteStore:
    """The store in a folder or at a URI."""
    place = at(where)
    if isinstance(place, Remote):
        return RemoteStore(place)
    assert isinstance(place, Folder)
    return LocalStore(place.path)


class LocalStore:
    """A store in a folder: `<folder>/<kind>/<key>.safetensors`. Who may write to the folder may write to all of it."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an entry; it may still turn out to be damaged."""
        return self._path(kind, key).exists()

    def load(self, kind: str, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """The arrays of an entry and its metadata; None where there is no entry or it is damaged (it is then removed)."""
        path = self._path(kind, key)
        try:
            with _failing(path, but=(FileNotFoundError, PermissionError)):
                found = _parsed(path.read_bytes())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            if os.access(path.parent, os.W_OK, effective_ids=True):  # then it is made again, and can be read
                return None
            raise StoreFailed(f"runtime.storage: {error.strerror} ({path})") from error
        if found is None:
            with _failing(path):
                path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):  # another process trimmed it meanwhile, or it is somebody else's
                now, written = time.time_ns(), path.stat().st_mtime_ns
                os.utime(path, ns=(now, now if kind in LIMITS else written))  # when it was used last: see `_trim` and `unused`
        return found

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry; the oldest of a limited kind make room."""
        folder = self.folder / kind
        with _failing(self._path(kind, key)):
            _make_as_its_parent(folder)
            Folder(folder).delete_abandoned()
            Folder(folder).write(_name(key), _packed(tensors, metadata), shared=True)
            if kind in LIMITS:
                _trim(folder, LIMITS[kind])

    @contextlib.contextmanager
    def claimed(self, kind: str, key: str) -> Iterator[None]:
        """While others that claim the entry wait: who made it has kept it then. A claim ends with its process at the latest."""
        path = self.folder / kind / f".{key}.lock"
        with contextlib.ExitStack() as held:
            with _failing(path):
                _make_as_its_parent(path.parent)
                alone = held.enter_context(claimed(path))
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # it says nothing of what was done meanwhile
                    if alone:
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
        found = _parsed(content)
        if found is None:
            with _failing(self.place):
                (self.place / kind).delete(_name(key))
        return found

    @contextlib.contextmanager
    def claimed(self, kind: str, key: str) -> Iterator[None]:
        """While others that claim the entry wait, until it is there. A claim is free some time after its process died."""
        lease, place = None, self.place / "claims" / f"{kind}-{key}"

        def taken() -> Lease | None:
            if self.has(kind, key):
                return None
            with _failing(self.place):
                return Lease(place)

        waits = True
        while waits:
            with contextlib.suppress(Taken):
                lease, waits = patiently(taken, StoreFailed, PAUSES), False
        try:
            yield
        finally:
            if lease is not None:
                with contextlib.suppress(OSError):  # it ends by itself
                    lease.close()

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry; the oldest of a limited kind make room."""
        folder = self.place / kind
        with _failing(self.place):
            folder.write(_name(key), _packed(tensors, metadata))
            if kind in LIMITS:
                entries = sorted(folder.files())
                excess = sum(entry.size for entry in entries) - LIMITS[kind]
                while excess > 0:
                    oldest = entries.pop(0)
                    folder.delete(oldest.name)
                    excess -= oldest.size


@contextlib.contextmanager
def _failing(place: Path | Remote, but: type[OSError] | tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """A context in which StoreFailed, with the place, takes the place of what a file system says, but for one kind."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        where = "" if isinstance(place, Remote) else f" ({place})"  # a URI is in the message already
        raise StoreFailed(f"runtime.storage: {error.strerror or error}{where}") from error


def _packed(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return as_safetensors(tensors, {**metadata, "checksum": checksum(tensors, metadata)})


def as_safetensors(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content: the library puts metadata in another order each time."""
    content: bytes = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end]) | {"__metadata__": dict(sorted(metadata.items()))}
    written = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # the arrays that follow are aligned
    return len(written).to_bytes(8, "little") + written + content[end:]


def _parsed(content: bytes) -> tuple[Tensors, dict[str, str]] | None:
    """The arrays and the metadata of an entry; None where it is damaged."""
    try:
        tensors, metadata = load(content), _metadata(content)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return (tensors, metadata) if metadata.pop("checksum", None) == checksum(tensors, metadata) else None


def _make_as_its_parent(folder: Path) -> None:
    """Make a folder where there is none, open to those to whom the one that it lies in is."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        with contextlib.suppress(OSError):  # a file system without modes
            folder.chmod(folder.parent.stat().st_mode & 0o7777)


def _name(key: str) -> str:
    return f"{key}.safetensors"


def _metadata(content: bytes) -> dict[str, str]:
    """What stands in the head of a safetensors file besides its arrays."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def unused(where: str, days: int) -> dict[str, list[File]]:
    """The entries of each kind that nobody has read or written for so many days; at a URI, that were written so long ago."""
    since, found = time.time() - days * 24 * 3600, dict[str, list[File]]()
    for kind in KINDS:
        folder = at(where) / kind
        entries = [file for file in folder.files() if ENTRY.fullmatch(file.name) and 0 < _last_used(folder, file) < since]
        found |= {kind: entries} if entries else {}
    return found


def _last_used(folder: Place, file: File) -> float:
    """When an entry was written or read, also by who may not note that."""
    read = (folder.path / file.name).stat().st_atime if isinstance(folder, Folder) else 0.0
    return max(read, file.modified) if file.modified else 0.0


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
