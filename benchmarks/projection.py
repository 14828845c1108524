"""What `cu-ray plan` says of a sweep's time once a part of it is done, beside what the rest then takes.

    python benchmarks/projection.py --out benchmarks/results/projection.json      # about four minutes

A sweep of six methods on two seeds: first one seed at one deletion fraction, as one tries a sweep; then `cu-ray plan`, which has
the pace of that; then the rest. The goal is 30 % either way, of the workers' time and of the whole time of the second command.
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


def measure(steps: int, width: int) -> list[figures.Row]:
    """Of the second command: what plan said, what it took, and how far that is apart."""
    with tempfile.TemporaryDirectory(prefix="cu-ray-projection-") as place:
        folder = Path(place)
        sweep = sweep_file(steps, width)
        sweep["runtime"] |= {"storage": str(folder / "storage"), "output": str(folder / "results")}
        (folder / "projection.yaml").write_text(json.dumps(sweep))
        cu_ray(folder, "sweep", "projection.yaml", "--local", "--only", "seed=0,fraction=1.0")
        before = done(folder)
        said = json.loads(cu_ray(folder, "plan", "projection.yaml", "--json"))
        began = time.perf_counter()
        cu_ray(folder, "sweep", "projection.yaml", "--local")
        wall = time.perf_counter() - began
        new = [record for key, record in done(folder).items() if key not in before]
    expected, spent = 3600 * said["hours"], sum(map(seconds, new))
    return [
        figures.row("done before", "jobs", [len(before)]),
        figures.row("left", "jobs", [len(new)]),
        figures.row("plan: time of the workers", "s", [expected]),
        figures.row("taken: time of the workers", "s", [spent]),
        figures.row(f"said over taken (goal {1 - GOAL:g} to {1 + GOAL:g})", "times", [expected / spent]),
        figures.row("plan: time of the workers, by their number", "s", [expected / WORKERS]),
        figures.row("taken: the command from start to end, Ray's start included", "s", [wall]),
        figures.row(f"said over taken, whole command (goal {1 - GOAL:g} to {1 + GOAL:g})", "times", [expected / WORKERS / wall]),
    ]


def main() -> None:
    """Measure and write."""
    given = figures.arguments(__doc__).parse_args()
    facts = figures.environment("torch", "ray")
    figures.write(given.out, facts, measure(12, 2) if given.small else measure(1200, 8))


if __name__ == "__main__":
    main()
