"""The agenda as Ray Tune sees it: a searcher that one Tuner asks for jobs, and a callback that hears of ended trials.

Tune pickles both into its own experiment folder. Nothing is read back from there, so both pickle as nothing.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from cu_ray.sweep.agenda import Agenda, Job
from cu_ray.sweep.trainable import pack, unpack
from cu_ray.types import Record

MAX_RETRIES = 3  # of a job whose worker died


class AgendaSearcher(Searcher):
    """Hands out the agenda's jobs as Tune trials."""

    def __init__(self, agenda: Agenda, heard: Callable[[Job, Record | None], None], deadline: float = math.inf) -> None:
        super().__init__()
        self._agenda, self._heard, self._deadline = agenda, heard, deadline
        self._jobs: dict[str, Job] = {}  # by Tune's trial id
        self._deaths: Counter[str] = Counter()  # of workers, by the key of the job they were at

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """There is nothing to set."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next job; None where all that is left waits for a running one; FINISHED in the end and after the deadline."""
        if self._agenda.done or time.monotonic() > self._deadline:
            return str(Searcher.FINISHED)
        job = self._agenda.next()
        if job is None:
            return None
        self._jobs[trial_id] = job
        self._heard(job, None)
        return pack(job)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in a job's record; where its worker died, give the job back, and after too many deaths a record that says so.

        Tune's own retries are not used: they leave out a trial whose worker dies while it is handed over.
        """
        job = self._jobs.pop(trial_id)
        if result is None or error or "record" not in result:
            self._deaths[job.key] += 1
            if self._deaths[job.key] <= MAX_RETRIES:
                self._agenda.give_back(job)
                return
            reason = f"its worker died {MAX_RETRIES + 1} times (out of memory, or a crash in native code)"
            record = Record(job.kind, job.key, job.spec.describe(), "failed", reason)
        else:
            record = unpack(result)
        if record.key != job.key:  # it understood the job otherwise: what it made is not what was asked for
            reason = f"its worker runs another version of cu-ray or of a plug-in ({record.facts.get('host', 'host unknown')})"
            record = Record(job.kind, job.key, job.spec.describe(), "failed", reason)
        self._agenda.complete(record)
        self._heard(job, record)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Housekeeping(tune.Callback):
    """Deletes what Tune leaves on the disk of each ended trial, then does what else is to be done now and then."""

    def __init__(self, *after: Callable[[], None]) -> None:
        self._after = after

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended."""
        shutil.rmtree(trial.local_path or "", ignore_errors=True)
        for act in self._after:
            act()

    def __getstate__(self) -> dict[str, Any]:
        return {}
