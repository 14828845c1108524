"""The ledger as Parquet tables: trials, originals, best, curves. docs/tables.md describes every column."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cu_ray import __version__
from cu_ray.errors import UserError
from cu_ray.plugins import facts, find, name_of, names
from cu_ray.report.statistics import summarise
from cu_ray.selection import RULES
from cu_ray.sweep.agenda import best_point, point_score
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import Plan, StudySpec
from cu_ray.types import LEARNING_VERSION, Record

SCHEMA_VERSION = 1
TRAINING_SCORES = tuple(
    f"{name}_{labels}" for name in ("deletion", "unidentified", "held_out", "retain") for labels in ("given", "true")
)

Row = dict[str, Any]


def write(folder: Path, plan: Plan, known: Known) -> None:
    """Write all tables of a sweep, each finished or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    studies = {key: study for study in plan.studies for key in _trial_keys(study, known)}
    trials = [_trial_row(plan.name, record, studies.get(record.key)) for record in known.trials.values()]
    originals = [_original_row(plan.name, record) for record in known.originals.values()]
    best = [row for study in plan.studies for row in _best_rows(plan, study, known)]
    for name, rows, schema in (
        ("trials", trials, _trials_schema(trials)),
        ("originals", originals, _originals_schema()),
        ("best", best, _best_schema()),
        ("curves", list(_curve_rows(best)), _curves_schema()),
    ):
        _write_table(folder / f"{name}.parquet", rows, schema)


# ------------------------------------------------------------------------------------------------------------- schemas

_SETTING = {
    "sweep": pa.string(),
    "dataset": pa.string(),
    "model": pa.string(),
    "manipulation": pa.string(),
    "manipulation_size": pa.int64(),
    "train": pa.string(),
}
_MACHINE = {
    "eval_seconds": pa.float64(),
    "images_evaluated": pa.int64(),
    "peak_memory_bytes": pa.int64(),
    "device": pa.string(),
    "host": pa.string(),
    "precision": pa.string(),
    "started_at": pa.string(),
    "finished_at": pa.string(),
    "cu_ray_version": pa.string(),
    "torch_version": pa.string(),
}


def _score_columns() -> dict[str, pa.DataType]:
    metrics = [f"{prefix}{name}" for prefix in ("", "val_", "report_") for name in names("metrics")]
    return dict.fromkeys([*metrics, *TRAINING_SCORES, "validation_given"], pa.float64())


def _trials_schema(rows: list[Row]) -> pa.Schema:
    names_of_hyperparameters = sorted({name for row in rows for name in row if name.startswith("hp_")})
    hyperparameters = {name: _hp_type(row.get(name) for row in rows) for name in names_of_hyperparameters}
    return pa.schema(
        {
            "trial_key": pa.string(),
            "study_key": pa.string(),
            "original_key": pa.string(),
            **_SETTING,
            "seed": pa.int64(),
            "method": pa.string(),
            "method_version": pa.int64(),
            "detection": pa.string(),
            "deletion_fraction": pa.float64(),
            "deletion_size": pa.int64(),
            "held_out": pa.bool_(),
            "detection_precision": pa.float64(),
            "detection_recall": pa.float64(),
            "effective_size": pa.int64(),
            "hyperparameters": pa.string(),
            **hyperparameters,
            "keep": pa.string(),
            "status": pa.string(),
            "error": pa.string(),
            **_score_columns(),
            "changed_share": pa.float64(),
            "notes": pa.string(),
            "images_forward": pa.int64(),
            "images_backward": pa.int64(),
            "images_forward_spent": pa.int64(),
            "images_backward_spent": pa.int64(),
            "unlearn_seconds": pa.float64(),
            "unlearn_seconds_spent": pa.float64(),
            **_MACHINE,
            "search_objective": pa.string(),
            "pool_adaptive": pa.bool_(),
            "uses_test_labels": pa.bool_(),
            "stale": pa.bool_(),
        }
    )


def _originals_schema() -> pa.Schema:
    return pa.schema(
        {
            "original_key": pa.string(),
            **_SETTING,
            "seed": pa.int64(),
            "effective_size": pa.int64(),
            "status": pa.string(),
            "error": pa.string(),
            **_score_columns(),
            "train_seconds": pa.float64(),
            **_MACHINE,
        }
    )


def _best_schema() -> pa.Schema:
    metrics = {f"{name}_{part}": pa.float64() for name in names("metrics") for part in ("mean", "std", "low", "high")}
    return pa.schema(
        {
            "study_key": pa.string(),
            **_SETTING,
            "method": pa.string(),
            "detection": pa.string(),
            "deletion_fraction": pa.float64(),
            "deletion_size": pa.int64(),
            "rule": pa.string(),
            "reports_on": pa.string(),
            "score": pa.float64(),
            "point": pa.int64(),
            "hyperparameters": pa.string(),
            "n": pa.int64(),
            "seeds": pa.list_(pa.int64()),
            **metrics,
            "unlearn_seconds_mean": pa.float64(),
            "images_forward_mean": pa.float64(),
            "images_backward_mean": pa.float64(),
            "num_points": pa.int64(),
            "num_points_planned": pa.int64(),
            "num_trials_failed": pa.int64(),
            "sampler": pa.string(),
            "search_objective": pa.string(),
            "pool_adaptive": pa.bool_(),
            "uses_test_labels": pa.bool_(),
            "trial_keys": pa.list_(pa.string()),
        }
    )


def _curves_schema() -> pa.Schema:
    best = _best_schema()
    shared = [best.field(name) for name in ("study_key", *_SETTING, "method", "detection", "deletion_fraction", "rule")]
    parts = [("metric", pa.string()), ("n", pa.int64())] + [(part, pa.float64()) for part in ("mean", "std", "low", "high")]
    return pa.schema([*shared, *(pa.field(name, kind) for name, kind in parts)])


def _hp_type(values: Iterable[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


# ---------------------------------------------------------------------------------------------------------------- rows


def _setting_columns(sweep: str, setting: Mapping[str, Any]) -> Row:
    return {
        "sweep": sweep,
        "dataset": setting["dataset"]["name"],
        "model": _compact(setting["model"]),
        "manipulation": setting["manipulation"]["name"],
        "manipulation_size": setting["manipulation"]["size"],
        "train": json.dumps(setting["train"], sort_keys=True),
        "precision": setting["train"]["precision"],
        "seed": setting["seed"],
    }


def _trial_row(sweep: str, record: Record, study: StudySpec | None) -> Row:
    spec = record.spec
    setting, method = spec["original"]["setting"], spec["method"]
    hyperparameters = {name: value for name, value in method.items() if name not in ("name", "version")}
    size = spec["deletion_size"]
    return {
        **_setting_columns(sweep, setting),
        "trial_key": record.key,
        "study_key": study and study.key,
        "original_key": spec["original_key"],
        "method": method["name"],
        "method_version": method["version"],
        "detection": _compact(spec["detection"]),
        "deletion_fraction": size / setting["manipulation"]["size"] if size else None,
        "deletion_size": size,
        "held_out": spec["held_out"],
        "hyperparameters": json.dumps(hyperparameters, sort_keys=True),
        **{f"hp_{name}": value if not isinstance(value, list) else json.dumps(value) for name, value in hyperparameters.items()},
        "keep": spec["keep"],
        "status": record.status,
        "error": record.error,
        "notes": json.dumps(record.notes, sort_keys=True),
        "stale": _is_stale(spec),
        "search_objective": study.search.objective if study and study.searched else None,
        "pool_adaptive": study.adaptive if study else None,
        "uses_test_labels": _uses_test_labels(study, spec["keep"]) if study else None,
        **record.scores,
        **{name: value for name, value in record.facts.items() if name != "deletion_size"},
    }


def _original_row(sweep: str, record: Record) -> Row:
    row = {**_setting_columns(sweep, record.spec["setting"]), "original_key": record.key, "status": record.status}
    return {**row, "error": record.error, **record.scores, **record.facts}


def _trial_keys(study: StudySpec, known: Known) -> set[str]:
    keys = {key for point in known.points.get(study.key, {}).values() for key in point.trial_keys}
    for index in sorted(known.points.get(study.key, {})):
        hyperparameters = _hyperparameters(study, known, index)
        keys |= {trial.key for trial in study.trials(hyperparameters, study.confirm_settings)}
    return keys


def _hyperparameters(study: StudySpec, known: Known, index: int) -> Row:
    values = known.points[study.key][index].hyperparameters
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _best_rows(plan: Plan, study: StudySpec, known: Known) -> list[Row]:
    """A row for each rule and deletion fraction."""
    written = known.points.get(study.key, {})
    indices = list(range(min(len(written), study.method.budget)))
    points = [_hyperparameters(study, known, index) for index in indices if index in written]
    rows = []
    for rule_name, rule in RULES.items():
        index = best_point(study, points, known.trials, rule_name)
        for fraction in study.fractions or plan.fractions:
            row = _setting_columns(plan.name, study.settings[0].describe()) | {
                "study_key": study.key,
                "method": name_of(study.method.cls),
                "detection": name_of(study.detection),
                "deletion_fraction": fraction,
                "deletion_size": study.size(fraction),
                "rule": rule_name,
                "reports_on": "report half" if rule.reports else "whole test set",
                "num_points": len(points),
                "num_points_planned": study.method.budget,
                "num_trials_failed": sum(
                    not known.trials[key].ok for point in written.values() for key in point.trial_keys if key in known.trials
                ),
                "sampler": study.method.sampler if study.searched else None,
                "search_objective": study.search.objective if study.searched else None,
                "pool_adaptive": study.adaptive,
                "uses_test_labels": study.method.budget > 1 and (rule.uses_test_labels or study.method.keep != "last"),
                "n": 0,
            }
            if index is not None:
                row |= _reported(study, known, points[index], fraction if study.fractions else None, rule.reports)
                row |= {"point": index, "score": point_score(study, points[index], known.trials, rule_name)}
                row["hyperparameters"] = json.dumps(points[index], sort_keys=True)
            rows.append(row)
    return rows


def _reported(study: StudySpec, known: Known, point: Row, fraction: float | None, prefix: str) -> Row:
    """What the point's trials on the reporting seeds come to."""
    specs = [study.trial(point, setting, fraction) for setting in study.report_settings]
    records = [known.trials[spec.key] for spec in specs if spec.key in known.trials and known.trials[spec.key].ok]
    row: Row = {
        "n": len(records),
        "seeds": [record.spec["original"]["setting"]["seed"] for record in records],
        "trial_keys": [record.key for record in records],
    }
    for name in names("metrics"):
        summary = summarise([record.scores.get(prefix + name) for record in records])
        row |= {f"{name}_{part}": getattr(summary, part) for part in ("mean", "std", "low", "high")}
    for name in ("unlearn_seconds", "images_forward", "images_backward"):
        row[f"{name}_mean"] = summarise([record.facts.get(name) for record in records]).mean
    return row


def _curve_rows(best: list[Row]) -> Iterable[Row]:
    for row in best:
        for metric in names("metrics"):
            summary = {part: row.get(f"{metric}_{part}") for part in ("mean", "std", "low", "high")}
            if summary["mean"] is not None:
                yield {**row, "metric": metric, **summary}


def _uses_test_labels(study: StudySpec, keep: str) -> bool:
    return keep != "last" or (study.searched and RULES[study.search.objective].uses_test_labels)


def _is_stale(spec: Mapping[str, Any]) -> bool | None:
    """Whether another version of the code made this trial than the one installed; None where it is no longer there."""
    setting = spec["original"]["setting"]
    used = [("methods", spec["method"]), ("detections", spec["detection"])]
    used += [(f"{kind}s", setting[kind]) for kind in ("dataset", "model", "manipulation")]
    try:
        versions = [find(kind, described["name"]).version == described["version"] for kind, described in used]
    except UserError:
        return None
    return not all(versions) or setting["learning"] != LEARNING_VERSION


def _compact(described: Mapping[str, Any]) -> str:
    """A plug-in's name, with those of its settings that are not at their default: `resnet9(width=8)`."""
    kind = "models" if described["name"] in names("models") else "detections"
    defaults = {name: fact.default for name, fact in facts(find(kind, described["name"])).items()}
    settings = [f"{name}={described[name]}" for name, default in defaults.items() if described.get(name) != default]
    return str(described["name"]) + (f"({', '.join(settings)})" if settings else "")


def _write_table(path: Path, rows: list[Row], schema: pa.Schema) -> None:
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
    metadata = {"cu_ray_schema": str(SCHEMA_VERSION), "cu_ray_version": __version__}
    table = pa.table(columns, schema=schema.with_metadata(metadata))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
