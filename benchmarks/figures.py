"""What the benchmarks share: rows of figures, what they were measured on, JSON and a table beside it.

A module of this folder: importing it makes the repository's own `cu_ray` and `tests` the ones that are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]
NOT_FACTS = ("command",)


def row(what: str, unit: str, values: Sequence[float], **more: Any) -> Row:
    """A figure: median, least and most of the values, and how many there are."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values), "count": len(values)}
    return {"what": what, "unit": unit, **found, **more}


def environment(*packages: str) -> dict[str, Any]:
    """What figures are measured on: processor, versions, date, commit, and how busy the machine was."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") + (" and changes" if _git("status", "--porcelain", "-uno") else ""),
        "processor": f"{os.cpu_count()} x {model[0] if model else platform.machine()}",
        "load average at the start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "command": " ".join(["python", *sys.argv]),
    }


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what | median | least | most | unit | n |", "|---|---|---|---|---|---|"]
    for each in rows:
        figures = " | ".join(_short(each[which]) for which in ("median", "least", "most"))
        lines.append(f"| {each['what']} | {figures} | {each['unit']} | {each['count']} |")
    return "\n".join(lines)


def write(out: Path | None, facts: dict[str, Any], rows: Sequence[Row], text: str = "", **more: Any) -> None:
    """Print the table; where there is a file, write JSON there and the table, with what it was measured on, beside it."""
    print("\n\n".join(part for part in (table(rows), text) if part), flush=True)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": facts, "rows": rows, **more}, indent=1) + "\n", encoding="utf-8")
    said = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in NOT_FACTS)
    parts = (f"`{facts['command']}`: {said}", table(rows), text)
    out.with_suffix(".md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON here, a table beside it")
    parser.add_argument("--small", action="store_true", help="toy sizes: that it runs, no figures")
    return parser


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:  # a machine without git
        return ""
    return done.stdout.strip()
