"""What choosing hyperparameters by less knowledge costs: the gap of each selection rule to the `oracle`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cu_ray.report.cells import chosen
from cu_ray.report.comparison import by_origin, interval, mean_over

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

COMPARED = ("oracle_validation", "defender", "rem_proxy", "potion_stop")  # with `oracle`: all report on the report half
PLACE = ["origin", "cell", "method", "fraction", "seed"]


def gaps(results: Sequence[Results]) -> pd.DataFrame:
    """A row for each searched method and rule: by how much the rule's choice is worse than the oracle's.

    The score is the mean of acc_corr and acc_retain on the report half, paired by cell, fraction and seed; mean over cells of
    the mean over all else, with a 95 % interval over cells and seeds. `flattered`: the points were drawn for one rule, so
    the gap to others may be of the pool and not of the rule.
    """
    import pandas as pd

    known = pd.concat([each.best[each.best["search_objective"].notna()] for each in results])
    searched = set(known["method"])
    flattered = set(known.loc[known["pool_adaptive"].fillna(False).astype(bool), "method"])
    oracle = scores_under(results, "oracle")
    rows = []
    for rule in COMPARED:
        joined = oracle.merge(scores_under(results, rule), on=PLACE, suffixes=("", "_rule"))
        joined = joined.assign(
            gap=joined["score"] - joined["score_rule"], plain=joined["method"].str.replace(r" \(.*\)$", "", regex=True)
        )
        for method, own in joined[joined["plain"].isin(searched)].groupby("method", sort=False):
            cells = by_origin(own, "gap")
            low, high = interval(cells, f"gap {method} {rule}") or (None, None)
            row = {"method": method, "rule": rule, "gap": mean_over(cells), "low": low, "high": high, "n": len(own)}
            rows.append({**row, "flattered": own["plain"].iloc[0] in flattered})
    return pd.DataFrame(rows, columns=["method", "rule", "gap", "low", "high", "n", "flattered"])


def scores_under(results: Sequence[Results], rule: str) -> pd.DataFrame:
    """The mean of acc_corr and acc_retain of each trial that a rule chose, on the report half: `PLACE` and `score`."""
    rows = chosen(results, rule, half="report_")
    return rows.assign(score=(rows["acc_corr"] + rows["acc_retain"]) / 2)[[*PLACE, "score"]].dropna()
