"""How good a search is after n trials: the expected score of the best of n, without resampling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.special

from cu_ray.report.cells import with_cells

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from cu_ray.report.results import Results


def best_of(selection: Sequence[float], reported: Sequence[float]) -> npt.NDArray[np.float64]:
    """[N]: for n = 1 to N, the expected reported score of the point that is best in selection among n drawn without replacement.

    The point of rank i (from 0) is the best of n with probability C(N - 1 - i, n - 1) / C(N, n). Of equals the first of the
    pool counts as the better. A point that failed (nan in selection) can be drawn and is never the best: the expectation is
    given that one of the n did not fail, nan where all of the pool did. Holds for a pool whose points do not depend on one
    another's results.
    """
    judged_by = np.asarray(selection, dtype=float)
    size, num_failed = len(judged_by), int(np.isnan(judged_by).sum())
    order = np.argsort(-judged_by, kind="stable")[: size - num_failed]  # nan comes last
    rank, n = np.arange(len(order))[None, :], np.arange(1, size + 1)[:, None]
    below = size - 1 - rank
    with np.errstate(invalid="ignore"):
        log = _log_choose(below, n - 1) - _log_choose(np.array(size), n)
        chance = np.where(below >= n - 1, np.exp(log), 0)
        expected: npt.NDArray[np.float64] = chance @ np.asarray(reported, dtype=float)[order] / chance.sum(axis=1)
    return expected


def best_so_far(selection: Sequence[float], reported: Sequence[float]) -> npt.NDArray[np.float64]:
    """[N]: the reported score of the best in selection among the first n, for points that followed earlier results.

    nan up to the first point that did not fail (nan in selection).
    """
    judged_by = np.asarray(selection, dtype=float)
    best = np.maximum.accumulate(np.where(np.isnan(judged_by), -np.inf, judged_by))
    first = np.searchsorted(best, best, side="left")
    scores: npt.NDArray[np.float64] = np.where(best > -np.inf, np.asarray(reported, dtype=float)[first], np.nan)
    return scores


def curves(results: Results, names: dict[tuple[object, ...], str]) -> pd.DataFrame:
    """A row for each method and n: `score`, the mean over its searches of what the best of n points comes to.

    A score is the mean of acc_corr and acc_retain on the report half, chosen by the same on the selection half; a point's is
    its mean over the seeds of its search. A point of which a trial failed is one of the n and never the best; a search counts
    from its first point that did not fail. n goes up to the largest search of the method: one that has ended keeps the score
    of its best. `adaptive`: the points followed earlier results, so the curve is the one path that was taken.
    """
    import pandas as pd

    trials = with_cells(searched_on(results), names)
    trials = trials.assign(
        failed=trials["status"] != "ok",
        selection=(trials["val_acc_corr"] + trials["val_acc_retain"]) / 2,
        reported=(trials["report_acc_corr"] + trials["report_acc_retain"]) / 2,
    )
    trials = trials[trials["failed"] | trials[["selection", "reported"]].notna().all(axis=1)]
    by = ["method", "study_key", "deletion_size", "hyperparameters"]
    points = trials.groupby(by, sort=False).agg(
        failed=("failed", "any"),
        selection=("selection", "mean"),
        reported=("reported", "mean"),
        adaptive=("pool_adaptive", "any"),
        at=("started_at", "min"),
    )
    found: dict[str, list[list[float]]] = {}
    adaptive: dict[str, bool] = {}
    for (method, _, _), pool in points.reset_index().groupby(["method", "study_key", "deletion_size"], sort=False):
        name = str(method)
        adaptive[name] = adaptive.get(name, False) or bool(pool["adaptive"].any())
        curve = best_so_far if pool["adaptive"].any() else best_of
        pool = pool.sort_values("at", kind="stable")
        found.setdefault(name, []).append(list(curve(list(pool["selection"].mask(pool["failed"])), list(pool["reported"]))))
    rows = []
    for name, searches in found.items():
        mean = pd.DataFrame(itertools.zip_longest(*searches, fillvalue=np.nan)).ffill().mean(axis=1)
        rows += [
            {"method": name, "n": n, "score": score, "adaptive": adaptive[name]}
            for n, score in enumerate(mean, 1)
            if not np.isnan(score)
        ]
    return pd.DataFrame(rows, columns=["method", "n", "score", "adaptive"])


def searched_on(results: Results) -> pd.DataFrame:
    """The trials that the points of searches were scored by, failed ones too; not those that confirm a choice on other seeds.

    Seeds that are reported only confirm where their study has chosen a point and has scores on other seeds as well.
    """
    trials = results.trials
    counted = ~trials["held_out"] & (trials["unlearning_seed"] == 0) & trials["control"].isna()
    trials = trials[counted & trials["study_key"].notna()]
    reported: dict[str, set[int]] = {}  # seeds, of studies that chose a point
    for keys, points, seeds in zip(*(results.best[name] for name in ("study_keys", "points", "seeds")), strict=True):
        for key in keys if len(points) else ():
            reported.setdefault(key, set()).update(seeds)
    searched: dict[str, set[int]] = {}
    scored = trials[trials["status"] == "ok"]
    for key, seed in zip(scored["study_key"], scored["seed"], strict=True):
        if seed not in reported.get(key, (seed,)):
            searched.setdefault(key, set()).add(seed)
    return trials.loc[[seed in searched.get(key, (seed,)) for key, seed in zip(trials["study_key"], trials["seed"], strict=True)]]


def _log_choose(whole: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    logs: npt.NDArray[np.float64] = (
        scipy.special.gammaln(whole + 1) - scipy.special.gammaln(part + 1) - scipy.special.gammaln(whole - part + 1)
    )
    return logs
