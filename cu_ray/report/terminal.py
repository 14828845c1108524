"""The table of a sweep on the terminal, from `best.parquet` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from cu_ray.errors import UserError, did_you_mean, in_one_line
from cu_ray.places import Place, at, owned_by_arrow
from cu_ray.report.statistics import summarise

SCHEMA_VERSION = 1  # of the tables: raised when a column changes its meaning
RESCORED = "rescored"  # the table that `cu-ray rescore` writes
COSTS = ("unlearn_seconds", "images_forward", "images_backward")  # means in `best` that are no metrics


def rows_of(tables: Place | Path, name: str = "best") -> list[dict[str, Any]]:
    """The rows of a table. Raises UserError as `read_table` does."""
    rows: list[dict[str, Any]] = read_table(tables, name).to_pylist()
    return rows


def read_table(tables: Place | Path, name: str) -> pa.Table:
    """A table as it is in its file. Raises UserError for none, a damaged one, one of a newer cu-ray or of another program."""
    place, file = at(tables), f"{name}.parquet"
    try:
        content = place.read(file)
    except FileNotFoundError:
        if not place.files() and (place.parent.has("status.json") or (place.parent / "ledger").files()):
            raise UserError(
                f"there are no tables in {place} yet: the same `cu-ray sweep` command goes on and writes them"
            ) from None
        raise UserError(f"there is no {place / file}: is this in the folder of a sweep (results/NAME) that has run?") from None
    try:
        table = pq.ParquetFile(pa.BufferReader(owned_by_arrow(content))).read(use_threads=False)
    except (OSError, pa.ArrowInvalid) as problem:
        command = "rescore" if name == RESCORED else "sweep"
        raise UserError(f"{place / file} cannot be read: {in_one_line(problem)}. `cu-ray {command}` writes it anew") from None
    said = (table.schema.metadata or {}).get(b"cu_ray_schema", b"").decode(errors="replace")
    if not said.isdigit():
        raise UserError(f"{place / file} is no table of cu-ray: its metadata have no cu_ray_schema")
    if int(said) > SCHEMA_VERSION:
        raise UserError(
            f"{place / file} has schema {said}; this cu-ray knows up to {SCHEMA_VERSION}: install the one that wrote it"
        )
    return table


def best_rows(tables: Place | Path, rule: str | None) -> list[dict[str, Any]]:
    """The best of each study under one selection rule, settings together; by default the rule that the search followed.

    With the metrics that `cu-ray rescore` computed, where it did.
    """
    rows = _with_rescored(tables, rows_of(tables))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    rule = rule or next((row["search_objective"] for row in rows if row["search_objective"]), "oracle_validation")
    if rule not in rules:
        raise UserError(f"{rule!r} is no selection rule of these tables. {did_you_mean(rule, rules)}")
    shown = [row for row in rows if row["rule"] == rule]
    cells = cells_of(shown)
    groups = list(dict.fromkeys(cells))
    return [row for _, row in sorted(zip(cells, shown, strict=True), key=lambda pair: groups.index(pair[0]))]


def metrics_of(rows: list[dict[str, Any]]) -> list[str]:
    """The metrics that have a value in some row."""
    names = [column.removesuffix("_mean") for column in rows[0] if column.endswith("_mean")]
    return [name for name in names if name not in COSTS and any(row[f"{name}_mean"] is not None for row in rows)]


def metrics_in(columns: Iterable[str]) -> list[str]:
    """The metrics among the columns of trials: what is there on the whole test set and on both of its halves."""
    there = dict.fromkeys(columns)
    return [name for name in there if {f"val_{name}", f"report_{name}"} <= there.keys()]


def _with_rescored(tables: Place | Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with means and deviations of metrics besides; none of a row that reports a trial which was not rescored."""
    if not at(tables).has(f"{RESCORED}.parquet"):
        return rows
    scores = {each["trial_key"]: each for each in rows_of(tables, RESCORED)}
    there = {name for name in rows[0] for row in rows if row[name] is not None}
    names = [name for name in metrics_in(next(iter(scores.values()), {})) if f"{name}_mean" not in there]
    return [row | _over_trials(row, names, scores) for row in rows]


def _over_trials(row: dict[str, Any], names: list[str], scores: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    prefix = "report_" if row["reports_on"] == "report half" else ""
    there = [scores[key] for key in row["trial_keys"]] if scores.keys() >= set(row["trial_keys"]) else []
    summaries = {name: summarise([each[prefix + name] for each in there]) for name in names}
    return {f"{name}_{part}": getattr(each, part) for name, each in summaries.items() for part in ("mean", "std")}


def best_table(tables: Place | Path, rule: str | None = None) -> Table:
    """Method x deletion fraction under one selection rule, means over seeds; by default the rule that the search followed."""
    shown = best_rows(tables, rule)
    metrics, cells = metrics_of(shown), cells_of(shown)
    several = len(set(cells)) > 1
    rule, reports_on = shown[0]["rule"], shown[0]["reports_on"]
    table = Table(
        title=f"Best of each study by {rule}, on the {reports_on}: mean (standard deviation) over seeds", title_justify="left"
    )
    if several:
        table.add_column("setting")
    for name in ("method", "fraction", *metrics, "seconds", "n"):
        table.add_column(name.rpartition(":")[2], justify="left" if name == "method" else "right")
    previous: tuple[Any, ...] = ()
    for cell, row in zip(cells, shown, strict=True):
        if previous and previous != (cell, method_of(row)):
            table.add_section()
        previous = (cell, method_of(row))
        values = [_number(row[f"{name}_mean"], row[f"{name}_std"]) for name in metrics]
        seconds = row["unlearn_seconds_mean"]
        line = [
            method_of(row),
            f"{row['deletion_fraction']:g}",
            *values,
            "-" if seconds is None else f"{seconds:.1f}",
            str(row["n"]),
        ]
        table.add_row(*([cell] if several else []), *line)
    return table


def cells_of(rows: list[dict[str, Any]]) -> list[str]:
    """The setting of each row; where several are alike but in the manipulation's settings, detection or recipe, these too."""
    plain = [f"{row['dataset']} {row['model']} {row['manipulation']} {row['manipulation_size']}" for row in rows]
    settings = [
        {
            **json.loads(row["manipulation_settings"]),
            "detection": row["detection"],
            **{f"train.{name}": value for name, value in json.loads(row["train"]).items()},
        }
        for row in rows
    ]
    values: dict[tuple[str, str], set[str]] = {}  # by cell and name
    for cell, own in zip(plain, settings, strict=True):
        for name in own:
            values.setdefault((cell, name), set()).add(repr(own[name]))
    cells = []
    for cell, own in zip(plain, settings, strict=True):
        differing = [f"{name}={own[name]}" for name in own if len(values[cell, name]) > 1]
        cells.append(f"{cell} {', '.join(differing)}".rstrip())
    return cells


def method_of(row: dict[str, Any]) -> str:
    """The method; of a control, what was done to the original's training data instead of the manipulation."""
    return row["control"].replace("_", " ") if row.get("control") else str(row["method"])


def _number(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" ({std:.3f})" if std is not None else "")
