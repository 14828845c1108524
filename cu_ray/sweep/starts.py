"""Workers that are starting: whether more are to be asked for, and when it is clear that none comes up."""

from __future__ import annotations

import math
import time

MOST_FAILED_STARTS = 5  # of workers, one after another, before it is clear that none will come up now
START_AGAIN_AFTER = 60.0  # seconds until one more may try, then twice as long each time: a node may be broken, others not
MOST_EXCUSED = 12  # times that starts may fail for a reason outside the worker, before they count all the same
AT_ONCE = 10.0  # seconds between the ends of workers that end together


class Starts:
    """What is known of workers from when they are asked for until they are here.

    seconds: how long those who are starting are waited for where others die at it.
    """

    def __init__(self, seconds: float = START_AGAIN_AFTER) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}  # workers that are asked for and not here yet
        self._failed, self._last_failed = 0, -math.inf  # one after another
        self._tries = 0  # asked for since it is clear that none comes up
        self._excused, self._last_excused = 0, -math.inf  # times that workers died for whatever reason, since one came up

    @property
    def may_come(self) -> bool:
        """Whether workers are starting, on other nodes perhaps, that may come up yet."""
        now = time.monotonic()
        return any(now < max(since, self._last_failed) + self._seconds for since in self._since.values())

    @property
    def exhausted(self) -> bool:
        """Whether one after another has died and nobody is starting any more who may come up."""
        return self._failed >= MOST_FAILED_STARTS and not self.may_come

    @property
    def takes_workers(self) -> bool:
        """Whether a further worker may start; where one after another dies at its start, one at a time and ever more rarely."""
        pause = START_AGAIN_AFTER * 2 ** min(self._tries, 6)
        alone = not self.may_come and time.monotonic() > self._last_failed + pause
        return self._failed < MOST_FAILED_STARTS or alone

    def asked_for(self, name: str) -> None:
        """A worker is going to start."""
        self._since[name] = time.monotonic()
        self._tries += self._failed >= MOST_FAILED_STARTS

    def came(self, name: str) -> None:
        """A worker is up."""
        self._since.pop(name, None)
        self._failed = self._tries = self._excused = 0

    def began(self, name: str) -> float:
        """Since when a worker that is gone was starting, which it is no more; now, where it was not."""
        return self._since.pop(name, time.monotonic())

    def failed(self, *, excused: bool) -> None:
        """A worker died while it started; excused: its node went, or memory was short, which counts where it is so too often."""
        now = time.monotonic()
        if now >= self._last_excused + AT_ONCE:  # all that end at once are one
            self._excused, self._last_excused = self._excused + 1, now
            excused = excused and self._excused <= MOST_EXCUSED
        if not excused:
            self._failed, self._last_failed = self._failed + 1, now

    def may_again(self) -> None:
        """The last worker that was up leaves: where it came up another may."""
        self._failed = self._tries = 0
