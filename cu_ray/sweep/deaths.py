"""How workers end that were not dismissed, and whether the job that they were at is to blame."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

from cu_ray.sweep.ready import Job
from cu_ray.sweep.watchdog import GRACE, took_too_long

MAX_RETRIES = 3  # of a job whose worker died
MOST_LOST = 12  # workers that a job may lose with their nodes before it is to blame
NODE_MISSED_WITHIN = 90.0  # seconds from the end of a worker until Ray knows that its node had gone
NOTICED_WITHIN = 60.0  # seconds from the end of a worker by its time limit until it is heard of


@dataclass(frozen=True)
class Death:
    """How a worker ended that was not dismissed, as far as Ray says it."""

    why: str | None = None
    of_memory: bool = False  # Ray ended it as the memory of its node ran low
    with_node: bool = False
    node: str | None = None  # its identity, where Ray names it

    @classmethod
    def told(cls, text: str) -> Death:
        """What an error of Ray says."""
        lines = text.strip().splitlines()
        of_memory = next((line for line in lines if "running low on memory" in line), None)
        if of_memory is None:
            return cls(lines[-1] if lines else None, with_node="its node has died" in text)
        named = re.search(", ID: ([0-9a-f]+)", of_memory)
        return cls(of_memory.replace(named[0], "") if named else of_memory, of_memory=True, node=named and named[1])


class Deaths:
    """Workers that died at each job. A job need not be the reason where the node went, or its memory was short."""

    def __init__(self, trial_seconds: float) -> None:
        self._trial_seconds = trial_seconds
        self._by_job: dict[str, list[tuple[Death, str | None, float]]] = {}  # on which node, and when
        self._gone: dict[str, float] = {}  # nodes that are no more, and since when that is known

    @property
    def gone(self) -> dict[str, float]:
        """The nodes that are no more, and since when that is known."""
        return self._gone

    def reason(self, job: Job, death: Death, node: str | None, seconds: float) -> str | None:
        """Why the job, so long at work when its worker died, has failed; None where it is to be tried again."""
        now, deaths = time.monotonic(), self._by_job.setdefault(job.key, [])
        deaths.append((death, node, now))
        late = self._trial_seconds < seconds < self._trial_seconds + GRACE + NOTICED_WITHIN
        if late and not self._is_excused(death, node, now):
            return f"{took_too_long(job.spec, self._trial_seconds)}, and its worker had to be ended"
        its_own = sum((0.5 if each[0].of_memory else 1) for each in deaths if each[0].of_memory or not self._is_excused(*each))
        if its_own <= MAX_RETRIES and len(deaths) <= MOST_LOST:
            return None
        what = f"out of memory, or a crash in native code{f': {death.why}' if death.why else ''}"
        return f"its worker died {len(deaths)} times ({what if its_own > MAX_RETRIES else 'each time with its node'})"

    def _is_excused(self, death: Death, node: str | None, when: float) -> bool:
        return death.of_memory or death.with_node or self._gone.get(node or "", math.inf) < when + NODE_MISSED_WITHIN
