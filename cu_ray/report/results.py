"""The folder of a sweep as its tables, checked before anything is read off them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_ray.errors import UserError, in_one_line
from cu_ray.places import Folder, Place, at, lasting
from cu_ray.report.terminal import RESCORED, metrics_in, read_table

if TYPE_CHECKING:
    import pandas as pd

SETTING = ("dataset", "model", "manipulation", "manipulation_size", "manipulation_settings", "train", "detection")


@dataclass(frozen=True, eq=False)
class Results:
    """The tables of one sweep and how far it is; `label` tells it from others that are shown with it.

    Trials have the metrics that `cu-ray rescore` computed besides, where it did.
    """

    folder: Place
    label: str
    trials: pd.DataFrame
    originals: pd.DataFrame
    best: pd.DataFrame
    status: dict[str, Any] | None  # what the sweep last said of itself; None where there is no such file
    num_not_rescored: int = 0  # trials with scores that lack the metrics that `cu-ray rescore` computed of others

    @property
    def unfinished(self) -> str | None:
        """How much is not there yet, in words; None where all is done."""
        return _unfinished(self.status, list(self.best["coverage"].dropna()))

    @property
    def can_be_replayed(self) -> bool:
        """Whether the sweep itself is in the folder, not its tables alone."""
        try:
            return bool((self.folder / "ledger").files())
        except PermissionError:  # others may see the tables only
            return False

    @property
    def sweep_command(self) -> str | None:
        """The command that asks for these results, in a shell; None without the sweep file, and at a URI, from where none is run.

        Where the sweep itself is there it goes on in that folder, else it begins anew where the file says.
        """
        if not isinstance(self.folder, Folder) or not self.folder.has("sweep.yaml"):
            return None
        there = ["--output", str(self.folder.path.parent)] if self.can_be_replayed else []
        return shlex.join(["cu-ray", "sweep", str(self.folder.path / "sweep.yaml"), *there])

    @property
    def name(self) -> str:
        """The folder's own name."""
        return _name(self.folder)


def read(where: Place | Path | str, label: str | None = None) -> Results:
    """The results of a sweep in its folder or at its URI. Raises UserError for none, damaged ones, those of a newer cu-ray."""
    folder = at(where)
    tables = {name: _table(folder / "tables", name) for name in ("trials", "originals", "best")}
    num_not_rescored = 0
    if (folder / "tables").has(f"{RESCORED}.parquet"):
        tables["trials"], num_not_rescored = _with_rescored(tables["trials"], _table(folder / "tables", RESCORED))
    shown = (label or _name(folder)).encode(errors="backslashreplace").decode()  # a path may hold what no text can
    return Results(folder, shown, **tables, status=_status(folder), num_not_rescored=num_not_rescored)


def read_all(given: Sequence[Place | Path | str]) -> list[Results]:
    """The results of several folders; they are told apart by their names, or by their paths where names are the same."""
    folders = [at(each) for each in given]
    names = [_name(folder) for folder in folders]
    several = len(set(names)) < len(names)
    if len({lasting(folder) for folder in folders}) < len(folders):
        raise UserError(f"a folder is given twice: {', '.join(map(str, folders))}")
    return [read(folder, str(folder) if several else name) for folder, name in zip(folders, names, strict=True)]


def unfinished_in(folder: Place) -> str | None:
    """How much is not there yet in a folder, in words, read off its status and `best.parquet` alone; None where all is done."""
    coverage = read_table(folder / "tables", "best")["coverage"].to_pylist()
    return _unfinished(_status(folder), [each for each in coverage if each is not None])


def unfinished_lines(results: Sequence[Results]) -> list[str]:
    """How much is not there yet, a line for each that is unfinished."""
    several = len(results) > 1
    return [f"{each.label}: {each.unfinished}" if several else each.unfinished for each in results if each.unfinished]


def _unfinished(status: dict[str, Any] | None, coverage: list[float]) -> str | None:
    if status is not None and status["trials_done"] < status["trials"]:
        return f"{status['trials_done']:,} of {status['trials']:,} trials are done"
    few = sum(share < 1 for share in coverage)
    return f"{few} of {len(coverage)} rows rest on unfinished searches" if few else None


def _with_rescored(trials: pd.DataFrame, rescored: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The trials with the metrics that they have not themselves, and how many of those with scores lack these."""
    lacking = [name for name in metrics_in(rescored.columns) if name not in trials or trials[name].isna().all()]
    if not lacking:
        return trials, 0
    new = [f"{prefix}{name}" for name in lacking for prefix in ("", "val_", "report_")]
    more = rescored.loc[rescored["trial_key"].notna(), ["trial_key", *new]]
    missing = (trials["status"] == "ok") & ~trials["trial_key"].isin(more["trial_key"])
    return trials.drop(columns=new, errors="ignore").merge(more, on="trial_key", how="left"), int(missing.sum())


def _name(folder: Place) -> str:
    return at(lasting(folder)).name


def _table(tables: Place, name: str) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = read_table(tables, name).to_pandas()
    except OSError as problem:
        raise UserError(
            f"{tables / f'{name}.parquet'} cannot be read: {in_one_line(problem)}. `cu-ray sweep` writes it anew"
        ) from None
    return frame


def _status(folder: Place) -> dict[str, Any] | None:
    try:
        said = json.loads(folder.read("status.json"))
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(said, dict) and all(isinstance(said.get(name), int) for name in ("trials", "trials_done"))
    return said if sound else None
