"""The desk at which workers wait for their jobs: an actor, and so a process; it imports nothing that it does not need."""

from __future__ import annotations

import asyncio
from collections import defaultdict

Packed = dict[str, str]  # a job as it travels to a worker


class Desk:
    """Where workers wait for their next job; None dismisses a worker."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, asyncio.Queue[Packed | None]] = defaultdict(asyncio.Queue)

    async def put(self, worker: str, job: Packed | None) -> None:
        """The worker's next job."""
        self._jobs[worker].put_nowait(job)

    async def take(self, worker: str) -> Packed | None:
        """The worker's next job, as soon as there is one."""
        return await self._jobs[worker].get()
