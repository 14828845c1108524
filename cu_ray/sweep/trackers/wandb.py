"""Weights & Biases: a group a sweep, a run a trial, in the project of `WANDB_PROJECT` (else cu-ray)."""

from __future__ import annotations

import os
from pathlib import Path

from cu_ray.sweep.trackers import Entry

LOGIN_SECONDS = 1  # nobody is at the prompt that asks for a key: it is given beforehand, or there is none


class Tracker:
    """Keeps what it sends, or with WANDB_MODE=offline what `wandb sync` is to send, in the folder, which is called wandb."""

    def __init__(self, sweep: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def take(self, entry: Entry) -> None:
        """A run with settings as its config and scores as its summary."""
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cu-ray"),
            group=entry.sweep,
            name=entry.name,
            id=entry.key[:32],
            tags=[entry.status],
            config=dict(entry.settings),
            notes=entry.error,
            dir=str(self._folder.parent),  # wandb makes its own `wandb` there
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", login_timeout=LOGIN_SECONDS, x_disable_stats=True),
        )
        run.log(dict(entry.scores))
        run.finish(exit_code=0 if entry.status == "ok" else 1)
