"""Experiment trackers: one file each, with a class `Tracker` that is told of each trial as it ends.

A Tune trial of ours is a worker (docs/engine.md), so Tune's own logger callbacks would log workers. These log trials.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from cu_ray.errors import UserError
from cu_ray.sweep import tables
from cu_ray.types import Record

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}  # to be imported, by tracker
SETTINGS = (
    *("dataset", "model", "manipulation", "manipulation_size", "control", "seed", "method", "detection"),
    *("deletion_fraction", "deletion_size", "held_out", "unlearning_seed", "trial_key", "original_key"),
)
COSTS = ("unlearn_seconds", "images_forward", "images_backward")


@dataclass(frozen=True)
class Entry:
    """What a tracker is told of one trial, in the words of the tables; what is null there is left out."""

    sweep: str
    key: str
    name: str
    status: str  # ok, failed or diverged
    error: str | None
    settings: Mapping[str, bool | int | float | str]
    scores: Mapping[str, float]
    started: datetime | None
    finished: datetime | None


class Tracker(Protocol):
    """Made with the name of the sweep and a folder of its own; may raise anything."""

    def __init__(self, sweep: str, folder: Path) -> None: ...

    def take(self, entry: Entry) -> None:
        """Log one trial. Called in one thread, one at a time."""


def require(name: str) -> None:
    """Raise UserError where what the tracker needs is not installed."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise UserError(f"runtime.tracker: {name} is not installed: pip install 'cu-ray[{name}]', or leave the setting out")


def make(name: str, sweep: str, folder: Path) -> Tracker:
    """The tracker of that name."""
    made: Tracker = importlib.import_module(f"cu_ray.sweep.trackers.{name}").Tracker(sweep, folder)
    return made


def entry_of(sweep: str, record: Record) -> Entry:
    """What is told of a trial's record."""
    row = tables.trial_row(record, tables.setting_columns(sweep, record.spec["original"]["setting"]), None)
    named = [*SETTINGS, *sorted(name for name in row if name.startswith("hp_"))]
    fraction = "" if row["deletion_fraction"] is None else f" {row['deletion_fraction']:g}"
    return Entry(
        sweep,
        record.key,
        f"{row['method']}{fraction} seed {row['seed']} {record.key[:8]}",
        record.status,
        record.error,
        {name: _plain(row[name]) for name in named if row.get(name) is not None},
        {name: float(row[name]) for name in (*record.scores, *COSTS) if row.get(name) is not None},
        _time(row.get("started_at")),
        _time(row.get("finished_at")),
    )


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
