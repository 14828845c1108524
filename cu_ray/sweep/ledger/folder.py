"""A ledger in a folder of this machine: one segment that is appended to, earlier ones rewritten in batches.

<folder>/000001.log  000002.log ...  lock
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from concurrent.futures import Future
from typing import IO

from cu_ray.errors import UserError
from cu_ray.places import Folder, sync
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.ledger.lines import line
from cu_ray.sweep.ledger.segments import Segment, packed

ASKED_IN = 0.1  # seconds
SEGMENT_BYTES = 1 << 20  # of lines: some 400 trials


class Lock:
    """The right to write to a folder, which ends with its process at the latest. Raises UserError where another has it.

    named: what the folder is to a user, who may give another one with the option.
    """

    def __init__(self, place: Folder, named: Folder | None = None, option: str = "--output") -> None:
        named = named or place
        place.path.mkdir(parents=True, exist_ok=True)
        self._file = open(place.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (held until close)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # who only asks whether it is held has it for a moment
                time.sleep(ASKED_IN)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._file.fileno()).st_nlink:  # who had it took it away just now
                raise BlockingIOError
        except (BlockingIOError, PermissionError) as error:  # the latter over CIFS
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"{named} is being written by {owner}: wait for it or stop it") from error
        except OSError as error:
            self._file.close()
            told = f"{named} lies on a file system without locks ({error.strerror}): give another place with {option}"
            raise UserError(told) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}")
        self._file.flush()

    def close(self) -> None:
        """Let others write."""
        self._file.close()


class Appender:
    """Appends lines to the last segment, each on the disk before the next."""

    def __init__(self, place: Folder, segments: list[Segment]) -> None:
        self._place = place
        place.delete_unfinished()
        evidence.delete_unfinished(place)
        for segment in segments:
            if segment.garbage:
                _set_aside(place, segment)
        begun = [each for each in segments[-1:] if not each.is_packed and len(each.lines) <= SEGMENT_BYTES]
        if begun and begun[0].name != f"{begun[0].number:06d}.log":  # a copy, as a synchronised folder leaves
            begun = []
        for segment in segments[: len(segments) - len(begun)]:
            if not segment.is_packed:
                place.write(segment.name, packed(segment.lines))
        self._number = begun[0].number if begun else segments[-1].number + 1 if segments else 1
        self._lines = bytearray(begun[0].lines if begun else b"")
        self._file = self._opened()

    def write(self, payload: bytes, file: evidence.File | None = None) -> Future[None]:
        """Append a line, after its evidence; both are on the disk when this returns."""
        if file is not None:
            evidence.write(self._place, file)
        if len(self._lines) > SEGMENT_BYTES:
            self._begin_next()
        written = line(payload)
        self._file.write(written)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines += written
        return finished()

    def close(self) -> None:
        """End the last segment's use."""
        self._file.close()

    def _begin_next(self) -> None:
        """Rewrite the full segment in batches, in one rename, and begin another."""
        self._file.close()
        self._place.write(self._segment, packed(bytes(self._lines)))
        self._number, self._lines = self._number + 1, bytearray()
        self._file = self._opened()

    @property
    def _segment(self) -> str:
        return f"{self._number:06d}.log"

    def _opened(self) -> IO[bytes]:
        file = open(self._place.path / self._segment, "ab")  # noqa: SIM115 (closed by close)
        sync(self._place)  # a new file's name has to last, too
        return file


def finished() -> Future[None]:
    """What is done already."""
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _set_aside(place: Folder, segment: Segment) -> None:
    """Move what is no line of a segment into a file beside it."""
    with open(place.path / segment.set_aside_in, "ab") as aside:
        aside.write(segment.garbage)
        aside.flush()
        os.fsync(aside.fileno())
    place.write(segment.name, segment.intact)
