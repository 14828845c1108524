"""A report written to a folder: the page, its figures for print, its tables as LaTeX and CSV."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from cu_ray.places import Folder, Place
from cu_ray.report import latex, page, paper
from cu_ray.report.contents import SCORES, Contents, gather, rule_of
from cu_ray.report.results import Results, read_all, unfinished_lines

PAGE, MEANS = "report.html", "results.csv"
FIGURES = ("plane", "curves", "false_positives", "tradeoff", "cost", "survival", "best_of_n", "landscapes")  # all there can be
NO_FIGURES = (
    "No PDF and PNG figures: matplotlib is not installed (pip install 'cu-ray[figures]'). The page has them all the same."
)

NO_SCORES = "No trial has a score yet: the page says what failed and what is missing, and has no figures."


def write(
    folders: Sequence[Place | Path], to: Path | None, rule: str | None, *, refresh: int | None = None
) -> tuple[Path, list[str]]:
    """The page's path, with all files written beside it, and what to tell the user. Raises UserError for what is no result.

    What an earlier report left there and this one does not write is deleted.
    """
    results = read_all(folders)
    contents = gather(results, rule_of(results, rule))
    unfinished = unfinished_lines(results)
    remarks = [f"unfinished: {said}" for said in unfinished] + ([] if len(contents.rows) else [NO_SCORES])
    place = to or _beside(results)
    target = Folder(place)
    stale, texts = _earlier(target), _texts(contents, refresh)
    for name, text in texts.items():
        target.write(name, text.encode())
    stale -= texts.keys()
    if importlib.util.find_spec("matplotlib") is None:
        remarks.append(NO_FIGURES)
    else:
        for figure in contents.figures:
            files = paper.save(figure, place, f"UNFINISHED: {'; '.join(unfinished)}" if unfinished else None)
            stale -= {file.name for file in files}
    for name in stale:
        target.delete(name)
    return place / PAGE, remarks


def _beside(results: list[Results]) -> Path:
    """In the folder of the one sweep; of several, or of one at a URI, a folder of its own here."""
    if len(results) == 1 and isinstance(results[0].folder, Folder):
        return results[0].folder.path / "report"
    return Path(f"report-{'-'.join(each.name for each in results)}")


def _earlier(target: Folder) -> set[str]:
    """The files of an earlier report that another may not write: figures, and tables of metrics, which its results.csv names."""
    head = target.read(MEANS).decode(errors="replace").partition("\n")[0] if target.has(MEANS) else ""
    metrics = {column.removesuffix("_mean") for column in head.split(",") if column.endswith("_mean")} - {*SCORES}
    names = {f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")} | {f"{name}.tex" for name in latex.METRICS}
    names |= {f"{short}.tex" for name in metrics for short in (name.rpartition(":")[2], name.replace(":", "."))}
    return names & {file.name for file in target.files()}


def _texts(contents: Contents, refresh: int | None) -> dict[str, str]:
    texts = {
        PAGE: page.rendered(contents, refresh),
        MEANS: contents.means.to_csv(index=False),
        "by_seed.csv": contents.rows.to_csv(index=False),
    }
    there = [metric for metric in (*latex.METRICS, *contents.others) if contents.rows[metric].notna().any()]
    return texts | {f"{contents.short_names.get(metric, metric)}.tex": latex.table(contents, metric) for metric in there}
