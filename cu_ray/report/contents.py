"""What the page and the tables for print say, gathered from the results: plain values, each list of rows one table."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cu_ray.errors import UserError, did_you_mean
from cu_ray.report import comparison, false_positives, figures, plane, survival
from cu_ray.report.cells import ALWAYS, baselines, cell_names, chosen, comparable
from cu_ray.report.costs import costs
from cu_ray.report.gaps import gaps
from cu_ray.report.panels import Figure
from cu_ray.report.recovery import MOST, areas, smallest_fraction, summaries, with_recovery
from cu_ray.report.terminal import metrics_in
from cu_ray.selection import RULES

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

Row = dict[str, Any]
SCORES = (*ALWAYS, "recovered", "lost")
PLACE = ["origin", "cell", "fraction", "seed"]
OTHER_COLUMNS = ("cell", "method", "fraction", "seconds", "n")  # of the table of all results
MOST_REASONS = 30


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a report says, under one selection rule."""

    results: tuple[Results, ...]
    rule: str
    rows: pd.DataFrame  # of trials that the rule chose, with the recovered share
    compared: tuple[pd.DataFrame, ...]  # score of each method (column) at the places that all of it have; see `_compared`
    means: pd.DataFrame  # over seeds
    styles: dict[str, int]  # of each method, in the order of the sweep file
    figures: tuple[Figure, ...]
    spots: tuple[plane.Spot, ...]  # of the plane
    survival: pd.DataFrame  # scores and ranks under rules that see less and less
    others: tuple[str, ...]  # metrics that not every table has: of plug-ins, or computed by `cu-ray rescore`

    @property
    def short_names(self) -> dict[str, str]:
        """The names of the other metrics without their modules, where that leaves no doubt."""
        short = {name: name.rpartition(":")[2] for name in self.others}
        taken = Counter([*short.values(), *SCORES, *OTHER_COLUMNS])
        return {name: each if taken[each] == 1 else name.replace(":", ".") for name, each in short.items()}

    @property
    def title(self) -> str:
        """The names of what is reported."""
        return " and ".join(each.label for each in self.results)


def gather(results: Sequence[Results], rule: str) -> Contents:
    """The contents of a report on these results."""
    rows = with_recovery(chosen(results, rule), baselines(results, rule))
    names = cell_names(results)
    order = {name: place for place, name in enumerate(dict.fromkeys(names.values()))}
    styles = {str(method): place for place, method in enumerate(dict.fromkeys(rows["method"]))}
    rows = rows.sort_values("cell", key=lambda cells: cells.map(order), kind="stable")
    metrics = dict.fromkeys(name for each in results for name in metrics_in(each.trials.columns))
    others = [name for name in metrics if name not in ALWAYS]
    shared = comparable(rows)
    compared = _compared(shared)
    means = summaries(rows, ["cell", "method", "fraction"], [*SCORES, *others, "unlearn_seconds"])
    honest = "oracle_validation" if RULES[rule].peeks else rule
    honestly = shared if honest == rule else comparable(chosen(results, honest))
    spots = plane.spots(honestly, plane.regularities(names))
    made = [
        plane.figure(spots, styles, honest),
        figures.curves(rows, styles),
        false_positives.figure(results, rows, styles),
        figures.tradeoff(shared, styles),
        figures.cost(_at(compared, shared), styles),
    ]
    survivors = survival.survival(results)
    made += [
        survival.figure(survivors, styles),
        figures.best_of_n(results, names, styles),
        figures.landscapes(results, names, styles),
    ]
    drawn = tuple(figure for figure in made if figure.panels)
    return Contents(tuple(results), rule, rows, compared, means, styles, drawn, tuple(spots), survivors, tuple(others))


def rule_of(results: Sequence[Results], wanted: str | None) -> str:
    """The rule asked for, or that of the search."""
    if wanted is not None and wanted not in RULES:
        raise UserError(f"{wanted!r} is no selection rule. {did_you_mean(wanted, RULES)}")
    objectives = [str(name) for each in results for name in each.best["search_objective"].dropna()]
    return wanted or next(iter(objectives), "oracle_validation")


def runs(results: Results) -> dict[str, str]:
    """What was run, in words, by name."""
    trials, originals = results.trials, results.originals
    ended = trials["finished_at"].dropna()
    facts = {
        "data": _listed(trials["dataset"]),
        "models": _listed(trials["model"]),
        "manipulations": _listed(trials["manipulation"] + " " + trials["manipulation_size"].astype(str)),
        "methods": _listed(results.best["method"]),
        "deletion fractions": _listed(results.best["deletion_fraction"].map("{:g}".format)),
        "seeds": _listed(trials["seed"].sort_values()),
        "trials": f"{len(trials):,}, of these {(trials['status'] != 'ok').sum():,} failed or diverged",
        "originals": f"{len(originals):,}, of these {(originals['status'] != 'ok').sum():,} failed or diverged",
        "run": f"{_minute(trials['started_at'].dropna().min())} to {_minute(ended.max())} UTC" if len(ended) else "",
        "on": _listed(trials["device"]),
        "precision": _listed(trials["precision"]),
        "versions": _versions(trials),
        "imported": f"{count:,} trials from logs of the published code" if (count := _num_imported(trials)) else "",
    }
    return {name: text for name, text in facts.items() if text}


def missing(results: Results, rule: str) -> list[str]:
    """What is not there of what was asked for, a line each."""
    lines = [results.unfinished] if results.unfinished else []
    best = results.best[(results.best["rule"] == rule) & results.best["control"].isna()]
    for method, own in best.groupby("method", sort=False):
        tried = results.trials[results.trials["method"] == method]
        failed = tried[tried["status"] != "ok"]
        if (own["n"] == 0).all():
            elsewhere = results.best[(results.best["method"] == method) & (results.best["n"] > 0)]["rule"]
            why = "no trial is done and has a score"
            if len(tried) and len(failed) == len(tried):
                why = f"all {len(tried)} trials failed"
            elif len(elsewhere):
                why = f"{rule} cannot choose among its trials, {', '.join(dict.fromkeys(elsewhere))} can"
            lines.append(f"{method} has no result: {why}")
        elif (short := own["n"] < (planned := _planned(own))).any():
            lines.append(f"{method}: fewer than {planned.max()} seeds in {short.sum()} of {len(own)} rows")
        if (open_ := own["num_points"] < own["num_points_planned"]).any():
            lines.append(f"{method}: {int(open_.sum())} of {len(own)} searches have fewer points than planned")
    if len(best) and best["n"].max() == 1:
        lines.append("one seed: nothing says how much is chance, and intervals are over cells alone")
    if unknown := _without_reference(results, rule):
        lines.append(f"no recovered share for {unknown}: it needs exact_unlearning of all layers at fraction 1 on that seed")
    if results.num_not_rescored:
        lines.append(
            f"{results.num_not_rescored} trials lack the metrics of `cu-ray rescore`, which computes them where evidence was kept"
        )
    if num_stale := int(results.trials["stale"].eq(True).sum()):
        lines.append(f"{num_stale} trials were made by other versions of the code than the one installed")
    return lines


def _planned(best: pd.DataFrame) -> pd.Series:
    """How many seeds each row was to have; in tables that do not say it as many as the fullest."""
    return best["n_planned"] if "n_planned" in best else best["n"].clip(lower=best["n"].max())


def _without_reference(results: Results, rule: str) -> str:
    """Of how many originals that are reported no retraining is there, in words."""
    reported = chosen([results], rule)[["cell", "seed", "original_key"]].drop_duplicates()
    known = baselines([results], rule).dropna(subset=["retrained"])[["cell", "seed"]]
    lacking = reported.merge(known, how="left", indicator=True).query("_merge == 'left_only'")
    count, whole = lacking["original_key"].nunique(), reported["original_key"].nunique()
    return f"{count} of {whole} originals" if count else ""


def recovery_rows(contents: Contents) -> list[Row]:
    """A row for each cell and method: areas under its curves, mean and interval over seeds; the fraction that recovers 90 %."""
    rows, by = contents.rows, ["cell", "method"]
    means = {
        column: summaries(areas(rows, column), by, ["area"]).set_index(by).to_dict("index")
        for column in ("acc_corr", "acc_retain", "recovered")
    }
    found: list[Row] = []
    for (cell, method), own in contents.means.groupby(by, sort=False):
        row: Row = {"cell": cell, "method": method}
        for column, found_areas in means.items():
            row[f"area {column}"] = _interval_of(found_areas[cell, method], "area")
        row["90 % from"] = _ninety(own, contents.rows[(contents.rows["cell"] == cell) & (contents.rows["method"] == method)])
        row["n"] = int(own["acc_retain_n"].max())
        found.append(row)
    return found


def _ninety(means: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """'0.4 (4 of 5 seeds)': the smallest fraction at which the mean recovered share reaches 0.9, and how many seeds do there."""
    known = means.dropna(subset=["recovered_mean"])
    if not len(known):
        return None
    fraction = smallest_fraction(list(known["fraction"]), list(known["recovered_mean"]))
    if fraction is None:
        return "never"
    shares = rows.loc[rows["fraction"] == fraction, "recovered"].dropna()
    return f"{fraction:g} ({(shares >= MOST).sum()} of {len(shares)} seeds)"


def rank_rows(contents: Contents) -> list[Row]:
    """A row for each method: mean score over cells and fractions, average rank over cells; none where most places are missing."""
    rows: list[Row] = []
    for scores in contents.compared:
        by_cell = scores.groupby(level="origin", sort=False).mean()
        ranks, where = comparison.average_ranks(by_cell), {"cells": len(by_cell), "n": len(scores)}
        own = [
            {"method": name, "score": float(by_cell[name].mean()), "average rank": rank, **where} for name, rank in ranks.items()
        ]
        rows += sorted(own, key=lambda row: -row["score"])
    known = {row["method"] for row in rows}
    nothing = {"score": None, "average rank": None, "cells": None, "n": None}
    return [*rows, *({"method": method, **nothing} for method in contents.styles if method not in known)]


def pair_rows(contents: Contents) -> list[Row]:
    """A row for each pair of methods, the smallest corrected p first: over cells, or over seeds where cells are too few."""
    level, unit, test = "origin", "cells", comparison.over_cells
    if few_cells(contents):
        level, unit, test = "seed", "seeds", comparison.over_seeds
    pairs = [pair for scores in contents.compared for pair in test(scores.groupby(level=level, sort=False).mean())]
    rows = [
        {"method": p.one, "against": p.other, unit: p.n, "difference": p.difference, "p": p.p, "p, Holm": p.corrected}
        for p in pairs
    ]
    return sorted(rows, key=lambda row: (row["p, Holm"] is None, row["p, Holm"]))


def few_cells(contents: Contents) -> bool:
    """Whether to test over seeds: there are several, and too few cells for a signed rank test to come below 0.05.

    That is after the correction for all pairs of methods.
    """
    counts = [(scores.index.get_level_values("origin").nunique(), len(scores.columns)) for scores in contents.compared]
    few = any(methods * (methods - 1) / 2**cells >= comparison.LEVEL for cells, methods in counts)
    return few and contents.rows["seed"].nunique() > 1


def gap_rows(contents: Contents) -> list[Row]:
    """A row for each searched method and rule."""
    found = gaps(contents.results)
    return [
        {
            "method": row["method"],
            "rule": row["rule"],
            "behind oracle": _Interval(row["gap"], row["low"], row["high"], row["n"]),
            "n": row["n"],
            "pool": "drawn for one rule: flatters it" if row["flattered"] else "drawn for no rule",
        }
        for row in found.to_dict("records")
    ]


def spot_rows(contents: Contents) -> list[Row]:
    """A row for each spot of the plane, the most regular corruption first."""
    gaps_there = any(spot.left_out for spot in contents.spots)
    return [
        {
            "cell": spot.cell,
            "found": spot.fraction,
            "best": spot.best,
            "score": _Interval(spot.score.mean, spot.score.low, spot.score.high, spot.score.n),
            "next": spot.second,
            "ahead by": _Interval(spot.ahead.mean, spot.ahead.low, spot.ahead.high, spot.ahead.n),
            "of all others": "yes" if spot.clear else "not beyond the noise of seeds",
            "n": spot.score.n,
            **({"lacking a seed": ", ".join(spot.left_out)} if gaps_there else {}),
        }
        for spot in sorted(contents.spots, key=lambda spot: -spot.regularity)
    ]


def survival_rows(contents: Contents) -> list[Row]:
    """A row for each method, the best as published first: its score and rank under each rule, and what is lost on the way."""
    found = contents.survival
    measured = found.set_index(["method", "rule", "measure"]).to_dict("index")
    rows: list[Row] = []
    for method in dict.fromkeys(found["method"]):
        row: Row = {"method": method}
        before = measured[method, survival.PEEKING, "rank"]["mean"]
        for rule in dict.fromkeys(found["rule"]):
            score, rank, lost = (measured[method, rule, measure] for measure in ("score", "rank", "lost"))
            row[rule] = _Interval(score["mean"], _known(score["low"]), _known(score["high"]), score["n"])
            row[f"rank, {rule}"] = _rank(rank["mean"], rank["low"], rank["high"], before)
            if rule != survival.PEEKING:
                row[f"lost, {rule}"] = _Interval(lost["mean"], _known(lost["low"]), _known(lost["high"]), lost["n"])
        rows.append(row | {"n": measured[method, survival.PEEKING, "score"]["n"]})
    return sorted(rows, key=lambda row: -row[survival.PEEKING].mean)


def _rank(rank: float, low: float, high: float, before: float) -> str:
    """'5 (3 to 7), 2 down': a rank, its interval, and how far it is from where it was."""
    interval = "" if math.isnan(low) else f" ({low:g} to {high:g})"
    moved = "" if rank == before else f", {abs(rank - before):g} {'up' if rank < before else 'down'}"
    return f"{rank:g}{interval}{moved}"


def cost_rows(results: Results) -> list[Row]:
    """A row for each method and one for the originals."""
    return [
        {
            "method": row["method"],
            "trials": int(row["trials"]),
            "failed": int(row["failed"]),
            "images forward": _known(row["forward"]),
            "images backward": _known(row["backward"]),
            "seconds": _known(row["seconds"]),
            "GPU-hours": _known(row["gpu_hours"]),
        }
        for row in costs(results).to_dict("records")
    ]


def failure_rows(results: Results) -> list[Row]:
    """A row for each method and reason, the most frequent first: how often, and the key of one such trial."""
    failed = results.trials[results.trials["status"] != "ok"]
    grouped = failed.fillna({"error": "no reason recorded"}).groupby(["method", "status", "error"], sort=False)["trial_key"]
    rows = [
        {"method": method, "status": status, "reason": reason, "trials": len(keys), "one of them": keys.iloc[0][:16]}
        for (method, status, reason), keys in grouped
    ]
    rows = sorted(rows, key=lambda row: -row["trials"])
    if rest := rows[MOST_REASONS:]:
        count = sum(row["trials"] for row in rest)
        others = {"method": "others", "status": "", "reason": f"{len(rest)} more reasons: see trials.parquet", "trials": count}
        rows = [*rows[:MOST_REASONS], {**others, "one of them": ""}]
    return rows


def result_rows(contents: Contents) -> list[Row]:
    """A row for each cell, method and fraction: all means with their intervals."""
    shown = [metric for metric in (*SCORES, *contents.others) if contents.means[f"{metric}_n"].max() > 0]
    columns = list(contents.means.columns)
    found: list[Row] = []
    for values in contents.means.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        kept: Row = {"cell": row["cell"], "method": row["method"], "fraction": row["fraction"]}
        kept |= {contents.short_names.get(metric, metric): _interval_of(row, metric) for metric in shown}
        found.append(kept | {"seconds": _known(row["unlearn_seconds_mean"]), "n": row["acc_retain_n"]})
    return found


def checksums(results: Results) -> dict[str, str]:
    """The SHA-256 of each table's file."""
    tables = results.folder / "tables"
    names = sorted(file.name for file in tables.files() if file.name.endswith(".parquet"))
    return {name: hashlib.sha256(tables.read(name)).hexdigest() for name in names}


def trainings(results: Results) -> list[str]:
    """How originals were trained, in words."""
    recipes = [json.loads(text) for text in results.trials["train"].drop_duplicates()]
    return [", ".join(f"{name} {value}" for name, value in recipe.items()) for recipe in recipes]


@dataclass(frozen=True)
class _Interval:
    """A mean with its interval, as a cell of a table."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def _interval_of(row: Mapping[Any, Any], metric: str) -> _Interval:
    mean, low, high = (_known(row[f"{metric}_{part}"]) for part in ("mean", "low", "high"))
    return _Interval(mean, low, high, row[f"{metric}_n"])


def _versions(trials: pd.DataFrame) -> str:
    own = _listed(trials["cu_ray_version"])
    return own and f"cu-ray {own}, torch {_listed(trials['torch_version'])}"


def _num_imported(trials: pd.DataFrame) -> int:
    return int(trials["source"].notna().sum()) if "source" in trials else 0  # tables from before the column have none


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _compared(rows: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """The scores of methods (columns) at places (origin, cell, fraction, seed) that all of them have.

    One table; one for each folder where these have too little in common.
    """
    scored = rows.assign(score=(rows["acc_corr"] + rows["acc_retain"]) / 2).dropna(subset=["score"])

    def common(own: pd.DataFrame) -> pd.DataFrame:
        return comparison.common(own.pivot_table(index=PLACE, columns="method", values="score", aggfunc="mean", sort=False))

    whole = common(scored)
    sweeps = scored.groupby("sweep", sort=False)
    if all(whole.columns.isin(own["method"]).any() for _, own in sweeps) and len(whole):
        return (whole,)
    return tuple(common(own) for _, own in sweeps)


def _at(compared: Sequence[pd.DataFrame], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the places, and of the methods, that are compared."""
    import pandas as pd

    places = pd.MultiIndex.from_frame(rows[PLACE])
    there = [places.isin(scores.index) & rows["method"].isin(scores.columns) for scores in compared]
    return rows[np.logical_or.reduce(there)] if there else rows


def _listed(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values.dropna())))


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
