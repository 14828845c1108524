"""Where results and models lie: a folder of this machine or a URI, with the few things that are done there.

A file appears finished or not at all. Credentials for a URI come from the environment and are never part of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

from cu_ray.errors import PlaceFailed, UserError, did_you_mean

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
ABANDONED_AFTER = 24 * 3600.0  # seconds; nobody writes under a temporary name for so long
FIRST_ANSWER_IN = 30  # seconds, of Google's storage; later it is asked again and again for a quarter of an hour
Done = TypeVar("Done")
SETTINGS = ("endpoint_override", "region", "scheme")  # that may follow the '?' of a URI; others could hold credentials


def patiently(
    act: Callable[[], Done], fault: type[Exception], pauses: Iterable[float], wait: Callable[[float], object] | None = None
) -> Done:
    """What the act gives, tried again after each of the pauses (in seconds) where it fails so: an outage may pass."""
    for pause in pauses:
        try:
            return act()
        except fault:
            (wait or time.sleep)(pause)
    return act()


@dataclass(frozen=True, order=True)
class File:
    """A file of a place, without its content."""

    modified: float  # seconds since 1970
    size: int
    name: str


class Place(Protocol):
    """A folder, whether it is there yet or not."""

    @property
    def name(self) -> str:
        """Its own name, the last of its path."""

    @property
    def parent(self) -> Place:
        """What it lies in."""

    def __truediv__(self, name: str) -> Place:
        """What lies in it under this name."""

    def files(self) -> list[File]:
        """The files in it, those with hidden names apart; none where there is no such folder. Raises OSError for a shut one."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole at every moment, in the place of an earlier one."""

    def delete(self, name: str) -> None:
        """Take a file away, if it is there."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        """For `open`, `pandas.read_parquet` and the like."""
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> Folder:
        return Folder(self.path.parent)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path / name)

    def files(self) -> list[File]:
        try:
            paths = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for path in paths:
            try:
                facts = path.stat()
            except FileNotFoundError:  # taken away meanwhile
                continue
            if path.is_file():
                found.append(File(facts.st_mtime, facts.st_size, path.name))
        return found

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes, *, shared: bool = False) -> None:
        """As for all places. shared: open to those to whom the folder is, whatever this user's files are otherwise."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                if shared:
                    with contextlib.suppress(OSError):  # a file system without modes
                        os.fchmod(file.fileno(), self.path.stat().st_mode & 0o666)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def delete_unfinished(self) -> None:
        """Take away what writers that were killed left under temporary names. Only for who writes here alone."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def delete_abandoned(self) -> None:
        """The same where others may write at this moment: what nobody has written to for a day."""
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):  # another process was first, or it is somebody else's
                if path.stat().st_mtime < time.time() - ABANDONED_AFTER:
                    path.unlink()


def is_this_users(folder: Place, name: str) -> bool:
    """Whether a file there was written by the user who asks, as far as that can be known. Raises FileNotFoundError."""
    return isinstance(folder, Folder) and (folder.path / name).stat().st_uid == os.getuid()


def sync(folder: Folder) -> None:
    """Flush the names of the folder's files to the disk, where the file system can."""
    descriptor = os.open(folder.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """While another process claims the same path, wait; a claim ends with its process at the latest. Gives whether it is held.

    It spares work and guards nothing: where a file system has no locks, or the lock is one that only another user may open, two
    are at it.
    """
    held = False
    with _lock_file(path) as file:
        if file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
                held = True
        yield held


def is_locked(path: Path) -> bool | None:
    """Whether a process of any machine that sees the file holds its lock; None where that cannot be told."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _lock_file(path: Path) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    try:
        return open(path, "ab")
    except PermissionError:
        try:
            return open(path, "rb")  # another user's
        except PermissionError:
            return contextlib.nullcontext()
        except FileNotFoundError:
            return open(path, "ab")  # given back just now, or a folder that may not be written


@dataclass(frozen=True)
class Remote:
    """What a URI names, reached by pyarrow. An object appears when it is whole; an earlier one stays until then."""

    scheme: str
    path: str  # after the '//', the bucket first
    query: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        return Remote(self.scheme, self.path.rpartition("/")[0], self.query)

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.scheme, f"{self.path}/{name}", self.query)

    def files(self) -> list[File]:
        from pyarrow.fs import FileSelector

        with self._failing() as (system, path):
            found = system.get_file_info(FileSelector(path, allow_not_found=True))
        shown = (each for each in found if each.is_file and not each.base_name.startswith("."))
        return [File((each.mtime_ns or 0) / 1e9, each.size, each.base_name) for each in shown]

    def has(self, name: str) -> bool:
        with (self / name)._failing() as (system, path):
            return bool(system.get_file_info(path).is_file)

    def read(self, name: str) -> bytes:
        with (self / name)._failing() as (system, path):
            while (content := _whole(system, path)) is None:
                pass
            return content

    def write(self, name: str, content: bytes) -> None:
        """In a thread of its own: an interrupt that closed an unfinished stream would make half an object appear."""
        with (self / name)._failing() as (system, path), ThreadPoolExecutor(1) as thread:
            thread.submit(_put, system, path, content, self.scheme not in OBJECT_STORES).result()

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), (self / name)._failing() as (system, path):
            system.delete_file(path)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path there; what goes wrong is said in one message."""
        try:
            yield _opened(str(self))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, NotImplementedError) as error:  # Arrow's own errors are among these
            raise PlaceFailed(f"{self}: {error}") from error


def at(where: Place | Path | str) -> Place:
    """The place that a path or a URI names. Raises UserError for `~nobody`, and a URI that cannot be one or holds credentials."""
    if isinstance(where, str) and (found := re.match(rf"([A-Za-z][A-Za-z0-9+.-]+)://|({'|'.join(SCHEMES)}):", where)):
        return _at_uri(where, found[1] or found[2])
    try:
        return Folder(Path(where).expanduser()) if isinstance(where, (str, Path)) else where
    except RuntimeError:
        raise UserError(f"'{where}' is not allowed: there is no such home folder") from None


def lasting(where: Place | Path | str) -> str:
    """The path or URI, such that it means the same in any folder."""
    place = at(where)
    return str(place.path.resolve() if isinstance(place, Folder) else place)


def _at_uri(uri: str, scheme: str) -> Place:
    path, _, query = uri.partition("?")
    path, settings = path.removeprefix(f"{scheme}:").removeprefix("//").rstrip("/"), parse_qsl(query, keep_blank_values=True)
    user, at_sign, _ = path.rpartition("@")
    if ":" in user or (at_sign and scheme == "s3" and "/" not in user) or any("@" in value for _, value in settings):
        raise UserError(
            f"{scheme}: a URI with a user name or password in it is refused (and not repeated here): "
            "give credentials by the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if scheme not in SCHEMES:
        raise UserError(f"{scheme}:// is no place that can be written to. {did_you_mean(scheme, SCHEMES)}")
    for name, _ in settings:
        if name not in SETTINGS:
            raise UserError(f"{scheme}://{path}: unknown setting {name!r} after the '?'. {did_you_mean(name, SETTINGS)}")
    if not uri.startswith(f"{scheme}://") or not path or (scheme == "file" and path[0] != "/"):
        form = "file:///PATH" if scheme == "file" else f"{scheme}://BUCKET/PATH"
        raise UserError(f"{scheme}:{path} is no whole URI: {form} is needed")
    return Folder(Path(unquote(path))) if scheme == "file" else Remote(scheme, path, query)


@functools.cache
def _file_system(scheme: str, root: str, query: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    def system_with(**settings: Any) -> tuple[Any, str]:
        settings |= dict(parse_qsl(query))
        system, path = FileSystem.from_uri(f"{scheme}://{root}" + (f"?{urlencode(settings)}" if settings else ""))
        return system, str(path)

    if scheme in ("gs", "gcs"):  # else one without credentials, too, would hear of it a quarter of an hour later
        system, path = system_with(retry_limit_seconds=FIRST_ANSWER_IN)
        system.get_file_info(f"{path}/cu-ray")
    return system_with(**({"allow_delayed_open": "true"} if scheme == "s3" else {}))  # one request a small object


def _opened(uri: str) -> tuple[Any, str]:
    """The file system for a URI, and the path in it."""
    scheme, _, rest = uri.partition("://")
    path, _, query = rest.partition("?")
    root, slash, inner = path.partition("/")
    system, start = _file_system(scheme, root, query)
    return system, f"{start.rstrip('/')}{slash}{inner}"


def _whole(system: Any, path: str) -> bytes | None:
    """The content of an object; None where another was put there meanwhile. Raises FileNotFoundError where it is gone.

    pyarrow asks for the size first and for so many bytes then: of an object that came between it would give any bytes.
    """
    with system.open_input_stream(path) as stream:
        version = stream.metadata()
        try:
            content: bytes | None = stream.read()
        except OSError:
            content = None
            if _version(system, path) == version:
                raise
    return content if _version(system, path) == version else None


def _version(system: Any, path: str) -> Any:
    """What tells an object from another that was put in its place; on object storage, its ETag is part of it."""
    with system.open_input_stream(path) as stream:
        return stream.metadata()


def _put(system: Any, path: str, content: bytes, with_folders: bool) -> None:
    if with_folders:
        system.create_dir(path.rpartition("/")[0], recursive=True)
    with system.open_output_stream(path) as stream:
        stream.write(owned_by_arrow(content))


def owned_by_arrow(content: bytes) -> Any:
    """A copy that Arrow's threads can let go of at any time. Python's own memory, let go of there as Python ends, aborts it."""
    from pyarrow import BufferOutputStream

    copy = BufferOutputStream()
    copy.write(content)
    return copy.getvalue()
