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

All settings, plug-ins and columns, from the code (`python scripts/reference.py`). What they mean:
[the sweep file](sweep-file.md), [the tables](tables.md), and the pages on [methods](methods.md),
[manipulations](manipulations.md), [detections](detections.md), [data sets](datasets.md) and [models](models.md).
`cu-ray list` says the same of plug-ins and rules on a terminal, with your own; editors complete by `cu-ray schema`."""
UNDER_A_METHOD = """Under a method, beside its hyperparameters: `points`, `trials`, `sampler` and `keep`
([sweep-file.md](sweep-file.md#under-a-method))."""
SECTIONS = {
    "train": TrainRecipe,
    "search": config.SearchSection,
    "controls": config.ControlsSection,
    "original": config.OriginalSection,
    "runtime": config.RuntimeSection,
}


def without(section: str) -> list[str]:
    """A section and what a sweep file says without it."""
    if section in config.REQUIRED:
        return [f"`{section}`", "required"]
    default = config.DEFAULTS.get(section, config.EVIDENCE.default if section == "evidence" else None)
    return [f"`{section}`", "the defaults below" if section in SECTIONS else f"`{str(default).lower()}`"]


def settings(cls: type[Any]) -> str:
    """A table of the settings of a section or a plug-in; a sentence where it has none."""
    facts = plugins.facts(cls).values()
    if not facts:
        return "No settings."
    searched = any(fact.search for fact in facts)
    rows = []
    for fact in facts:
        default = "required" if fact.required else f"`{'null' if fact.default is None else str(fact.default).lower()}`"
        span = fact.search and f"{fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}"
        rows.append([f"`{fact.name}`", default, *([span or ""] if searched else []), fact.describe()])
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
        parts.append(f"## {kind.capitalize()}")
        for name in plugins.names(kind):
            cls = plugins.find(kind, name)
            parts += [f"### {name}", f"{cls.summary[0].upper()}{cls.summary[1:]}. Version {cls.version}.", settings(cls)]
    parts += ["## Selection rules", table(["rule", "what it is"], ([f"`{rule.name}`", rule.summary] for rule in RULES.values()))]
    return "\n\n".join([*parts, "## Tables", *columns()])


if __name__ == "__main__":
    print(reference())
