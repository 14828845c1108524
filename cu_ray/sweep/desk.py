"""The desk at which workers wait for their jobs: an actor, and so a process; it imports nothing that it does not need."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

Packed = dict[str, str]  # a job as it travels to a worker


class Desk:
    """Where workers wait for their next job; None dismisses a worker.

    datasets: references to the data sets in the object store, by content, which live as long as the desk.
    """

    def __init__(self, datasets: dict[str, Any]) -> None:
        self._datasets = datasets
        self._jobs: defaultdict[str, asyncio.Queue[Packed | None]] = defaultdict(asyncio.Queue)

    async def datasets(self) -> dict[str, Any]:
        """The references to the data sets."""
        return self._datasets

    async def put(self, worker: str, job: Packed | None) -> None:
        """The worker's next job."""
        self._jobs[worker].put_nowait(job)

    async def take(self, worker: str) -> Packed | None:
        """The worker's next job, as soon as there is one."""
        return await self._jobs[worker].get()
