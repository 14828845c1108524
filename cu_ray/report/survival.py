"""What is left of each method's result when nobody peeks: its score and rank under rules that see less and less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cu_ray.report.comparison import FEW, resamples, tails
from cu_ray.report.gaps import COMPARED, PLACE, scores_under
from cu_ray.report.panels import Figure, Panel, limits, line_of_means

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

Scores = npt.NDArray[np.float64]

PEEKING = "published"
RULES = (PEEKING, *COMPARED)


def survival(results: Sequence[Results]) -> pd.DataFrame:
    """A row for each measure, method and rule; measures: score, rank, what is lost beside the choice by the published rule.

    Scores are means over cells of means over all else, at the places (cell, fraction, seed) where all rules have chosen; methods
    that lack one of these are left out, and so are rules under which no search has a choice. 95 % intervals as those of
    `comparison.interval`. All are on the report half, what the published rule chose on the whole test set as well: else images
    would differ with the rules.
    """
    import pandas as pd

    wide = _paired(results)
    rules, (methods, cells) = list(wide), _by_cell(wide)
    rows = []
    for measure, parts in _measures(cells).items() if cells else ():
        for place, rule in enumerate(rules):
            for number, method in enumerate(methods):
                mean, low, high = (float(part[place, number]) for part in parts)
                rows.append({"method": method, "rule": rule, "measure": measure, "mean": mean, "low": low, "high": high})
    columns = ["method", "rule", "measure", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(n=sum(map(len, cells)))


def figure(found: pd.DataFrame, styles: dict[str, int]) -> Figure:
    """Score, and what of the published one is lost, of each method under the rules of `survival`; nothing where there is none."""
    rules = tuple(dict.fromkeys(found["rule"]))
    panels = [
        _panel("Score", found[found["measure"] == "score"].assign(low=np.nan, high=np.nan), rules, styles),
        _panel("Lost beside the published choice", found[found["measure"] == "lost"], rules, styles),
    ]
    caption = (
        "Means over cells, fractions and seeds, where the same trials are chosen among by rules that see less and less; on the "
        "report half of the test images, also what the published rule chose by all of them. Lost: "
        "paired, with 95 % intervals over cells and seeds."
    )
    return Figure("survival", "What survives when nobody peeks", caption, tuple(panels) if rules else ())


def _panel(title: str, rows: pd.DataFrame, rules: tuple[str, ...], styles: dict[str, int]) -> Panel:
    places = {rule: float(place) for place, rule in enumerate(rules)}
    own = rows.assign(place=rows["rule"].map(places)).rename(columns={name: f"y_{name}" for name in ("mean", "low", "high", "n")})
    lines = tuple(
        line_of_means(str(method), styles.get(str(method), 0), each, "place", "y", at=lambda place: f"by {rules[int(place)]}")
        for method, each in own.groupby("method", sort=False)
    )
    return Panel(
        title, "rule of choice", "score", lines, limits(list(places.values())), limits(list(own["y_mean"])), columns=rules
    )


def _paired(results: Sequence[Results]) -> pd.DataFrame:
    """Scores by place and method, a column for each rule that chose in some search: where all of these chose in one."""
    import pandas as pd

    searched = {str(name) for each in results for name in each.best.loc[each.best["search_objective"].notna(), "method"]}
    frames = {rule: scores_under(results, rule).groupby(PLACE, sort=False)["score"].mean() for rule in RULES}
    there = {rule: frame for rule, frame in frames.items() if _plain(frame).isin(searched).any()}
    if len(there) < 2 or PEEKING not in there:
        return pd.DataFrame()
    wide = pd.concat(there, axis=1, join="inner")
    places = wide.reset_index("method").index
    return wide[places.isin(places[_plain(wide).isin(searched)])]  # a method without a choice is everywhere


def _by_cell(wide: pd.DataFrame) -> tuple[list[str], list[Scores]]:
    """The methods that have the most places; of each cell their scores [seeds, rules, methods], means over fractions."""
    import pandas as pd

    if not len(wide):
        return [], []
    places = wide.groupby("method", sort=False).size()
    methods = [str(name) for name in places.index[places == places.max()]]
    columns: list[tuple[str, str]] = [(str(rule), method) for rule in wide for method in methods]
    whole = pd.DataFrame(wide.unstack("method"))[columns].dropna()
    by_cell = whole.groupby(["origin", "seed"], sort=False).mean().groupby(level="origin", sort=False)
    return methods, [own.to_numpy(dtype=float).reshape(len(own), -1, len(methods)) for _, own in by_cell]


def _plain(frame: pd.Series | pd.DataFrame) -> pd.Index:
    """The method of each row, without the folder that it is of."""
    return frame.index.get_level_values("method").str.replace(r" \(.*\)$", "", regex=True)


def _measures(cells: Sequence[Scores]) -> dict[str, tuple[Scores, Scores, Scores]]:
    """Score, rank and loss [rules, methods] and the ends of their intervals, from the scores [seeds, rules, methods] by cell.

    Intervals as those of `comparison.interval`, the same draws for all; of ranks a bootstrap over cells, over seeds where there
    is one cell, and none where there are fewer than `FEW`.
    """
    import scipy.stats

    values = np.concatenate(list(cells))
    whole = np.stack([cell.mean(axis=0) for cell in cells]).mean(axis=0)
    found = {"score": whole, "rank": scipy.stats.rankdata(-whole, axis=1), "lost": whole[:1] - whole}
    intervals = dict.fromkeys(found, (np.full_like(whole, np.nan), np.full_like(whole, np.nan)))
    count = len(cells) if len(cells) > 1 else len(values)
    if count >= FEW:
        drawn, ends = np.tensordot(resamples(list(map(len, cells)), "survival"), values, 1), tails(count)
        ranks = scipy.stats.rankdata(-drawn, axis=2)
        intervals["rank"] = _ends(np.quantile(ranks, ends, axis=0, method="nearest"))  # ranks that somebody had
        intervals |= {"score": _ends(np.quantile(drawn, ends, axis=0))}
        intervals |= {"lost": _ends(np.quantile(drawn[:, :1] - drawn, ends, axis=0))}
    if len(cells) < FEW and len(values) > 1:
        means = values if len(cells) == 1 else np.stack([cell.mean(axis=0) for cell in cells])
        intervals |= {"score": _by_student(means), "lost": _by_student(means[:, :1] - means)}
    return {name: (each, *intervals[name]) for name, each in found.items()}


def _ends(both: Scores) -> tuple[Scores, Scores]:
    return both[0], both[1]


def _by_student(values: Scores) -> tuple[Scores, Scores]:
    """The ends of the 95 % interval of the mean over the first axis."""
    import scipy.special

    count, mean = len(values), values.mean(axis=0)
    reach = scipy.special.stdtrit(count - 1, 0.975) * values.std(axis=0, ddof=1) / count**0.5
    return mean - reach, mean + reach
