"""What `cu-ray plan` says of a sweep's time, measured beforehand and once a part of it is done, beside what it then takes.

    python benchmarks/projection.py --out benchmarks/results/projection.json      # about four minutes a repeat

A sweep of six methods on two seeds: `cu-ray plan --measure` for one seed at one deletion fraction, as one tries a sweep; then
that; then `cu-ray plan` for the rest, which has the pace of what is done; then the rest. The goal is 30 % either way, of the
workers' time and of the whole time of a command.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import figures

from cu_ray.sweep import ledger
from cu_ray.types import Record

GOAL = 0.3
WORKERS = os.cpu_count() or 1


def sweep_file(steps: int, width: int) -> dict[str, Any]:
    """The six methods of the paper; what is short is a quarter as long."""
    short = max(1, steps // 4)
    return {
        "name": "projection",
        "dataset": "fashion_mnist_small",
        "model": {"name": "resnet9", "width": width},
        "manipulation": {"name": "backdoor", "size": 300},
        "train": {"steps": steps, "lr": 0.05, "batch_size": 64, "precision": "fp32"},
        "deletion_fractions": [0.5, 1.0],
        "seeds": [0, 1],
        "methods": {
            "no_unlearning": {},
            "exact_unlearning": {},
            "catastrophic_forgetting": {"k": [None, 2], "steps": short, "sampler": "grid"},
            "scrub": {"alpha": [0.01, 0.1, 1], "steps": short, "lr": 0.005, "msteps": max(1, short // 10), "sampler": "grid"},
            "bad_teaching": {"steps": short},
            "ssd": {"selection_share": [0.002, 0.01, 0.05, 0.1], "relative_dampening": [0.5, 1], "sampler": "grid"},
        },
        "search": {"seeds": "each"},
        "runtime": {"device": "cpu", "workers": WORKERS},
    }


def cu_ray(folder: Path, *arguments: str) -> str:
    """What the command says."""
    paths = os.pathsep.join([str(figures.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environment = [sys.executable, "-m", "cu_ray.cli", *arguments], {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def done(folder: Path) -> dict[str, Record]:
    """The records of what is done, by key."""
    known = ledger.read(folder / "results" / "projection" / "ledger")
    return {**known.originals, **known.trials}


def seconds(record: Record) -> float:
    """How long a worker was at it."""
    began, ended = (datetime.datetime.fromisoformat(record.facts[name]) for name in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def compared(folder: Path, called: str, plan_options: list[str], options: list[str]) -> dict[tuple[str, str], float]:
    """What plan says before a command, what the command takes, and how far that is apart: by name and unit."""
    before = done(folder)
    began = time.perf_counter()
    said = json.loads(cu_ray(folder, "plan", "projection.yaml", "--json", *plan_options, *options))
    planning = time.perf_counter() - began
    began = time.perf_counter()
    cu_ray(folder, "sweep", "projection.yaml", "--local", *options)
    wall = time.perf_counter() - began
    new = [record for key, record in done(folder).items() if key not in before]
    expected, spent = said["seconds"], sum(map(seconds, new))
    goal = f"goal {1 - GOAL:g} to {1 + GOAL:g}"
    return {
        (f"{called}: jobs", "jobs"): len(new),
        (f"{called}: planning took", "s"): planning,
        (f"{called}: said of the workers' time", "s"): expected,
        (f"{called}: taken of the workers' time", "s"): spent,
        (f"{called}: said over taken ({goal})", "times"): expected / spent,
        (f"{called}: said of the whole", "s"): said["wall_seconds"],
        (f"{called}: taken by the command from start to end, Ray's start included", "s"): wall,
        (f"{called}: said over taken, whole command ({goal})", "times"): said["wall_seconds"] / wall,
    }


def measure(steps: int, width: int) -> dict[tuple[str, str], float]:
    """Of both commands: what plan said, what it took, and how far that is apart."""
    with tempfile.TemporaryDirectory(prefix="cu-ray-projection-") as place:
        folder = Path(place)
        sweep = sweep_file(steps, width)
        sweep["runtime"] |= {"storage": str(folder / "storage"), "output": str(folder / "results")}
        (folder / "projection.yaml").write_text(json.dumps(sweep))
        first = compared(folder, "measured beforehand", ["--measure"], ["--only", "seed=0,fraction=1.0"])
        return first | compared(folder, "by what is done", [], [])


def main() -> None:
    """Measure and write."""
    parser = figures.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    facts = figures.environment("torch", "ray")
    found = [measure(12, 2) if given.small else measure(1200, 8) for _ in range(given.repeats)]
    rows = [figures.row(name, unit, [each[name, unit] for each in found]) for name, unit in found[0]]
    figures.write(given.out, facts, rows)


if __name__ == "__main__":
    main()
