"""A ledger of immutable objects at a URI, `<number>-<writer>.log`, compacted now and then to `<number>+<writer>.log`.

What is to be written while one object is under way goes into the next: an object a record when there are few, many records
an object when there are many, never more than what came in while the last was written. A writer's objects bear its name, so
that one that was taken for dead and is not overwrites nothing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cu_ray.errors import PlaceFailed
from cu_ray.lease import Lease
from cu_ray.places import Place, patiently
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.ledger.lines import line
from cu_ray.sweep.ledger.segments import Segment, packed

COMPACT_AT = 64  # small objects
PAUSES = (1.0, 10.0, 30.0, 60.0)  # seconds after which an object that could not be written is written again
OBJECT_BYTES = 1 << 20  # of lines, from which an object is not compacted any more


@dataclass(frozen=True)
class Waiting:
    """A line that is to be written, and the evidence that comes before it."""

    line: bytes
    file: evidence.File | None
    future: Future[None]


class Batcher:
    """Writes lines in their order, by a thread of its own, which sits out an outage of two minutes or so.

    What went wrong there is raised by the next call.
    """

    def __init__(self, place: Place, segments: list[Segment], lease: Lease) -> None:
        self._place, self._lease = place, lease
        self._number = segments[-1].number if segments else 0
        self._small: list[tuple[str, bytes]] = []  # the last objects, with their lines
        for segment in reversed(segments):
            if segment.garbage or len(segment.lines) > OBJECT_BYTES:
                break
            self._small.insert(0, (segment.name, segment.lines))
        self._waiting: list[Waiting] = []
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def write(self, payload: bytes, file: evidence.File | None = None) -> Future[None]:
        """Put a line behind all earlier ones; the future is done when it is in an object, and its evidence in one before."""
        future: Future[None] = Future()
        with self._changed:
            self._raise_error()
            self._waiting.append(Waiting(line(payload), file, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Return when everything is written."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while batch := self._next():
            self._number += 1
            try:
                patiently(functools.partial(self._write, batch), PlaceFailed, PAUSES, self._pause)
            except BaseException as error:  # raised again where the driver next calls or waits
                self._fail(error, batch)
                return
            for each in batch:
                each.future.set_result(None)
            if len(self._small) >= COMPACT_AT:
                with contextlib.suppress(Exception):  # tried again after the next object
                    self._compact()

    def _next(self) -> list[Waiting]:
        """All that waits, as soon as something does; nothing in the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            batch, self._waiting = self._waiting, []
            return batch

    def _fail(self, error: BaseException, batch: list[Waiting]) -> None:
        with self._changed:
            self._error = error
            batch, self._waiting = batch + self._waiting, []
        for each in batch:
            each.future.set_exception(error)

    def _keep(self, files: list[evidence.File]) -> None:
        if files:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda file: evidence.write(self._place, file), files))

    def _pause(self, seconds: float) -> None:
        """Wait so long, or until nothing more is to come: then somebody waits for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)

    def _write(self, batch: list[Waiting]) -> None:
        """Evidence, then the lines as one object. Done again it comes to the same."""
        self._lease.require()
        self._keep([each.file for each in batch if each.file is not None])
        self._put(b"".join(each.line for each in batch))

    def _put(self, lines: bytes) -> None:
        name = f"{self._number:09d}-{self._lease.token}.log"
        self._place.write(name, packed(lines))
        self._small.append((name, lines))

    def _compact(self) -> None:
        """One object for the small ones, in the place of the last of them. A crash leaves both: the same records again."""
        lines = b"".join(each for _, each in self._small)
        name = f"{self._number:09d}+{self._lease.token}.log"
        self._place.write(name, packed(lines))
        replaced = [each for each, _ in self._small if each != name]
        self._small = [] if len(lines) > OBJECT_BYTES else [(name, lines)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self._place.delete, replaced))
