"""How good a search is after n trials: the expected score of the best of n, without resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.special

from cu_ray.report.cells import measured, with_cells

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from cu_ray.report.results import Results


def best_of(selection: Sequence[float], reported: Sequence[float]) -> npt.NDArray[np.float64]:
    """[N]: the expected reported score of that point, among n drawn from the pool without return, which does best in selection.

    The point of rank i (from 0) is the best of n with probability C(N - 1 - i, n - 1) / C(N, n). Of equals the first of the
    pool counts as the better. Holds for a pool whose points do not depend on one another's results.
    """
    size = len(selection)
    order = np.argsort(-np.asarray(selection, dtype=float), kind="stable")
    rank, n = np.arange(size)[None, :], np.arange(1, size + 1)[:, None]
    below = size - 1 - rank
    with np.errstate(invalid="ignore"):
        log = _log_choose(below, n - 1) - _log_choose(np.array(size), n)
    chance = np.where(below >= n - 1, np.exp(log), 0)
    expected: npt.NDArray[np.float64] = chance @ np.asarray(reported, dtype=float)[order]
    return expected


def best_so_far(selection: Sequence[float], reported: Sequence[float]) -> npt.NDArray[np.float64]:
    """[N]: the reported score of the best in selection among the first n, for points that followed earlier results."""
    best = np.maximum.accumulate(np.asarray(selection, dtype=float))
    first = np.searchsorted(best, best, side="left")
    scores: npt.NDArray[np.float64] = np.asarray(reported, dtype=float)[first]
    return scores


def curves(results: Results, names: dict[tuple[object, ...], str]) -> pd.DataFrame:
    """A row for each method and n: `score`, the mean over its searches of what the best of n points comes to.

    A score is the mean of acc_corr and acc_retain on the report half, chosen by the same on the selection half; a point's is
    its mean over the seeds of its search. n goes up to the smallest search of the method. `adaptive`: the points followed
    earlier results, so the curve is the one path that was taken. Failed trials are not among the points.
    """
    import pandas as pd

    trials = with_cells(measured(results.trials), names).dropna(subset=["study_key"])
    trials = trials.assign(
        selection=(trials["val_acc_corr"] + trials["val_acc_retain"]) / 2,
        reported=(trials["report_acc_corr"] + trials["report_acc_retain"]) / 2,
    ).dropna(subset=["selection", "reported"])
    by = ["method", "study_key", "deletion_size", "hyperparameters"]
    points = trials.groupby(by, sort=False).agg(
        selection=("selection", "mean"),
        reported=("reported", "mean"),
        adaptive=("pool_adaptive", "any"),
        at=("started_at", "min"),
    )
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    adaptive: dict[str, bool] = {}
    for (method, _, _), pool in points.reset_index().groupby(["method", "study_key", "deletion_size"], sort=False):
        name = str(method)
        adaptive[name] = adaptive.get(name, False) or bool(pool["adaptive"].any())
        curve = best_so_far if pool["adaptive"].any() else best_of
        pool = pool.sort_values("at", kind="stable")
        found.setdefault(name, []).append(curve(list(pool["selection"]), list(pool["reported"])))
    rows = []
    for name, searches in found.items():
        size = min(map(len, searches))
        mean = np.mean([search[:size] for search in searches], axis=0)
        rows += [{"method": name, "n": n + 1, "score": score, "adaptive": adaptive[name]} for n, score in enumerate(mean)]
    return pd.DataFrame(rows, columns=["method", "n", "score", "adaptive"])


def _log_choose(whole: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    logs: npt.NDArray[np.float64] = (
        scipy.special.gammaln(whole + 1) - scipy.special.gammaln(part + 1) - scipy.special.gammaln(whole - part + 1)
    )
    return logs
