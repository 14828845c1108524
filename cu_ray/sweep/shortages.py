"""How many workers the memory of each node suffices for, after Ray ended some as it ran low."""

from __future__ import annotations

import math
import time
from collections.abc import Container
from dataclasses import dataclass

SHORT_FOR = 600.0  # seconds until a node gets one more of the workers that its memory did not suffice for; then twice as long
AT_ONCE = 10.0  # seconds between the ends of workers that Ray ends together


@dataclass
class Shortage:
    """How many workers a node's memory allows; one more is allowed each time a pause has passed."""

    allowed: int = 0
    lost: int = 0
    times: int = 0
    since: float = -math.inf
    last_end: float = -math.inf  # of a worker for it, also of one that was alone there

    @property
    def _given_back(self) -> int:
        pause = SHORT_FOR * 2 ** min(max(0, self.times - 1), 6)
        return int(min((time.monotonic() - self.since) / pause, self.lost))

    @property
    def missing(self) -> int:
        """How many fewer than before by now."""
        return self.lost - self._given_back

    @property
    def most(self) -> int:
        """How many may be at work by now."""
        return self.allowed + self._given_back

    def happened(self, left: int, *, together: bool) -> None:
        """One more ended, and so many are left there. together: with others, at once."""
        most = self.most if self.missing else left + 1  # of those left some may have had no job
        self.lost, self.allowed = self.missing + 1, max(1, min(left, most - 1))
        self.times, self.since = self.times + (not together), time.monotonic()


class Shortages:
    """The shortages of all nodes of a run, by node."""

    def __init__(self) -> None:
        self._by_node: dict[str | None, Shortage] = {}

    def clear(self) -> None:
        """Begin anew: there are fewer workers now."""
        self._by_node.clear()

    def note(self, node: str | None, began: float, left: int) -> tuple[bool, bool]:
        """Ray ended a worker that began then, and so many are left: whether others were there or ended too; whether at once."""
        shortage = self._by_node.setdefault(node, Shortage())
        together = began <= shortage.last_end and time.monotonic() < shortage.last_end + AT_ONCE
        shortage.last_end = time.monotonic()
        if left or together:
            shortage.happened(left, together=together)
        return bool(left) or together, together

    def allows(self, node: str | None, num_at_work: int) -> bool:
        """Whether one more may be at work there beside so many."""
        shortage = self._by_node.get(node)
        return shortage is None or not shortage.missing or num_at_work < shortage.most

    def missing(self, staying: dict[str | None, int], gone: Container[str | None]) -> int:
        """How many fewer workers than there is room for are to be up on the nodes that are not gone.

        Of those that stay on a node, by node, some may be up without being allowed to work: these are missing already.
        """
        return sum(
            max(0, shortage.missing - max(0, staying.get(node, 0) - shortage.most))
            for node, shortage in self._by_node.items()
            if node not in gone
        )
