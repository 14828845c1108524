"""How much of the harm a method undoes, and over all deletion fractions: shares and areas, by seed before any mean."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cu_ray.report.statistics import summarise

if TYPE_CHECKING:
    import pandas as pd

LEAST_HARM = 0.05  # of accuracy: a share of less says nothing
MOST = 0.9  # a recovered share that counts as corrected
LEAST_ERRORS = 3  # standard errors of the harm


def recovered_share(score: Any, none: Any, retrained: Any, num_affected: Any = None) -> Any:
    """(score - none) / (retrained - none), elementwise, never clipped: 0 as without unlearning, 1 as retraining.

    Retraining is at fraction 1. nan where the harm, retrained - none, is under 5 points or under 3 of its standard errors.
    These are of the `num_affected` test images, taken as independent for the two models, which errs to the safe side; where
    the number is not known, the first condition alone counts.
    """
    score, none, retrained = (np.asarray(each, dtype=float) for each in (score, none, retrained))
    harm = retrained - none
    enough = harm >= LEAST_HARM
    if num_affected is not None:
        images = np.asarray(num_affected, dtype=float)
        error = np.sqrt((none * (1 - none) + retrained * (1 - retrained)) / np.where(images > 0, images, np.nan))
        enough &= ~(harm < LEAST_ERRORS * error)
    return (score - none) / np.where(enough, harm, np.nan)


def with_recovery(chosen: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """The rows with `recovered`, the recovered share, and `lost`, what the method costs of acc_retain, both by seed."""
    joined = chosen.merge(baselines.drop(columns="original_key"), on=["sweep", "cell", "seed"], how="left")
    share = recovered_share(joined["acc_corr"], joined["none"], joined["retrained"], joined["num_affected"])
    lost = joined["none_retain"] - joined["acc_retain"]
    return joined.assign(recovered=share, lost=lost).drop(
        columns=list(baselines.columns.drop(["sweep", "cell", "seed", "original_key"]))
    )


def area(fractions: Sequence[float], values: Sequence[float]) -> float | None:
    """The mean height of the curve through these points, by the trapezoid rule; None for one point or where one is missing."""
    order = np.argsort(fractions)
    x, y = np.asarray(fractions, dtype=float)[order], np.asarray(values, dtype=float)[order]
    if len(x) < 2 or np.isnan(y).any():
        return None
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def areas(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row for each cell, method and seed: `area` under the curve of a column.

    By seed, as the points of a curve come from nested deletion sets and hang together. Null for a seed that lacks one of the
    fractions of its cell.
    """
    import pandas as pd

    wanted = rows.groupby("cell")["fraction"].nunique().to_dict()
    found = []
    for (cell, method, seed), curve in rows.groupby(["cell", "method", "seed"], sort=False):
        whole = len(curve) == wanted[cell]
        height = area(list(curve["fraction"]), list(curve[column])) if whole else None
        found.append({"cell": cell, "method": method, "seed": seed, "area": np.nan if height is None else height})
    return pd.DataFrame(found, columns=["cell", "method", "seed", "area"])


def smallest_fraction(fractions: Sequence[float], recovered: Sequence[float], level: float = MOST) -> float | None:
    """The smallest of these deletion fractions at which the recovered share reaches the level; None where none does."""
    reached = [fraction for fraction, share in zip(fractions, recovered, strict=True) if share >= level]
    return min(reached, default=None)


def summaries(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """A row for each group: n, mean, std, low and high of each column over its rows, as `<column>_<part>`."""
    import pandas as pd

    found = []
    for key, group in rows.groupby(list(by), sort=False, dropna=False):
        keys: tuple[Hashable, ...] = key if isinstance(key, tuple) else (key,)
        row: dict[str, Any] = dict(zip(by, keys, strict=True))
        for column in columns:
            summary = summarise([None if np.isnan(value) else value for value in group[column].astype(float)])
            row |= {f"{column}_{part}": getattr(summary, part) for part in ("n", "mean", "std", "low", "high")}
        found.append(row)
    names = [*by, *(f"{column}_{part}" for column in columns for part in ("n", "mean", "std", "low", "high"))]
    counted = {name: int if name.endswith("_n") else float for name in names[len(by) :]}
    return pd.DataFrame(found, columns=names).astype(counted)
