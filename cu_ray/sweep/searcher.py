"""Workers as Ray Tune sees them: a searcher whose suggestions are workers and whose results are records of jobs.

Tune pickles searcher, callback and stopper into its own experiment folder. Nothing is read back from there: they pickle as
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from cu_ray.sweep.deaths import Death
from cu_ray.sweep.dispatch import Dispatch
from cu_ray.sweep.trainable import evidence_in, unpack


class Faults:
    """The first exception of our own code that Tune is told of. Of some it keeps the text only."""

    def __init__(self) -> None:
        self.first: Exception | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """A context whose exception is remembered, and goes on."""
        try:
            yield
        except Exception as problem:
            self.first = self.first or problem
            raise


class WorkerSearcher(Searcher):
    """Asks Tune for workers, as many as there is room for, and tells the dispatch what they do."""

    def __init__(self, dispatch: Dispatch, room: Callable[[], int], faults: Faults) -> None:
        super().__init__()
        self._dispatch, self._room, self._faults = dispatch, room, faults
        self._workers: set[str] = set()  # asked for, and not gone yet

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """There is nothing to set."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A further worker where there is room for one; FINISHED in the end (for None Tune would wait)."""
        if self._dispatch.over:
            return str(Searcher.FINISHED)
        room = self._room()
        if len(self._workers) >= min(room, max(1, room - self._dispatch.num_missing)) or not self._dispatch.takes_workers:
            return None
        self._workers.add(trial_id)
        self._dispatch.asked_for(trial_id)
        return {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A worker arrived or ended a job."""
        with self._faults.noted():
            record = unpack(result)
            if record is None:
                if changed := result.get("changed"):
                    why = f"a worker that has just started on {result['host']} would run other code than those before it"
                    self._dispatch.give_up(f"{', '.join(changed)} changed while the sweep ran", why)
                self._dispatch.arrived(trial_id, result.get("node"))
            else:
                self._dispatch.ended(trial_id, record, evidence_in(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A worker left or died. Tune's own retries are not used: they leave out one that dies while it starts."""
        self._workers.discard(trial_id)
        if not error:  # else the callback is told right after this, and why
            with self._faults.noted():
                self._dispatch.left(trial_id)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class NowAndThen(tune.Callback):
    """Calls its functions on every turn of Tune's loop, at least ten times a second; tells the dispatch of workers that died."""

    def __init__(self, dispatch: Dispatch, faults: Faults, *functions: Callable[[], object]) -> None:
        self._dispatch, self._faults, self._functions = dispatch, faults, functions

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """A turn of the loop."""
        for function in self._functions:
            function()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died, and its error says why."""
        error = Path(trial.error_file or "none")
        text = error.read_text(encoding="utf-8", errors="replace") if error.exists() else ""
        with self._faults.noted():
            self._dispatch.left(str(trial.trial_id), Death.told(text))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class WhenOver(tune.Stopper):
    """Ends the Tune run when all is done and every worker that came has left; those still waiting for room are let go."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the run ends now."""
        return self._dispatch.over and not self._dispatch.num_awaited

    def __getstate__(self) -> dict[str, Any]:
        return {}
