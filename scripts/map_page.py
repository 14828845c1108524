"""The tables of docs/map.md, as Markdown, from the results of sweeps/map.yaml and sweeps/without_peeking.yaml.

    python scripts/map_page.py docs/map docs/without_peeking

Of the first the best method by cell and share found, acc_corr and acc_retain of all methods, and what survives when nobody
peeks; the last of the second too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cu_ray.report.contents import Contents, gather, spot_rows, survival_rows
from cu_ray.report.results import read

RULE = "oracle_validation"


def plane(contents: Contents) -> str:
    """The best method of each cell and share, and how far it is ahead of the next."""
    rows = [
        [row["cell"], f"{row['found']:g}", row["best"], interval(row["score"]), row["next"], interval(row["ahead by"])]
        for row in spot_rows(contents)
    ]
    return markdown(["cell", "found", "best", "score", "next", "ahead by"], rows)


def everything(contents: Contents) -> str:
    """acc_corr / acc_retain of each method, a column for each cell and share found; in bold what is best there in their mean."""
    means = contents.means.assign(score=lambda rows: (rows["acc_corr_mean"] + rows["acc_retain_mean"]) / 2)
    places = list(dict.fromkeys(zip(means["cell"], means["fraction"], strict=True)))
    best = {place: own.loc[own["score"].idxmax(), "method"] for place, own in means.groupby(["cell", "fraction"])}
    found = means.set_index(["method", "cell", "fraction"])[["acc_corr_mean", "acc_retain_mean"]]
    rows = []
    for method in dict.fromkeys(means["method"]):
        cells = [" / ".join(short(value) for value in found.loc[(method, *place)]) for place in places]
        rows.append(
            [method, *(f"**{cell}**" if best[place] == method else cell for cell, place in zip(cells, places, strict=True))]
        )
    return markdown(["method", *(f"{cell}, {fraction:g}" for cell, fraction in places)], rows)


def survivors(contents: Contents) -> str:
    """Score and rank of each method under rules that see less and less."""
    found = survival_rows(contents)
    rules = [name for name in found[0] if name not in ("method", "n") and not name.startswith(("rank, ", "lost, "))]
    rows = [
        [row["method"], *(f"{short(row[rule].mean)}, {row[f'rank, {rule}'].partition(' ')[0].rstrip(',')}" for rule in rules)]
        + [interval(row[f"lost, {rule}"]) for rule in rules[1:]]
        for row in found
    ]
    return markdown(["method", *rules, *(f"lost, {rule}" for rule in rules[1:])], rows)


def interval(value: Any) -> str:
    """A mean with its interval."""
    ends = "" if value.low is None else f" ({short(value.low, 3)} to {short(value.high, 3)})"
    return f"{short(value.mean, 3)}{ends}"


def short(value: float, digits: int = 2) -> str:
    """A share without the zero before its point."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return "0"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(the_map: str, without_peeking: str) -> str:
    """All four."""
    first, second = (gather([read(Path(folder))], RULE) for folder in (the_map, without_peeking))
    return "\n\n".join([plane(first), everything(first), survivors(first), survivors(second)])


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
