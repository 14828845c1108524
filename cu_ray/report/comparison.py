"""Which method is better, and whether that is more than chance: paired tests, Holm's correction, ranks, the bootstrap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cu_ray.identity import generator_for
from cu_ray.report.statistics import summarise

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

LEVEL = 0.05
NUM_RESAMPLES = 2000
MORE_RESAMPLES = 20_000  # of few cells: of five the outermost .001 is 19 draws
MANY = 20  # cells
FEW = 5  # cells: the mean of fewer may well lie outside all resamples of them


@dataclass(frozen=True)
class Pair:
    """Two methods over the cells (or seeds) that both have: mean difference, p value, and p corrected for all pairs."""

    one: str
    other: str
    n: int
    difference: float  # mean of one - other
    p: float | None  # None where the pairs are too few, or all differ by the same, to say anything
    corrected: float | None


def over_cells(scores: pd.DataFrame) -> list[Pair]:
    """All pairs of the columns (methods) over the rows (cells), by Wilcoxon's signed rank test, corrected by Holm.

    The test takes cells as independent and asks nothing of their distribution; under 6 cells it cannot come below 0.05.
    """
    return _pairs(scores, wilcoxon)


def over_seeds(scores: pd.DataFrame) -> list[Pair]:
    """All pairs of the columns (methods) over the rows (seeds of a cell and fraction), by the paired t test and Holm."""
    return _pairs(scores, paired_t)


def wilcoxon(differences: Sequence[float]) -> float | None:
    """The two-sided p value of Wilcoxon's signed rank test, exact also where differences are equal; None without differences.

    (scipy's goes through all 2^n signs where some are equal: seconds for 12 cells.)
    """
    import scipy.stats

    moved = np.array([each for each in differences if each])
    if not len(moved):
        return None
    ranks = (2 * scipy.stats.rankdata(np.abs(moved))).astype(int)  # doubled: equals share a rank that may be a half
    chances = np.ones(1)  # of each sum of the ranks of positive differences, when every sign is the toss of a coin
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    positive = int(ranks[moved > 0].sum())
    return float(min(1.0, 2 * chances[: min(positive, ranks.sum() - positive) + 1].sum()))


def paired_t(differences: Sequence[float]) -> float | None:
    """The two-sided p value of the paired t test; None under 2 pairs, or where all differ by the same."""
    import scipy.special

    n = len(differences)
    if n < 2 or np.ptp(differences) < 1e-12:
        return None
    t = np.mean(differences) / (np.std(differences, ddof=1) / n**0.5)
    return float(2 * scipy.special.stdtr(n - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for their number (Holm 1979), in the same order; those that are None are not counted."""
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def average_ranks(scores: pd.DataFrame) -> dict[str, float]:
    """The mean rank of each column (method) over the rows (cells) that all have, 1 the best; equals share a rank."""
    import scipy.stats

    whole = scores.dropna()
    if not len(whole):
        return {}
    ranks = scipy.stats.rankdata(-whole.to_numpy(dtype=float), axis=1)
    return dict(zip(map(str, scores.columns), map(float, ranks.mean(axis=0)), strict=True))


def common(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows that all columns (methods) have, of the columns that have at least half as many rows as the fullest.

    One trial that failed costs a place; a method that lacks most places is not compared, and the others keep them.
    """
    counts = scores.notna().sum()
    shared: pd.DataFrame = scores[counts.index[(counts > 0) & (2 * counts >= counts.max())]].dropna()
    return shared


def best_and_significant(scores: pd.DataFrame) -> tuple[str | None, bool]:
    """The column (method) of the highest mean over the rows (seeds) in `common`; whether it beats each other at 5 %, by Holm."""
    shared = common(scores)
    if shared.empty:
        return None, False
    best = str(shared.mean().idxmax())
    others = [str(name) for name in shared if name != best]
    corrected = holm([paired_t(list(shared[best] - shared[other])) for other in others])
    return best, bool(others) and all(p is not None and p < LEVEL for p in corrected)


def interval(values: Sequence[Sequence[float]], purpose: str) -> tuple[float, float] | None:
    """95 % interval of the mean over cells of the means over seeds; None for a single value in all.

    values: by cell, by seed. From `FEW` cells on a bootstrap: cells are drawn anew, and in each its seeds; the draws are a
    function of the purpose alone. Below, where resamples do not reach far enough, Student's t over the means of cells, and of a
    single cell over its seeds.
    """
    cells = [np.asarray(cell, dtype=float) for cell in values if len(cell)]
    if sum(map(len, cells)) < 2:
        return None
    if len(cells) < FEW:
        summary = summarise([float(cell.mean()) for cell in cells] if len(cells) > 1 else list(cells[0]))
        assert summary.low is not None
        assert summary.high is not None
        return summary.low, summary.high
    low, high = np.quantile(resamples(list(map(len, cells)), purpose) @ np.concatenate(cells), tails(len(cells)))
    return float(low), float(high)


def by_origin(rows: pd.DataFrame, column: str) -> list[list[float]]:
    """The means of a column by origin and seed: a list for each origin, as `interval` takes them."""
    means = rows.groupby(["origin", "seed"], sort=False)[column].mean()
    return [list(own) for _, own in means.groupby(level="origin", sort=False)]


def mean_over(cells: Sequence[Sequence[float]]) -> float:
    """The mean over cells of the means over their seeds."""
    return float(np.mean([np.mean(cell) for cell in cells]))


def resamples(num_seeds: Sequence[int], purpose: str) -> npt.NDArray[np.float64]:
    """[resamples, all seeds of all cells]: what each value weighs in a mean over cells drawn anew, with seeds drawn anew.

    num_seeds: of each cell.
    """
    rng, sizes = generator_for("bootstrap", purpose), np.asarray(num_seeds)
    cells, total = len(sizes), int(sizes.sum())
    count = MORE_RESAMPLES if cells < MANY else NUM_RESAMPLES
    drawn = rng.integers(cells, size=(count, cells))[:, :, None]
    place = np.arange(sizes.max())[None, None, :]
    seeds = (rng.random((count, cells, int(sizes.max()))) * sizes[drawn]).astype(int)
    at = np.arange(count)[:, None, None] * total + (np.cumsum(sizes) - sizes)[drawn] + seeds
    weights = np.where(place < sizes[drawn], 1 / (cells * sizes[drawn]), 0.0)
    summed = np.bincount(at.ravel(), weights.ravel(), minlength=count * total)
    return np.asarray(summed, dtype=np.float64).reshape(count, total)


def tails(count: int) -> tuple[float, float]:
    """The quantiles of a bootstrap over so many that make a 95 % interval: further out, the fewer they are.

    Plain ones are too narrow, as Student's t is wider than the normal distribution, and as n / (n - 1) is lacking in the
    variance of what was drawn from (expanded percentiles: Hesterberg 2015, The American Statistician 69(4)).
    """
    import scipy.special

    reach = (count / (count - 1)) ** 0.5 * scipy.special.stdtrit(count - 1, 0.975)
    below = float(scipy.special.ndtr(-reach))
    return below, 1 - below


def _pairs(scores: pd.DataFrame, test: object) -> list[Pair]:
    assert callable(test)
    found = []
    for one, other in itertools.combinations(map(str, scores.columns), 2):
        differences = [float(each) for each in (scores[one] - scores[other]).dropna()]
        if differences:
            found.append((one, other, len(differences), float(np.mean(differences)), test(differences)))
    corrected = holm([row[4] for row in found])
    return [Pair(*row, fixed) for row, fixed in zip(found, corrected, strict=True)]
