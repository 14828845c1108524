"""How methods bear what was found wrongly: their accuracies against the share of it that was never manipulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cu_ray.report.cells import cell_names
from cu_ray.report.panels import Figure, Panel, limits, line_of_means
from cu_ray.report.recovery import summaries
from cu_ray.report.results import SETTING

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

DETECTIONS = ("uniform", "false_positives")  # differ in nothing but that share
SHARE = "share of what was found that was not manipulated"


def figure(results: Sequence[Results], rows: pd.DataFrame, styles: dict[str, int]) -> Figure:
    """A panel a cell, deletion fraction and metric, a line a method with its 95 % interval over seeds; none for a single share.

    rows: of trials that a selection rule chose. A method that looks at no deletion set is at the shares that others saw.
    """
    beside = _beside(results)
    own = rows[rows["cell"].isin(beside)]
    seen = own.dropna(subset=["detection_precision"])
    panels = _panels(own.assign(beside=own["cell"].map(beside)), seen, styles) if len(seen) else ()
    caption = (
        "As many samples are found at each share, but fewer of them are right. Means over seeds with 95 % intervals by "
        "Student's t (none where there is one seed)."
    )
    return Figure("false_positives", "Accuracy against false positives", caption, tuple(panels))


def _panels(rows: pd.DataFrame, seen: pd.DataFrame, styles: dict[str, int]) -> Iterator[Panel]:
    metrics = [name for name in ("acc_corr", "acc_retain") if rows[name].notna().any()]
    shares = 1 - seen.groupby(["cell", "fraction"])["detection_precision"].mean().rename("share")
    means = summaries(rows, ["cell", "beside", "method", "fraction"], metrics).join(shares, on=["cell", "fraction"])
    for (cell, fraction), place in means.dropna(subset=["share"]).groupby(["beside", "fraction"], sort=False):
        if place["share"].nunique() > 1:
            yield from (_panel(f"{cell}, {fraction:g} found", metric, place, styles) for metric in metrics)


def _panel(title: str, metric: str, means: pd.DataFrame, styles: dict[str, int]) -> Panel:
    lines = [
        line_of_means(str(method), styles[str(method)], own.sort_values("share"), "share", metric)
        for method, own in means.groupby("method", sort=False)
    ]
    spans = limits(list(means["share"])), limits(list(means[f"{metric}_mean"]))
    return Panel(f"{title}: {metric}", SHARE, metric, tuple(lines), *spans)


def _beside(results: Sequence[Results]) -> dict[str, str]:
    """Of each cell that was found by these detections its name without the detection."""
    names: dict[tuple[Any, ...], str] = cell_names(results)
    plain = cell_names(results, without="detection")
    place = SETTING.index("detection")
    return {name: plain[setting] for setting, name in names.items() if str(setting[place]).partition("(")[0] in DETECTIONS}
