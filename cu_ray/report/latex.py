"""Tables for a paper: LaTeX with booktabs, the best of a cell and fraction in bold only where that is more than chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cu_ray.places import Place
from cu_ray.report.cells import comparable
from cu_ray.report.comparison import best_and_significant
from cu_ray.report.contents import Contents, gather, rule_of
from cu_ray.report.results import read, unfinished_lines

METRICS = ("acc_corr", "acc_retain", "recovered")  # of which more is better
BOLD = (
    "best of its cell and fraction, by paired t tests over the seeds that all have against each other method, p < 0.05 after Holm"
)
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: f"\\{c}" for c in "&%$#_{}"}}


def table_of(folder: Place | Path, rule: str | None, metric: str) -> str:
    """The LaTeX table of one metric of the sweep in a folder, under a selection rule: by default that of the search."""
    results = [read(folder)]
    return table(gather(results, rule_of(results, rule)), metric)


def table(contents: Contents, metric: str) -> str:
    """A LaTeX table of one metric: a row a cell and method, a column a deletion fraction, mean and standard deviation over seeds.

    Bold: the highest mean of a cell and fraction, where a paired t test over seeds holds it above each other method at 5 %,
    corrected by Holm; of no metric of which it is not known that more is better.
    """
    means = contents.means
    fractions = sorted(means["fraction"].unique())
    values: dict[Any, Any] = {(row["cell"], row["method"], row["fraction"]): row for row in means.to_dict("records")}
    bold = _bold(contents, metric) if metric in METRICS else {}
    head = " & ".join(["cell", "method", *(f"{fraction:g}" for fraction in fractions)])
    lines = [
        *(f"% UNFINISHED: {said}" for said in unfinished_lines(contents.results)),
        "% needs \\usepackage{booktabs}",
        f"% {metric}: mean and standard deviation over seeds, chosen by {contents.rule}; {_seeds(contents, metric)}.",
        f"% {f'Bold: {BOLD}' if metric in METRICS else 'Nothing is bold: whether more is better is not known'}.",
        f"\\begin{{tabular}}{{ll{'r' * len(fractions)}}}",
        "\\toprule",
        f"{head} \\\\",
    ]
    for cell, own in means.groupby("cell", sort=False):
        lines.append("\\midrule")
        for place, method in enumerate(dict.fromkeys(own["method"])):
            keys = [(cell, method, fraction) for fraction in fractions]
            shown = [_value(values.get(key), metric, bold.get(key[::2]) == method) for key in keys]
            lines.append(" & ".join([escaped(str(cell)) if place == 0 else "", escaped(str(method)), *shown]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def escaped(text: str) -> str:
    """The text with what LaTeX takes for commands made plain."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _bold(contents: Contents, metric: str) -> dict[tuple[Any, Any], str]:
    """The method that is best beyond chance, by cell and fraction; none where a method lacks a seed that others have."""
    found: dict[tuple[Any, Any], str] = {}
    rows = comparable(contents.rows)
    by_method = rows.groupby(["cell", "fraction", "seed", "method"], sort=False)[metric].mean().unstack("method")
    places: Any = contents.means.groupby(["cell", "fraction"], sort=False)
    printed = {place: own.set_index("method")[f"{metric}_mean"] for place, own in places}
    for (cell, fraction), own in by_method.groupby(level=["cell", "fraction"], sort=False):
        own = own.dropna(how="all")  # seeds that say nothing of any method
        best, significant = best_and_significant(own)
        if significant and own.notna().all(axis=None) and printed[cell, fraction].idxmax() == best:
            found[cell, fraction] = str(best)
    return found


def _value(row: dict[str, Any] | None, metric: str, bold: bool) -> str:
    if row is None or math.isnan(row[f"{metric}_mean"]):
        return "--"
    mean, std = f"{row[f'{metric}_mean']:.3f}", row[f"{metric}_std"]
    spread = "" if std is None or math.isnan(std) else f" {{\\scriptsize $\\pm$ {std:.3f}}}"
    return (f"\\textbf{{{mean}}}" if bold else mean) + spread


def _seeds(contents: Contents, metric: str) -> str:
    counts = contents.means[f"{metric}_n"]
    return f"n = {counts.min()}" if counts.nunique() == 1 else f"n = {counts.min()} to {counts.max()}"
