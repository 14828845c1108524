"""The table of a sweep on the terminal, from `best.parquet` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from cu_ray.errors import UserError, did_you_mean
from cu_ray.places import Place, at, owned_by_arrow

COLUMNS = ("acc_corr", "acc_retain", "asr", "confusion_rate")


def rows_of(tables: Place | Path, name: str = "best") -> list[dict[str, Any]]:
    """The rows of a table. Raises UserError where there is none."""
    rows: list[dict[str, Any]] = read_table(tables, name).to_pylist()
    return rows


def read_table(tables: Place | Path, name: str) -> pa.Table:
    """A table as it is in its file. Raises UserError where there is none."""
    place, file = at(tables), f"{name}.parquet"
    try:
        content = place.read(file)
    except FileNotFoundError:
        raise UserError(f"there is no {place / file}: is this in the folder of a sweep (results/NAME) that has run?") from None
    return pq.ParquetFile(pa.BufferReader(owned_by_arrow(content))).read(use_threads=False)


def best_rows(tables: Place | Path, rule: str | None) -> list[dict[str, Any]]:
    """The best of each study under one selection rule, settings together; by default the rule that the search followed."""
    rows = rows_of(tables)
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
    return [name for name in COLUMNS if any(row[f"{name}_mean"] is not None for row in rows)]


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
        table.add_column(name, justify="left" if name == "method" else "right")
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
    """The setting of each row; a manipulation's own settings where rows differ in them alone."""
    plain = [f"{row['dataset']} {row['model']} {row['manipulation']} {row['manipulation_size']}" for row in rows]
    settings = [json.loads(row["manipulation_settings"]) for row in rows]
    cells = []
    for cell, own in zip(plain, settings, strict=True):
        others = [each for each, other in zip(settings, plain, strict=True) if other == cell]
        differing = [f"{name}={own[name]}" for name in own if any(each.get(name) != own[name] for each in others)]
        cells.append(f"{cell} {', '.join(differing)}".rstrip())
    return cells


def method_of(row: dict[str, Any]) -> str:
    """The method; of a control, what was done to the original's training data instead of the manipulation."""
    return row["control"].replace("_", " ") if row.get("control") else str(row["method"])


def _number(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" ({std:.3f})" if std is not None else "")
