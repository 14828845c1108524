"""The folder of a sweep as its tables, checked before anything is read off them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_ray.errors import UserError, in_one_line
from cu_ray.places import Place, at, lasting
from cu_ray.report.terminal import read_table

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1  # of the tables: raised when a column changes its meaning
SETTING = ("dataset", "model", "manipulation", "manipulation_size", "manipulation_settings", "train", "detection")


@dataclass(frozen=True, eq=False)
class Results:
    """The tables of one sweep and how far it is; `label` tells it from others that are shown with it."""

    folder: Place
    label: str
    trials: pd.DataFrame
    originals: pd.DataFrame
    best: pd.DataFrame
    status: dict[str, Any] | None  # what the sweep last said of itself; None where there is no such file

    @property
    def unfinished(self) -> str | None:
        """How much is not there yet, in words; None where all is done."""
        if self.status is not None and self.status["trials_done"] < self.status["trials"]:
            return f"{self.status['trials_done']:,} of {self.status['trials']:,} trials are done"
        covered = self.best["coverage"].dropna()
        return None if (covered >= 1).all() else f"{(covered < 1).sum()} of {len(covered)} rows rest on unfinished searches"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return _name(self.folder)


def read(where: Place | Path | str, label: str | None = None) -> Results:
    """The results of a sweep in its folder or at its URI. Raises UserError for none, damaged ones, those of a newer cu-ray."""
    folder = at(where)
    tables = {name: _table(folder / "tables", name) for name in ("trials", "originals", "best")}
    return Results(folder, label or _name(folder), **tables, status=_status(folder))


def read_all(given: Sequence[Place | Path | str]) -> list[Results]:
    """The results of several folders; they are told apart by their names, or by their paths where names are the same."""
    folders = [at(each) for each in given]
    names = [_name(folder) for folder in folders]
    several = len(set(names)) < len(names)
    if len({lasting(folder) for folder in folders}) < len(folders):
        raise UserError(f"a folder is given twice: {', '.join(map(str, folders))}")
    return [read(folder, str(folder) if several else name) for folder, name in zip(folders, names, strict=True)]


def _name(folder: Place) -> str:
    return at(lasting(folder)).name


def _table(tables: Place, name: str) -> pd.DataFrame:
    path = tables / f"{name}.parquet"
    try:
        table = read_table(tables, name)
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {in_one_line(problem)}. `cu-ray sweep` writes it anew") from None
    said = (table.schema.metadata or {}).get(b"cu_ray_schema", b"").decode(errors="replace")
    if not said.isdigit():
        raise UserError(f"{path} is no table of cu-ray: its metadata have no cu_ray_schema")
    if int(said) > SCHEMA_VERSION:
        raise UserError(f"{path} has schema {said}; this cu-ray knows up to {SCHEMA_VERSION}: install the one that wrote it")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _status(folder: Place) -> dict[str, Any] | None:
    try:
        said = json.loads(folder.read("status.json"))
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(said, dict) and all(isinstance(said.get(name), int) for name in ("trials", "trials_done"))
    return said if sound else None
