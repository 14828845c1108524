"""The reference of settings, plug-ins and columns, as Markdown, from the code that reads and writes them.

python scripts/reference.py > docs/reference.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cu_ray import config, plugins
from cu_ray.selection import RULES
from cu_ray.sweep import tables
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import Plan
from cu_ray.types import TrainRecipe

HEAD = """# Reference

Every setting, plug-in and column, made from the code by `python scripts/reference.py`. What they mean is on other pages:
[the sweep file](sweep-file.md), [the tables](tables.md), [methods](methods.md), [manipulations](manipulations.md),
[detections](detections.md), [data sets](datasets.md) and [models](models.md).

On a terminal, `cu-ray list` shows the plug-ins, your own included, and the selection rules. `cu-ray schema` lets an editor
complete a sweep file ([sweep-file.md](sweep-file.md#in-an-editor))."""
UNDER_A_METHOD = """A method takes `points`, `trials`, `sampler` and `keep` beside its hyperparameters
([sweep-file.md](sweep-file.md#under-a-method))."""
HEADINGS = {"datasets": "Data sets"}  # of kinds whose folder is not called like them
SECTIONS = {
    "train": TrainRecipe,
    "search": config.SearchSection,
    "controls": config.ControlsSection,
    "original": config.OriginalSection,
    "runtime": config.RuntimeSection,
}


PATH, PLACE = ("a text", "a path"), ("a text", "a path or a URI")
REWORDED = {  # settings whose name says more than their type: a word of `describe`, and what stands here for it
    **dict.fromkeys(("file", "folder", "cache", "weights"), PATH),
    **dict.fromkeys(("output", "storage"), PLACE),
    "target": ("an integer or a text", "a class (index or name)"),
    "classes": ("an integer or a text, an integer or a text", "two classes (index or name)"),
    "affected_classes": ("an integer or a text", "classes (index or name)"),
}


def written(value: Any) -> str:
    """A value as a sweep file has it."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def sentence(summary: str) -> str:
    """A summary with a capital at its beginning; a method's name there in capitals: REM."""
    first, _, rest = summary.partition(" ")
    return f"{first.upper() if first in plugins.names('methods') else first[0].upper() + first[1:]} {rest}."


def without(section: str) -> list[str]:
    """A section and what a sweep file says without it."""
    if section in config.REQUIRED:
        return [f"`{section}`", "required"]
    default = config.DEFAULTS.get(section, config.EVIDENCE.default if section == "evidence" else None)
    return [f"`{section}`", "the defaults below" if section in SECTIONS else f"`{written(default)}`"]


def settings(cls: type[Any]) -> str:
    """A table of the settings of a section or a plug-in; a sentence where it has none."""
    facts = plugins.facts(cls).values()
    if not facts:
        return "No settings."
    searched = any(fact.search for fact in facts)
    rows = []
    for fact in facts:
        default = "required" if fact.required else f"`{written(fact.default)}`"
        span = fact.search and f"{fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}"
        said = fact.describe().replace(*REWORDED.get(fact.name, ("", "")))
        rows.append([f"`{fact.name}`", default, *([span or ""] if searched else []), said])
    return table(["setting", "default", *(["searched by default"] if searched else []), "allowed"], rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns() -> Iterable[str]:
    """A part for each table: its columns and their Arrow types."""
    with tempfile.TemporaryDirectory() as folder:
        tables.write(Path(folder), Plan("empty", (), {}, ()), Known())
        for name in ("trials", "originals", "best", "curves"):
            schema = pq.read_schema(Path(folder) / f"{name}.parquet")
            yield f"### {name}.parquet"
            yield table(["column", "type"], ([f"`{field.name}`", str(field.type)] for field in schema))
    yield "`trials.parquet` also has a column `hp_NAME` for each hyperparameter of the sweep's methods."


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## A sweep file", table(["section", "without it"], map(without, config.SECTIONS)), UNDER_A_METHOD]
    for section, cls in SECTIONS.items():
        parts += [f"### {section}", settings(cls)]
    for kind in plugins.KINDS:
        parts.append(f"## {HEADINGS.get(kind, kind.capitalize())}")
        for name in plugins.names(kind):
            cls = plugins.find(kind, name)
            parts += [f"### {name}", f"{sentence(cls.summary)} Version {cls.version}.", settings(cls)]
    parts += ["## Selection rules", table(["rule", "what it is"], ([f"`{rule.name}`", rule.summary] for rule in RULES.values()))]
    return "\n\n".join([*parts, "## Tables", *columns()])


if __name__ == "__main__":
    print(reference())
