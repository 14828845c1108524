"""MLflow: an experiment a sweep, a run a trial, where `MLFLOW_TRACKING_URI` says."""

from __future__ import annotations

import time
from pathlib import Path

from cu_ray.sweep.trackers import Entry


class Tracker:
    """Needs no folder: MLflow knows where its store is."""

    def __init__(self, sweep: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(sweep)
        self._experiment = found.experiment_id if found else self._client.create_experiment(sweep)

    def take(self, entry: Entry) -> None:
        """A run with settings as parameters and scores as metrics."""
        from mlflow.entities import Metric, Param

        started, finished = (int(1000 * (each.timestamp() if each else time.time())) for each in (entry.started, entry.finished))
        tags = {"trial_key": entry.key, "status": entry.status} | ({"error": entry.error} if entry.error else {})
        run = self._client.create_run(self._experiment, start_time=started, tags=tags, run_name=entry.name).info.run_id
        self._client.log_batch(
            run,
            params=[Param(name, str(value)) for name, value in entry.settings.items()],
            metrics=[Metric(name, value, finished, 0) for name, value in entry.scores.items()],
        )
        self._client.set_terminated(run, "FINISHED" if entry.status == "ok" else "FAILED", finished)
