"""The figures of a report in plain values, from the chosen trials and the pools that they were chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cu_ray.report import budgets
from cu_ray.report.cells import measured
from cu_ray.report.comparison import by_origin, interval, mean_over
from cu_ray.report.panels import Figure, Line, Panel, Points, limits, line_of_means, told
from cu_ray.report.recovery import summaries

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

FRACTION = "share of the manipulated set found"
MOST_POINTS = 250  # in one panel of a landscape; beyond, a mean for each tenth of the points


def curves(rows: pd.DataFrame, styles: dict[str, int]) -> Figure:
    """Each metric against the deletion fraction: a panel a cell and metric, a line a method with its 95 % interval over seeds."""
    metrics = [name for name in ("acc_corr", "acc_retain") if rows[name].notna().any()]
    means = summaries(rows, ["cell", "method", "fraction"], metrics)
    panels = []
    for cell, own in means.groupby("cell", sort=False):
        for metric in metrics:
            lines = [
                line_of_means(str(method), styles[str(method)], each.sort_values("fraction"), "fraction", metric)
                for method, each in own.groupby("method", sort=False)
            ]
            y_limits = limits(list(means[f"{metric}_mean"]))
            panels.append(Panel(f"{cell}: {metric}", FRACTION, metric, tuple(lines), limits(list(means["fraction"])), y_limits))
    caption = (
        "Means over seeds with 95 % intervals by Student's t (none where there is one seed; cut off at the frame). "
        "acc_corr: accuracy on what the manipulation harms; acc_retain: on the rest; both against true labels."
    )
    return Figure("curves", "Accuracy against the share that was found", caption, tuple(panels))


def tradeoff(rows: pd.DataFrame, styles: dict[str, int]) -> Figure:
    """acc_corr against acc_retain: a panel a cell, a point a method and fraction, and the Pareto front of each fraction."""
    means = summaries(rows, ["cell", "method", "fraction"], ["acc_corr", "acc_retain"])
    means = means.assign(x=means["acc_retain_mean"], y=means["acc_corr_mean"]).dropna(subset=["x", "y"])
    panels = []
    for cell, own in means.groupby("cell", sort=False):
        lines = []
        for method, each in own.groupby("method", sort=False):
            parts = each["fraction"], told(each, "acc_corr"), told(each, "acc_retain")
            notes = tuple(
                f"{method} at {at:g}: acc_corr {corr}; acc_retain {retain}" for at, corr, retain in zip(*parts, strict=True)
            )
            lines.append(Line(str(method), styles[str(method)], tuple(each["x"]), tuple(each["y"]), notes=notes, joined=False))
        found = [(f"{at:g}", _front(list(zip(each["x"], each["y"], strict=True)))) for at, each in own.groupby("fraction")]
        fronts = tuple((text, front) for text, front in found if len(front) > 1)
        spans = limits(list(own["x"])), limits(list(own["y"]))
        panels.append(Panel(str(cell), "acc_retain", "acc_corr", tuple(lines), *spans, fronts=fronts))
    caption = (
        "A point a method and deletion fraction, mean over seeds. Each dotted line belongs to one fraction, written at its left "
        "end, and joins the points that no other of that fraction beats in both accuracies."
    )
    return Figure("tradeoff", "What correction costs elsewhere", caption, tuple(panels))


def best_of_n(results: Sequence[Results], names: dict[tuple[Any, ...], str], styles: dict[str, int]) -> Figure:
    """The score of the best of n points of a search against n, a line a method that was searched."""
    panels, adaptive = [], []
    for each in results:
        lines = []
        for method, own in budgets.curves(each, names).groupby("method", sort=False):
            if len(own) < 2:
                continue
            name = _name(method, each, results)
            notes = tuple(f"{name} after {row.n}: {row.score:.3f}" for row in own.itertuples())
            lines.append(Line(name, styles.get(name, 0), tuple(own["n"]), tuple(own["score"]), notes=notes))
            adaptive += [name] if own["adaptive"].any() else []
        if lines:
            x, y = [value for line in lines for value in line.x], [value for line in lines for value in line.y]
            panels.append(Panel(each.label, "points tried", "score of the best", tuple(lines), limits(x), limits(y)))
    caption = (
        "Score: mean of acc_corr and acc_retain on the report half, the best chosen on the selection half; mean over searches. "
        "A failed point is one of those tried. Exact expectation for grid, random and quasi-random points; for adaptive samplers "
        "the one path that was taken."
    ) + (f" One path: {', '.join(adaptive)}." if adaptive else "")
    return Figure("best_of_n", "How good after how many trials", caption, tuple(panels))


def landscapes(results: Sequence[Results], names: dict[tuple[Any, ...], str], styles: dict[str, int]) -> Figure:
    """For each searched number of each method, how far points fall behind the best of their search."""
    panels = []
    for each in results:
        trials = measured(budgets.searched_on(each)).dropna(subset=["val_acc_corr", "val_acc_retain"])
        score = (trials["val_acc_corr"] + trials["val_acc_retain"]) / 2
        behind = score - score.groupby([trials["study_key"], trials["seed"], trials["deletion_size"]]).transform("max")
        for method, own in trials.assign(behind=behind).groupby("method", sort=False):
            name = _name(method, each, results)
            for column in _searched(own):
                lines = (_landscape(name, own, column, styles.get(name, 0)),)
                log = _is_log(lines[0].x)
                title = f"{name}: {column.removeprefix('hp_')} ({_importance(own, column):.0%})"
                spans = limits(lines[0].x, log=log), limits([*lines[0].y, 0])
                panels.append(Panel(title, column.removeprefix("hp_"), "behind the best", lines, *spans, log_x=log))
    caption = (
        "A point a trial: its score on the selection half less the best of its search. In brackets how much of the variance of "
        "these differences the value alone explains. Of many trials, means of tenths."
    )
    return Figure("landscapes", "Hyperparameters", caption, tuple(panels))


def cost(rows: pd.DataFrame, styles: dict[str, int]) -> Figure:
    """Mean score of each method against what one trial takes, in images and in seconds."""
    scored = rows.assign(
        score=(rows["acc_corr"] + rows["acc_retain"]) / 2,
        images=(rows["images_forward"] + 2 * rows["images_backward"]).astype(float),
    ).dropna(subset=["score"])
    panels = []
    for column, label in (("images", "images forward + 2 x images backward"), ("unlearn_seconds", "seconds of unlearning")):
        lines = []
        for method, own in scored.dropna(subset=[column]).groupby("method", sort=False):
            cells = by_origin(own, "score")
            low, high = interval(cells, f"cost {method}") or (None, None)
            taken, height = float(own[column].mean()), mean_over(cells)
            note = f"{method}: {height:.3f}" + ("" if low is None else f", {low:.3f} to {high:.3f}") + f", n = {len(own)}"
            lines.append(Line(str(method), styles[str(method)], (taken,), (height,), (low,), (high,), (note,), joined=False))
        if lines:
            y = [value for line in lines for value in (*line.y, *line.low, *line.high) if value is not None]
            x_limits = limits([0, *(line.x[0] for line in lines)])
            panels.append(Panel(f"Score against {label}", label, "score", tuple(lines), x_limits, limits(y)))
    caption = (
        "What one trial takes alone, mean over all; score: mean of acc_corr and acc_retain over cells and fractions, with a 95 % "
        "interval over cells and seeds, at the places that all methods that are compared have."
    )
    return Figure("cost", "Cost against quality", caption, tuple(panels))


def _front(points: list[tuple[float, float]]) -> Points:
    """Those that no other is at least as good as in both and better in one, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return tuple(reversed(front))


def _searched(trials: pd.DataFrame) -> list[str]:
    """The columns of numbers that took three values or more."""
    numbers = [name for name in trials if str(name).startswith("hp_") and trials[name].dtype.kind in "if"]
    return [str(name) for name in numbers if trials[name].nunique() >= 3]


def _landscape(name: str, own: pd.DataFrame, column: str, style: int) -> Line:
    points = own.dropna(subset=[column]).sort_values(column)
    if len(points) > MOST_POINTS:
        parts = (
            np.array_split(np.arange(len(points)), 10)
            if points[column].nunique() > 20
            else list(points.groupby(column).indices.values())
        )
        means = [points.iloc[part][[column, "behind"]].astype(float).mean() for part in parts]
        return Line(name, style, tuple(each[column] for each in means), tuple(each["behind"] for each in means))
    return Line(name, style, tuple(points[column].astype(float)), tuple(points["behind"]), joined=False)


def _importance(own: pd.DataFrame, column: str) -> float:
    """The share of the variance that groups of equal (or neighbouring) values explain, less what chance would; at least 0."""
    import pandas as pd

    points = own.dropna(subset=[column])
    value = points[column].astype(float)
    few = max(1, min(5, len(value) // 4))
    group = value if value.nunique() <= min(10, len(value) / 4) else pd.qcut(value.rank(method="first"), few, labels=False)
    whole, inside = (
        points["behind"].var(ddof=0) * len(points),
        (points["behind"].groupby(group).var(ddof=0) * group.value_counts()).sum(),
    )
    spare, degrees = len(points) - group.nunique(), group.nunique() - 1
    if whole < 1e-12 or spare < 1:
        return 0.0
    return float(max(0.0, (whole - inside - degrees * inside / spare) / whole))


def _is_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 20


def _name(method: object, own: Results, results: Sequence[Results]) -> str:
    """The method's name, which says whose it is where there are several results."""
    return f"{method} ({own.label})" if len(results) > 1 else str(method)
