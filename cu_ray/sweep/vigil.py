"""Notices within two seconds that Ray itself has ended, and gets the process out of it in a few more.

Ray alone ends a process whose raylet was killed after 12 s, one whose gcs was killed after 60 s, both without a word.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cu_ray.errors import RayStopped
from cu_ray.sweep import process
from cu_ray.sweep.remains import Remains

LOOK_EVERY = 0.5  # seconds
TURNS = 10  # of them between looks at what processes Ray has
GRACE = 4.0  # seconds that the main thread has to leave Ray by itself where that has ended
LEFT_WITHIN = 20.0  # seconds that it has where Ray has not: a server that does not answer holds it for ever
FREED_IN = 2.0  # seconds that it then takes once nothing of Ray is left
LAST_WORDS_WITHIN = 30.0  # seconds: of tables at a URI, say, that does not answer


class RayIsGone(BaseException):
    """Ray has ended. No Exception: Tune would wait for its workers, which are gone."""


@dataclass(frozen=True)
class Server:
    """A server of Ray. It has ended when it was silent for longer than `patience` seconds."""

    name: str
    address: str
    log: str
    patience: float

    def answers(self) -> bool:
        """Whether something listens at its address, as far as that can be known."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
        except OSError as error:
            return error.errno in (errno.EMFILE, errno.ENFILE)  # no file left here: that says nothing of Ray
        return True


class Vigil:
    """Looks at Ray's servers in a thread of its own, while the context lasts.

    remains: of the Ray, where it was started here, to be ended; leave: called at the end of the context; last_words: called with
    the message where the main thread hangs in a Ray that has ended, before the process ends with exit code 1.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        *,
        remains: Remains | None,
        leave: Callable[[], object],
        last_words: Callable[[str], object],
    ) -> None:
        self._servers, self._remains, self._leave, self._last_words = list(servers), remains, leave, last_words
        self._message: str | None = None
        self._over, self._left = threading.Event(), threading.Event()  # the leaving has begun, has ended
        self._deciding, self._ending = threading.Lock(), False  # whether the process is ended here

    def require(self) -> None:
        """Raise RayIsGone where a server has ended; the context turns it into RayStopped."""
        if self._message is not None:
            raise RayIsGone(self._message)

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="vigil", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with process.signals_wait() as came:  # Ray that is left by half ends the process at the next call, without a word
                message = self._message
                if message is None:
                    self._over.set()  # from here on servers end because we leave
                try:
                    self._leave()
                finally:
                    self._out()
                    if message is not None:
                        self._end_the_rest()
        finally:
            self._over.set()
            self._out()
        if message is not None and kind is not KeyboardInterrupt:
            raise RayStopped(message) from None
        if came and kind is None:
            raise KeyboardInterrupt

    def _out(self) -> None:
        """Say that the main thread has left; it goes no further where the process is being ended."""
        with self._deciding:
            self._left.set()
        if self._ending:
            threading.Event().wait()

    def _watch(self) -> None:
        gone = self._first_to_end()
        if gone is not None:
            self._message = f"Ray's {gone.name} ended: see {gone.log}. Nothing is lost; the same command goes on from there."
            if not self._left.wait(GRACE):
                self._end(self._message)
        elif not self._left.wait(LEFT_WITHIN):
            self._end_the_rest()  # which whoever hangs in Ray waits for
            if self._remains is None or not self._left.wait(GRACE):
                self._end(f"Ray did not end within {LEFT_WITHIN:g} s. Nothing is lost; the same command goes on from there.")

    def _first_to_end(self) -> Server | None:
        """The first server that ends; None where the context does before."""
        heard = {server: time.monotonic() for server in self._servers}
        for turn in itertools.count(1):
            if self._over.wait(LOOK_EVERY):
                break
            for server in self._servers:
                if server.answers():
                    heard[server] = time.monotonic()
                elif not self._over.is_set() and time.monotonic() - heard[server] > server.patience:
                    return server
            if self._remains is not None and turn % TURNS == 0:
                self._remains.look()
        return None

    def _end(self, message: str) -> None:
        """End the process, unless the main thread gets out of Ray once the rest of that has ended."""
        self._end_the_rest()
        self._left.wait(FREED_IN)
        with self._deciding:
            if self._left.is_set():
                return
            self._ending = True
        late = threading.Timer(LAST_WORDS_WITHIN, os._exit, [1])
        late.daemon = True
        late.start()
        try:
            self._last_words(message)
        finally:
            os._exit(1)

    def _end_the_rest(self) -> None:
        if self._remains is not None:
            self._remains.end()
