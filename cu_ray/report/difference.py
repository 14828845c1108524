"""What differs between two results: facts of how they were made, and scores beyond the noise of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cu_ray.report.cells import chosen
from cu_ray.report.comparison import LEVEL, holm, paired_t
from cu_ray.report.contents import runs, trainings
from cu_ray.report.results import Results

PLACE = ["cell", "method", "fraction"]
METRICS = ("acc_corr", "acc_retain")
VOLATILE = ("run",)


def facts(one: Results, other: Results) -> dict[str, tuple[str, str]]:
    """What is said of how each was made, by name, where the two differ."""
    both = [{**runs(each), "training": "; ".join(trainings(each))} for each in (one, other)]
    names = [name for name in dict.fromkeys([*both[0], *both[1]]) if name not in VOLATILE]
    pairs = {name: (both[0].get(name, "-"), both[1].get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def scores(one: Results, other: Results, rule: str) -> list[Mapping[str, Any]]:
    """A row for each cell, method, fraction and metric of which a seed that both have differs.

    `difference`: mean over these seeds of the other's less the one's. `p`: paired t test over seeds, corrected by Holm for all
    rows; None where there is one seed, or where all differ by the same. `beyond` noise: p < 0.05.
    """
    names = [*PLACE, "seed"]
    parts = [chosen([each], rule)[[*names, *METRICS]] for each in (one, other)]
    joined = parts[0].merge(parts[1], on=names, suffixes=("", "_other"))
    rows: list[dict[str, Any]] = []
    for place, own in joined.groupby(PLACE, sort=False):
        for metric in METRICS:
            differences = (own[f"{metric}_other"] - own[metric]).dropna()
            if (differences != 0).any():
                row = dict(zip(PLACE, place if isinstance(place, tuple) else (place,), strict=True))
                row |= {"metric": metric, "n": len(differences), "difference": float(differences.mean())}
                rows.append({**row, "p": paired_t(list(differences))})
    corrected = holm([row["p"] for row in rows])
    return [{**row, "p": p, "beyond": p is not None and p < LEVEL} for row, p in zip(rows, corrected, strict=True)]


def num_shared(one: Results, other: Results, rule: str) -> int:
    """How many rows of cell, method, fraction and seed both have."""
    names = [*PLACE, "seed"]
    return len(chosen([one], rule)[names].merge(chosen([other], rule)[names], on=names))
