"""The ledger as Parquet tables: trials, originals, best, curves. docs/tables.md describes every column."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cu_ray import __version__
from cu_ray.errors import UserError
from cu_ray.places import Place, at
from cu_ray.plugins import FieldFact, describe, facts, find, name_of, names
from cu_ray.report.statistics import summarise
from cu_ray.report.terminal import SCHEMA_VERSION
from cu_ray.selection import RULES
from cu_ray.sweep.judging import best_point, point_score
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import Plan, StudySpec
from cu_ray.sweep.remarks import edges_of, has_a_place
from cu_ray.types import LEARNING_VERSION, Record

TRAINING_SCORES = tuple(
    f"{name}_{labels}" for name in ("deletion", "unidentified", "held_out", "retain") for labels in ("given", "true")
)

Row = dict[str, Any]


def write(where: Place | Path, plan: Plan, known: Known) -> None:
    """Write all tables of a sweep, each finished or not at all; without records of a seed that no table holds."""
    _installed.cache_clear()
    studies = {key: study for study in plan.studies for key in trial_keys(study, known)}
    settings = {record.spec["original_key"]: record.spec["original"]["setting"] for record in known.trials.values()}
    columns = {key: setting_columns(plan.name, setting) for key, setting in settings.items()}
    trials = [
        trial_row(record, columns[record.spec["original_key"]], studies.get(record.key))
        for record in known.trials.values()
        if has_a_place(record)
    ]
    _mark_pareto(trials)
    originals = [_original_row(plan.name, record) for record in known.originals.values() if has_a_place(record)]
    searches: dict[str, list[StudySpec]] = {}  # studies that differ in their seed only are one search
    for study in plan.studies:
        searches.setdefault(study.sampling_key, []).append(study)
    best = [row for key, search in searches.items() for row in _best_rows(plan, key, search, known)]
    write_rows(where, trials, originals, best)


def write_rows(where: Place | Path, trials: list[Row], originals: list[Row], best: list[Row]) -> None:
    """Write tables of these rows; a column that a row does not have is null."""
    place = at(where)
    for name, rows, schema in (
        ("trials", trials, _trials_schema(trials)),
        ("originals", originals, _originals_schema()),
        ("best", best, _best_schema()),
        ("curves", list(_curve_rows(best)), _curves_schema()),
    ):
        place.write(f"{name}.parquet", _as_parquet(rows, schema))


# ------------------------------------------------------------------------------------------------------------- schemas

_SETTING = {
    "sweep": pa.string(),
    "dataset": pa.string(),
    "model": pa.string(),
    "manipulation": pa.string(),
    "manipulation_size": pa.int64(),
    "manipulation_settings": pa.string(),
    "control": pa.string(),
    "train": pa.string(),
}
_MACHINE = {
    "eval_seconds": pa.float64(),
    "images_evaluated": pa.int64(),
    "peak_memory_bytes": pa.int64(),
    "gpu_share": pa.float64(),
    "num_out_of_memory": pa.int64(),
    "device": pa.string(),
    "host": pa.string(),
    "precision": pa.string(),
    "started_at": pa.string(),
    "finished_at": pa.string(),
    "cu_ray_version": pa.string(),
    "torch_version": pa.string(),
    "source": pa.string(),
}


def _score_columns() -> dict[str, pa.DataType]:
    metrics = [f"{prefix}{name}" for prefix in ("", "val_", "report_") for name in names("metrics")]
    return dict.fromkeys([*metrics, *TRAINING_SCORES, "deletion_given_before", "validation_given"], pa.float64())


def _trials_schema(rows: list[Row]) -> pa.Schema:
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
            "unlearning_seed": pa.int64(),
            "detection_precision": pa.float64(),
            "detection_recall": pa.float64(),
            "effective_size": pa.int64(),
            "hyperparameters": pa.string(),
            **_hp_types(rows),
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
            "pareto": pa.bool_(),
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
            "variant": pa.string(),
            "seed": pa.int64(),
            "effective_size": pa.int64(),
            "num_affected": pa.int64(),
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
            "search_key": pa.string(),
            "study_keys": pa.list_(pa.string()),
            **_SETTING,
            "method": pa.string(),
            "detection": pa.string(),
            "deletion_fraction": pa.float64(),
            "deletion_size": pa.int64(),
            "rule": pa.string(),
            "reports_on": pa.string(),
            "score": pa.float64(),
            "points": pa.list_(pa.int64()),
            "hyperparameters": pa.list_(pa.string()),
            "at_edge": pa.list_(pa.string()),
            "n": pa.int64(),
            "n_planned": pa.int64(),
            "seeds": pa.list_(pa.int64()),
            **metrics,
            "unlearn_seconds_mean": pa.float64(),
            "images_forward_mean": pa.float64(),
            "images_backward_mean": pa.float64(),
            "num_points": pa.int64(),
            "num_points_planned": pa.int64(),
            "coverage": pa.float64(),
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
    shared = [best.field(name) for name in ("search_key", *_SETTING, "method", "detection", "deletion_fraction", "rule")]
    parts = [("metric", pa.string()), ("n", pa.int64())] + [(part, pa.float64()) for part in ("mean", "std", "low", "high")]
    return pa.schema([*shared, *(pa.field(name, kind) for name, kind in parts)])


def _hp_types(rows: list[Row]) -> dict[str, pa.DataType]:
    """The types of the hyperparameter columns: as their methods declare them, text where two methods disagree."""
    kinds: dict[str, set[Any]] = {}
    for method in sorted({row["method"] for row in rows}):
        for name, fact in _facts("methods", method).items():
            kinds.setdefault(f"hp_{name}", set()).update({*(get_args(fact.hint) or (fact.hint,))} - {type(None)})
    for row in rows:  # of methods that are no longer there, or had another type in an earlier version
        for name in row:
            if name.startswith("hp_") and row[name] is not None:
                kinds.setdefault(name, set()).add(type(row[name]))
    return {name: _hp_type(kinds[name]) for name in sorted(kinds)}


def _hp_type(kinds: set[Any]) -> pa.DataType:
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _facts(kind: str, name: str) -> dict[str, FieldFact]:
    """The settings of a plug-in; none where it is no longer there."""
    cls = _installed(kind, name)
    return {} if cls is None else facts(cls)


@functools.cache  # for one writing: to look for one that is gone takes long
def _installed(kind: str, name: str) -> type[Any] | None:
    try:
        return find(kind, name)
    except UserError:
        return None


# ---------------------------------------------------------------------------------------------------------------- rows


def setting_columns(sweep: str, setting: Mapping[str, Any]) -> Row:
    """What the tables say of a setting as `Setting.describe` gives it."""
    return {
        "sweep": sweep,
        "dataset": _compact("datasets", setting["dataset"]),
        "model": _compact("models", setting["model"]),
        "manipulation": setting["manipulation"]["name"],
        "manipulation_size": setting["manipulation"]["size"],
        "manipulation_settings": json.dumps(_settings_of("manipulations", setting["manipulation"]), sort_keys=True),
        "control": setting.get("control"),
        "train": json.dumps(setting["train"], sort_keys=True),
        "precision": setting["train"]["precision"],
        "seed": setting["seed"],
    }


def trial_row(record: Record, setting_columns: Row, study: StudySpec | None) -> Row:
    """What the table of trials says of one; `study`: that which asked for it."""
    spec = record.spec
    setting, method = spec["original"]["setting"], spec["method"]
    hyperparameters = {name: value for name, value in method.items() if name not in ("name", "version")}
    size = spec["deletion_size"]
    return {
        **setting_columns,
        "trial_key": record.key,
        "study_key": study and study.key,
        "original_key": spec["original_key"],
        "method": method["name"],
        "method_version": method["version"],
        "detection": _compact("detections", spec["detection"]),
        "deletion_fraction": size / setting["manipulation"]["size"] if size else None,
        "deletion_size": size,
        "held_out": spec["held_out"],
        "unlearning_seed": spec.get("unlearning_seed", 0),
        "hyperparameters": json.dumps(hyperparameters, sort_keys=True),
        **{f"hp_{name}": value for name, value in hyperparameters.items()},
        "keep": spec["keep"],
        "status": record.status,
        "error": record.error,
        "notes": json.dumps(record.notes, sort_keys=True),
        "stale": _is_stale(spec),
        "search_objective": study.search.objective if study and study.method.has_choice else None,
        "pool_adaptive": study.flattered if study else None,
        "uses_test_labels": _uses_test_labels(study) if study else None,
        **record.scores,
        **{name: value for name, value in record.facts.items() if name != "deletion_size"},
    }


def _mark_pareto(rows: list[Row]) -> None:
    """Say of each point's trial whether none of the same study, seed and fraction is better in both accuracies."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        judged = row["status"] == "ok" and row["study_key"] and not row["held_out"] and not row["unlearning_seed"]
        if judged and row["val_acc_corr"] is not None and row["val_acc_retain"] is not None:
            groups.setdefault((row["study_key"], row["seed"], row["deletion_size"]), []).append(row)
    for group in groups.values():
        best = -math.inf  # of acc_retain, among those with a higher acc_corr
        ordered = sorted(group, key=lambda row: (-row["val_acc_corr"], -row["val_acc_retain"]))
        for _, equal in itertools.groupby(ordered, key=lambda row: row["val_acc_corr"]):
            tied = list(equal)
            for row in tied:
                row["pareto"] = row["val_acc_retain"] == tied[0]["val_acc_retain"] > best
            best = max(best, tied[0]["val_acc_retain"])


def _original_row(sweep: str, record: Record) -> Row:
    row = {**setting_columns(sweep, record.spec["setting"]), "original_key": record.key, "status": record.status}
    variant = record.spec.get("variant")
    row["variant"] = json.dumps(variant, sort_keys=True) if variant else None
    return {**row, "error": record.error, **record.scores, **record.facts}


def trial_keys(study: StudySpec, known: Known) -> set[str]:
    """The keys of the trials of a study's points that are known, of those also that were not run."""
    points = known.points_of(study.key, study.method.budget)
    further = [trial for point in points for trial in study.trials(point, study.confirm_settings)]
    further += [trial for point in points for trial in study.repetitions(point)]
    searched = (key for point in known.points.get(study.key, {}).values() for key in point.trial_keys)
    return {*searched, *(trial.key for trial in further)}


def _best_rows(plan: Plan, search_key: str, studies: list[StudySpec], known: Known) -> list[Row]:
    """A row for each rule and deletion fraction, over the studies of one search: one, or one a seed."""
    first = studies[0]
    points = {study.key: known.points_of(study.key, study.method.budget) for study in studies}
    keys = {key for study in studies for key in trial_keys(study, known)}
    finished = [known.trials[key] for key in keys if key in known.trials]
    shared = setting_columns(plan.name, first.settings[0].describe()) | {
        "search_key": search_key,
        "study_keys": [study.key for study in studies],
        "method": name_of(first.method.cls),
        "detection": _compact("detections", describe(first.detection)),
        "num_points": sum(map(len, points.values())),
        "num_points_planned": sum(study.method.budget for study in studies),
        "coverage": sum(_num_finished(study, points[study.key], known) for study in studies)
        / sum(study.method.budget for study in studies),
        "num_trials_failed": sum(not record.ok for record in finished),
        "sampler": first.method.sampler if first.searched else None,
        "search_objective": first.search.objective if first.method.has_choice else None,
        "pool_adaptive": first.flattered,
    }
    num_planned = sum(len(study.report_settings) for study in studies)
    rows = []
    for rule_name, rule in RULES.items():
        best = [(study, best_point(study, points[study.key], known.trials, rule_name)) for study in studies]
        chosen = [(study, index) for study, index in best if index is not None]
        scores = [point_score(study, points[study.key][index], known.trials, rule_name) for study, index in chosen]
        by_choice = shared | {
            "rule": rule_name,
            "reports_on": "report half" if rule.reports else "whole test set",
            "uses_test_labels": _uses_test_labels(first)
            if first.flattered
            else first.kept_by_test_labels or (first.method.has_choice and rule.uses_test_labels),
            "score": summarise(scores).mean,
            "points": [index for _, index in chosen],
            "hyperparameters": [json.dumps(points[study.key][index], sort_keys=True) for study, index in chosen],
            "at_edge": sorted(
                {f"{name} {edge}" for study, index in chosen for name, edge in edges_of(study, points[study.key][index]).items()}
            ),
        }
        for fraction in (*first.fractions, *first.also) or plan.fractions:
            specs = [
                study.trial(points[study.key][index], setting, fraction if study.fractions else None)
                for study, index in chosen
                for setting in study.report_settings
            ]
            records = [known.trials[spec.key] for spec in specs if spec.key in known.trials and known.trials[spec.key].ok]
            sizes = {"deletion_fraction": fraction, "deletion_size": first.size(fraction)}
            rows.append(by_choice | sizes | {"n_planned": num_planned} | _over_seeds(records, rule.reports))
    return rows


def _num_finished(study: StudySpec, points: list[Row], known: Known) -> int:
    """How many points have all their trials done."""
    return sum(all(trial.key in known.trials for trial in study.trials(point, study.search_settings)) for point in points)


def _over_seeds(records: list[Record], prefix: str) -> Row:
    """What the reported trials come to."""
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


def _uses_test_labels(study: StudySpec) -> bool:
    """Whether test labels had a part in what is there: in which models were kept, or in which points were drawn."""
    return study.kept_by_test_labels or (study.searched and RULES[study.search.objective].uses_test_labels)


def plugins_of(spec: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The plug-ins of a trial, by kind, as `TrialSpec.describe` gives them."""
    setting = spec["original"]["setting"]
    of_setting = [(f"{kind}s", setting[kind]) for kind in ("dataset", "model", "manipulation")]
    return [("methods", spec["method"]), ("detections", spec["detection"]), *of_setting]


def _is_stale(spec: Mapping[str, Any]) -> bool | None:
    """Whether another version of the code made this trial than the one installed; None where it is no longer there."""
    used = [(_installed(kind, described["name"]), described["version"]) for kind, described in plugins_of(spec)]
    versions = [None if cls is None else cls.version == version for cls, version in used]
    if None in versions:
        return None
    return not all(versions) or spec["original"]["setting"]["learning"] != LEARNING_VERSION


def _compact(kind: str, described: Mapping[str, Any]) -> str:
    """A plug-in's name, with those of its settings that are not at their default: `resnet9(width=8)`."""
    defaults = {name: fact.default for name, fact in _facts(kind, described["name"]).items()}
    settings = [f"{name}={described[name]}" for name, default in defaults.items() if described.get(name, default) != default]
    return str(described["name"]) + (f"({', '.join(settings)})" if settings else "")


def _settings_of(kind: str, described: Mapping[str, Any]) -> Row:
    """The settings of a plug-in that a sweep file can give, the size apart, those at their default included."""
    known = _facts(kind, described["name"])
    defaults = {name: fact.default for name, fact in known.items() if not fact.required}
    given = {name: value for name, value in described.items() if name in known}
    return {name: value for name, value in (defaults | given).items() if name != "size"}


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value, as JSON where a text column is given something else; null for an integer that no table holds."""
    if pa.types.is_integer(kind) and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return json.dumps(value) if pa.types.is_string(kind) and value is not None and not isinstance(value, str) else value


def _as_parquet(rows: list[Row], schema: pa.Schema) -> bytes:
    columns = {field.name: [_fitting(row.get(field.name), field.type) for row in rows] for field in schema}
    metadata = {"cu_ray_schema": str(SCHEMA_VERSION), "cu_ray_version": __version__}
    table = pa.table(columns, schema=schema.with_metadata(metadata))
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    content: bytes = stream.getvalue().to_pybytes()
    return content
