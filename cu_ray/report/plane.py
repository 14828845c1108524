"""REM's plane (arXiv 2505.17730): how much was found against how regular the corruption is, and which method is best where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cu_ray import plugins
from cu_ray.errors import UserError
from cu_ray.report.comparison import best_and_significant
from cu_ray.report.panels import Figure, Line, Panel, limits
from cu_ray.report.statistics import Summary, summarise

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 5  # of one panel


@dataclass(frozen=True)
class Spot:
    """One cell and deletion fraction: the best method, its score, and by how much it is ahead of the next, paired by seed."""

    cell: str
    regularity: int
    fraction: float
    best: str
    score: Summary
    second: str
    ahead: Summary
    clear: bool  # ahead of every other method beyond the noise of seeds
    left_out: tuple[str, ...] = ()  # methods that lack a seed


def regularities(names: dict[tuple[Any, ...], str]) -> dict[str, int]:
    """How regular the corruption of each cell is, where its manipulation says so; names: those of cells by their setting."""
    known = {name: _regularity(setting[2]) for setting, name in names.items()}
    return {name: regularity for name, regularity in known.items() if regularity is not None}


def spots(rows: pd.DataFrame, regularity: dict[str, int]) -> list[Spot]:
    """The spots of the plane, the least regular cells first. A method that lacks one of a spot's seeds is not compared there.

    rows: of trials that a selection rule chose, `comparable`.
    """
    rows = rows.assign(score=(rows["acc_corr"] + rows["acc_retain"]) / 2).dropna(subset=["score"])
    found = []
    places: Any = rows[rows["cell"].isin(regularity)].groupby(["cell", "fraction"], sort=False)
    for (cell, fraction), own in places:
        every = own.pivot_table(index="seed", columns="method", values="score", aggfunc="mean", sort=False)
        by_seed = every.dropna(axis=1)
        left_out = tuple(map(str, every.columns.difference(by_seed.columns, sort=False)))
        if len(by_seed.columns) < 2:
            continue
        best, second = by_seed.mean().sort_values(ascending=False, kind="stable").index[:2]
        ahead = summarise(list(by_seed[best] - by_seed[second]))
        clear = best_and_significant(by_seed)[1]
        score = summarise(list(by_seed[best]))
        found.append(Spot(cell, regularity[cell], float(fraction), str(best), score, str(second), ahead, clear, left_out))
    return sorted(found, key=lambda spot: spot.regularity)


def figure(found: Sequence[Spot], styles: dict[str, int], rule: str) -> Figure:
    """A row a cell, the most regular on top; at each fraction the sign of the best method. Nothing for a single regularity."""
    cells = list(dict.fromkeys(spot.cell for spot in found))
    if len({spot.regularity for spot in found}) < 2:
        cells = []
    panels = [_panel(found, cells[start : start + MOST_ROWS], styles) for start in range(0, len(cells), MOST_ROWS)]
    caption = (
        "Upwards the corruption is more regular: each sample for itself, by class, one pattern in all. The sign: the method with "
        "the best mean of acc_corr and acc_retain over seeds. The number: how many hundredths it is ahead of the next, with * "
        "where paired t tests over seeds hold it above every other at 5 %, corrected by Holm. Hyperparameters were chosen by "
        f"{rule}."
    )
    return Figure("plane", "Which method is best where", caption, tuple(panels))


def _panel(found: Sequence[Spot], cells: Sequence[str], styles: dict[str, int]) -> Panel:
    own = [spot for spot in found if spot.cell in cells]
    lines = []
    for method in dict.fromkeys(spot.best for spot in own):
        its = [spot for spot in own if spot.best == method]
        x, y = tuple(spot.fraction for spot in its), tuple(float(cells.index(spot.cell)) for spot in its)
        notes, texts = tuple(map(_note, its)), tuple(map(_text, its))
        lines.append(Line(method, styles[method], x, y, notes=notes, joined=False, texts=texts))
    title = "Best method, and how far it is ahead"
    spans = limits(limits([spot.fraction for spot in own])), (-0.5, len(cells) - 0.2)  # twice: there is room for the numbers
    return Panel(title, "share of the manipulated set found", "more regular", tuple(lines), *spans, rows=tuple(cells))


def _text(spot: Spot) -> str:
    ahead = 100 * (spot.ahead.mean or 0)
    return f"{ahead:.{0 if ahead >= 10 else 1}f}{'*' if spot.clear else ''}"


def _note(spot: Spot) -> str:
    ahead = f"{spot.ahead.mean:.3f}"
    if spot.ahead.low is not None:
        ahead += f" ({spot.ahead.low:.3f} to {spot.ahead.high:.3f})"
    best = f"{spot.best} {spot.score.mean:.3f}, ahead of {spot.second} by {ahead}, n = {spot.score.n}"
    return f"{spot.cell} at {spot.fraction:g}: {best}"


def _regularity(manipulation: str) -> int | None:
    try:
        found: int | None = plugins.find("manipulations", manipulation).regularity
    except UserError:  # one of somebody else's
        return None
    return found
