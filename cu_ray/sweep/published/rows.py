"""Rows of our tables from the published code's logs: null where they do not say, `source` says which folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cu_ray.errors import Diverged, UserError
from cu_ray.identity import key_of, mapping_of
from cu_ray.places import Place
from cu_ray.plugins import describe, find, names
from cu_ray.report.terminal import rows_of
from cu_ray.selection import RULES
from cu_ray.sweep import tables
from cu_ray.sweep.published import arrays, layout
from cu_ray.sweep.published.layout import SettingFolder

RULE = RULES["published"]
SEED = 0  # the published code knows no other

Row = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """What came in, and why the rest did not, by name."""

    num_originals: int
    num_trials: int
    failed: dict[str, str]
    passed_over: dict[str, str]


def take(logs: Path, into: Place) -> Imported:
    """Write the tables of a folder of logs. Raises UserError where it is none, or where a sweep's results are in the way."""
    if (into / "ledger").files() or _holds_own_tables(into / "tables"):
        raise UserError(f"{into} holds the results of a sweep: give --into a folder of its own")
    settings, passed_over = layout.settings(logs)
    trials, originals, best = [], [], []
    for setting in settings:
        runs, others = layout.runs(setting)
        passed_over |= others
        try:
            made = arrays.drawn(setting)
        except UserError as problem:
            passed_over[setting.path.name] = str(problem)
            continue
        columns = _setting_columns(into.name, setting, made)
        original = _original_row(setting, made, columns)
        own = [_unlearned_none(original), *(_trial_row(setting, made, columns, run) for run in runs)]
        originals.append(original)
        trials += own
        best += _best_rows(own, sorted({run.deletion_size for run in runs}))
    if not trials:
        raise UserError("\n  ".join([f"nothing of {logs} can be read", *(f"{name}: {why}" for name, why in passed_over.items())]))
    tables.write_rows(into / "tables", trials, originals, best)
    failed = {row["source"]: row["error"] for row in trials if row["status"] != "ok"}
    return Imported(len(originals), len(trials), failed, passed_over)


def _holds_own_tables(where: Place) -> bool:
    """Whether there are tables of which some trial was not imported."""
    return where.has("trials.parquet") and any(row.get("source") is None for row in rows_of(where, "trials"))


def _setting_columns(sweep: str, setting: SettingFolder, made: arrays.Drawn) -> Row:
    columns = tables.setting_columns(
        sweep,
        {
            "dataset": describe(find("datasets", setting.dataset)()),
            "model": {**describe(find("models", setting.model["name"])()), **setting.model},
            "manipulation": describe(layout.manipulation_of(setting, made.classes)),
            "train": mapping_of(setting.train),
            "seed": SEED,
        },
    )
    effective = int((made.given != made.true).sum())
    return {**columns, "original_key": _key(setting.path.name), "effective_size": effective}


def _original_row(setting: SettingFolder, made: arrays.Drawn, columns: Row) -> Row:
    run = setting.path / layout.ORIGINAL
    return {**columns, "source": f"{setting.path.name}/{run.name}", **_scored(setting, made, run, 0)}


def _unlearned_none(original: Row) -> Row:
    """The trial that leaves the original as it is."""
    return {**original, **_trial_columns("no_unlearning", None, 0, {}, "best_on_test", original)}


def _trial_row(setting: SettingFolder, made: arrays.Drawn, columns: Row, run: layout.RunFolder) -> Row:
    row = {**columns, "source": f"{setting.path.name}/{run.path.name}"}
    keep = "last" if run.method == "ssd" else "best_on_test"
    fraction = run.deletion_size / setting.size
    row |= _trial_columns(run.method, fraction, run.deletion_size, run.hyperparameters, keep, row)
    return row | _scored(setting, made, run.path, run.deletion_size)


def _trial_columns(method: str, fraction: float | None, size: int, hyperparameters: Row, keep: str, row: Row) -> Row:
    return {
        "trial_key": _key(row["source"], method),
        "study_key": _key(row["original_key"], method, size),
        "method": method,
        "detection": "uniform",
        "deletion_fraction": fraction,
        "deletion_size": size,
        "detection_precision": 1.0 if size else None,
        "detection_recall": fraction,
        "held_out": False,
        "unlearning_seed": 0,
        "hyperparameters": json.dumps(hyperparameters, sort_keys=True),
        **{f"hp_{name}": value for name, value in hyperparameters.items()},
        "keep": keep,
        "search_objective": RULE.name,
        "pool_adaptive": False,
        "uses_test_labels": True,
    }


def _scored(setting: SettingFolder, made: arrays.Drawn, run: Path, deletion_size: int) -> Row:
    try:
        return {"status": "ok", "error": None, **arrays.scores(setting, run, made, deletion_size)}
    except Diverged as problem:
        return {"status": "diverged", "error": str(problem)}
    except UserError as problem:
        return {"status": "failed", "error": str(problem)}


def _best_rows(trials: list[Row], sizes: list[int]) -> list[Row]:
    """A row for each method, deletion size and rule; a score under `published` alone: the others need halves of the test set."""
    searches: dict[tuple[str, int], list[Row]] = {}
    for row in trials:
        for size in sizes if row["method"] == "no_unlearning" else [row["deletion_size"]]:
            searches.setdefault((row["method"], size), []).append(row)
    return [_best_row(size, pool, rule) for (_, size), pool in searches.items() for rule in RULES]


def _best_row(size: int, pool: list[Row], rule: str) -> Row:
    known = {place: RULE.score(row, 0) for place, row in enumerate(pool) if row["status"] == "ok" and rule == RULE.name}
    scored = {place: score for place, score in known.items() if score is not None}
    place = max(scored, key=lambda each: scored[each], default=None)
    first, chosen = pool[0], [] if place is None else [pool[place]]
    return {
        **first,
        "search_key": first["study_key"],
        "study_keys": [first["study_key"]],
        "deletion_size": size,
        "deletion_fraction": size / first["manipulation_size"],
        "rule": rule,
        "reports_on": "report half" if RULES[rule].reports else "whole test set",
        "score": None if place is None else scored[place],
        "points": [] if place is None else [place],
        "hyperparameters": [row["hyperparameters"] for row in chosen],
        "at_edge": [],
        "n": len(chosen),
        "n_planned": 1,
        "seeds": [SEED for _ in chosen],
        "trial_keys": [row["trial_key"] for row in chosen],
        **{f"{name}_mean": row.get(name) for row in chosen for name in names("metrics")},
        "num_points": len(pool),
        "num_points_planned": len(pool),
        "coverage": 1.0,
        "num_trials_failed": sum(row["status"] != "ok" for row in pool),
    }


def _key(*identity: Any) -> str:
    return key_of(["logs of the published code", *identity])
