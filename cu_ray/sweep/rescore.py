"""Metrics of models that a sweep made, from the evidence that it kept: nothing is run again, no model and no GPU is needed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cu_ray import __version__, checks, plugins
from cu_ray.errors import UserError, did_you_mean, in_one_line
from cu_ray.metrics import Metric, Outcome
from cu_ray.places import Place
from cu_ray.report.terminal import RESCORED, SCHEMA_VERSION, metrics_in, rows_of
from cu_ray.stages.measure import halves, outcome_of
from cu_ray.stages.poison import selection_half
from cu_ray.sweep import ledger
from cu_ray.sweep.ledger import evidence
from cu_ray.types import Dataset, Domains, Mask, Predictions, Record, Scores

AT_ONCE = 16  # files
TABLE = f"{RESCORED}.parquet"
KEPT_BY = "`evidence: true` in the sweep file keeps it; the same `cu-ray sweep` command then makes again what has none"


@dataclass(frozen=True)
class Rescored:
    """The table that was written, its metrics, and how many trials and originals there are without evidence."""

    table: Place
    metrics: tuple[str, ...]
    num_rows: int
    num_without: int
    dropped: tuple[str, ...]  # metrics that the table had, and that cannot be computed for models that came since


def rescore(folder: Place, names: Sequence[str] = ()) -> Rescored:
    """The table of these metrics (or of all that `cu-ray list metrics` knows), a row for each trial and original with evidence.

    Metrics that the table has already stay in it; where models came since, they are computed anew, too, or left out where they
    cannot be.

    Raises UserError where there is no evidence, where it is of other data, and for a metric that cannot be computed from it.
    """
    metrics = {name: _metric(name) for name in names or plugins.names("metrics")}
    records = _finished(folder)
    kept = evidence.keys(folder / "ledger")
    wanted = [record for record in records if record.key in kept]
    if not wanted:
        raise UserError(f"{folder} has no evidence of its {len(records)} models. {KEPT_BY}")
    earlier = _earlier(folder / "tables")
    others = [name for name in metrics_in(next(iter(earlier.values()), {})) if name not in metrics]
    dropped = []
    if not earlier.keys() >= {record.key for record in wanted}:
        for name in tuple(others):
            try:
                metrics[name] = _metric(name)
            except UserError:  # its file is gone
                others.remove(name)
                dropped.append(name)
        earlier = {}
    rows = [
        earlier.get(record.key, {}) | _row(record, _scores(metrics, record, truth, seen))
        for record, truth, seen in _evidence(folder, wanted)
    ]
    there = tuple(dict.fromkeys([*metrics, *others]))
    columns = [f"{prefix}{name}" for name in there for prefix in ("", "val_", "report_")]
    (folder / "tables").write(TABLE, _as_parquet(rows, columns))
    return Rescored(folder / "tables" / TABLE, there, len(rows), len(records) - len(rows), tuple(dropped))


# ---------------------------------------------------------------------------------------------------------------- metrics


def _metric(name: str) -> Metric:
    cls = plugins.find("metrics", name)
    try:
        metric: Metric = cls()
    except TypeError as problem:
        raise UserError(f"{name} cannot be used as it is: {in_one_line(problem)}. A metric's settings need defaults") from None
    return metric


def _scores(metrics: Mapping[str, Metric], record: Record, truth: Truth, predictions: Predictions) -> Scores:
    scores = {}
    for prefix, counted in truth.counted.items():
        outcome = outcome_of(predictions, truth.domains, truth.dataset.test.labels, counted)
        for name, metric in metrics.items():
            scores[prefix + name] = _measured(name, metric, outcome, record)
    return scores


def _measured(name: str, metric: Metric, outcome: Outcome, record: Record) -> float | None:
    """A metric's number. Raises UserError where it needs what evidence has not, fails, or gives what is no number."""
    try:
        score: Any = metric.measure(outcome)  # of a user's file: of any type
    except AttributeError as problem:
        if problem.obj is not outcome:
            raise _failure(name, record, problem) from problem
        raise UserError(
            f"{name} needs outcome.{problem.name}, which evidence has not: it holds predicted classes. "
            f"{did_you_mean(str(problem.name), vars(outcome))}"
        ) from problem
    except Exception as problem:  # whatever a user's file raises
        raise _failure(name, record, problem) from problem
    if score is not None and not (isinstance(score, numbers.Real) and math.isfinite(score)):
        raise UserError(f"the metric {name} gave {score!r} for {record.kind} {record.key[:16]}: a number or None is needed")
    return None if score is None else float(score)


def _failure(name: str, record: Record, problem: Exception) -> UserError:
    reason = f"{type(problem).__name__}: {in_one_line(problem)}"
    return UserError(f"the metric {name} failed on {record.kind} {record.key[:16]}: {reason}")


# --------------------------------------------------------------------------------------------------------------- evidence


@dataclass(frozen=True, eq=False)
class Truth:
    """What predictions are held against: the test set, a manipulation's domains, and the images that count, by prefix."""

    dataset: Dataset
    domains: Domains
    counted: Mapping[str, Mask]


def _finished(folder: Place) -> list[Record]:
    """The records of all models that were made. Raises UserError where there is no ledger."""
    if not (folder / "ledger").files():
        raise UserError(f"there is no {folder / 'ledger'}: is {folder} the folder of a sweep (results/NAME)?")
    known = ledger.read(folder / "ledger")
    return [record for record in (*known.originals.values(), *known.trials.values()) if record.ok]


def _evidence(folder: Place, records: Sequence[Record]) -> Iterator[tuple[Record, Truth, Predictions]]:
    """Each record with what is true of the test images under its manipulation, and what its model predicted on them."""
    truth_of, place = _truths(), folder / "ledger"
    with ThreadPoolExecutor(AT_ONCE) as pool:  # at a URI each is a request
        for begin in range(0, len(records), AT_ONCE):
            some = records[begin : begin + AT_ONCE]
            for record, content in zip(some, pool.map(lambda each: evidence.read(place, each.key), some), strict=True):
                truth = truth_of(_setting(record))
                yield record, truth, evidence.unpacked(content, evidence.path(place, record.key), truth.dataset)


def _setting(record: Record) -> Mapping[str, Any]:
    setting: Mapping[str, Any] = record.spec["setting"] if record.kind == "original" else record.spec["original"]["setting"]
    return setting


def _truths() -> Callable[[Mapping[str, Any]], Truth]:
    """A function that gives a setting's; data sets are loaded once each."""
    datasets: dict[str, Dataset] = {}
    truths: dict[tuple[str, str], Truth] = {}

    def truth_of(setting: Mapping[str, Any]) -> Truth:
        wanted = setting["content_hash"]
        key = wanted, repr(setting["manipulation"])
        if wanted not in datasets:
            datasets[wanted] = _loaded(setting["dataset"], wanted)
        if key not in truths:
            dataset, manipulation = datasets[wanted], _built("manipulations", setting["manipulation"])
            truths[key] = Truth(dataset, manipulation.test_domains(dataset.test), halves(selection_half(dataset)))
        return truths[key]

    return truth_of


def _loaded(described: Mapping[str, Any], content_hash: str) -> Dataset:
    dataset = checks.loaded(_built("datasets", described))
    if dataset.content_hash != content_hash:
        raise UserError(
            f"the data set {described['name']} has changed: its content is not the one that the sweep used "
            f"({dataset.content_hash[:16]}, not {content_hash[:16]}), so its labels say nothing of this evidence"
        )
    return dataset


def _built(kind: str, described: Mapping[str, Any]) -> Any:
    """The plug-in that the sweep used. Raises UserError where it is not here, or in another version."""
    version = plugins.find(kind, described["name"]).version
    if version != described["version"]:
        raise UserError(f"the sweep used version {described['version']} of {described['name']}, installed is {version}")
    return plugins.build(kind, described)


# ------------------------------------------------------------------------------------------------------------------ table


def _row(record: Record, scores: Scores) -> dict[str, Any]:
    of_trial = record.kind == "trial"
    original = record.spec["original_key"] if of_trial else record.key
    return {"trial_key": record.key if of_trial else None, "original_key": original, **scores}


def _earlier(tables: Place) -> dict[str, dict[str, Any]]:
    """The rows of the table that is there, by their model's key; none where there is none that can be read."""
    try:
        rows = rows_of(tables, RESCORED)
    except UserError:
        return {}
    return {row["trial_key"] or row["original_key"]: row for row in rows}


def _as_parquet(rows: list[dict[str, Any]], scores: list[str]) -> bytes:
    kinds = {"trial_key": pa.string(), "original_key": pa.string(), **dict.fromkeys(scores, pa.float64())}
    metadata = {"cu_ray_schema": str(SCHEMA_VERSION), "cu_ray_version": __version__}
    stream = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds, metadata)), stream)
    content: bytes = stream.getvalue().to_pybytes()
    return content
