"""TensorBoard: a folder of event files a trial; `tensorboard --logdir` shows hyperparameters against scores (HPARAMS)."""

from __future__ import annotations

from pathlib import Path

from cu_ray.sweep.trackers import Entry


class Tracker:
    """Writes into the folder."""

    def __init__(self, sweep: str, folder: Path) -> None:
        self._folder = folder

    def take(self, entry: Entry) -> None:
        """One session of hyperparameters and scores."""
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        settings = {**entry.settings, "status": entry.status} | ({"error": entry.error} if entry.error else {})
        with SummaryWriter(logdir=str(self._folder / entry.name.replace(" ", "-"))) as writer:
            for summary in hparams(settings, dict(entry.scores)):
                writer.file_writer.add_summary(summary)
            for name, value in entry.scores.items():
                writer.add_scalar(name, value, 0)
