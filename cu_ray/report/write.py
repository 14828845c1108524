"""A report written to a folder: the page, its figures for print, its tables as LaTeX and CSV."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from cu_ray.errors import UserError, in_one_line
from cu_ray.places import Folder, Place
from cu_ray.report import latex, page, paper
from cu_ray.report.contents import Contents, gather, rule_of
from cu_ray.report.results import Results, read_all, unfinished_lines

PAGE, WRITTEN = "report.html", ".written.json"
NO_FIGURES = (
    "No PDF and PNG figures: matplotlib is not installed (pip install 'cu-ray[figures]'). The page has them all the same."
)

NO_SCORES = "No trial has a score yet: the page says what failed and what is missing, and has no figures."


def write(
    folders: Sequence[Place | Path], to: Path | None, rule: str | None, *, refresh: int | None = None
) -> tuple[Path, list[str]]:
    """The page's path, with all files written beside it, and what to tell the user. Raises UserError for what is no result.

    What an earlier report wrote there and this one does not is deleted, unless it was changed since.
    """
    results = read_all(folders)
    contents = gather(results, rule_of(results, rule))
    unfinished = unfinished_lines(results)
    remarks = [f"unfinished: {said}" for said in unfinished] + ([] if len(contents.rows) else [NO_SCORES])
    place = to or _beside(results)
    target = Folder(place)
    earlier = _earlier(target)
    contents_of = {name: text.encode(errors="replace") for name, text in _texts(contents, refresh).items()}
    try:
        for name, content in contents_of.items():
            target.write(name, content)
    except OSError as error:
        told = f"the report cannot be written to {place}: {in_one_line(error)}. Give another folder with --to"
        raise UserError(told) from error
    written = {name: _checksum(content) for name, content in contents_of.items()}
    if importlib.util.find_spec("matplotlib") is None:
        remarks.append(NO_FIGURES)
        written = {name: checksum for name, checksum in earlier.items() if name.endswith((".pdf", ".png"))} | written
    else:
        for figure in contents.figures:
            files = paper.save(figure, place, f"UNFINISHED: {'; '.join(unfinished)}" if unfinished else None)
            written |= {file.name: _checksum(file.read_bytes()) for file in files}
    for name in earlier.keys() - written.keys():
        target.delete(name)
    target.write(WRITTEN, json.dumps(written, indent=1).encode())
    return place / PAGE, remarks


def _beside(results: list[Results]) -> Path:
    """In the folder of the one sweep; of several, or of one at a URI, a folder of its own here."""
    if len(results) == 1 and isinstance(results[0].folder, Folder):
        return results[0].folder.path / "report"
    return Path(f"report-{'-'.join(each.name for each in results)}")


def _earlier(target: Folder) -> dict[str, str]:
    """The checksums, by name, of what an earlier report wrote there and nobody has changed since."""
    try:
        said = json.loads(target.read(WRITTEN))
        return {name: said[name] for name in said if target.has(name) and _checksum(target.read(name)) == said[name]}
    except (OSError, ValueError, TypeError):
        return {}


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _texts(contents: Contents, refresh: int | None) -> dict[str, str]:
    texts = {
        PAGE: page.rendered(contents, refresh),
        "results.csv": contents.means.to_csv(index=False),
        "by_seed.csv": contents.rows.to_csv(index=False),
    }
    there = [metric for metric in (*latex.METRICS, *contents.others) if contents.rows[metric].notna().any()]
    return texts | {f"{contents.short_names.get(metric, metric)}.tex": latex.table(contents, metric) for metric in there}
