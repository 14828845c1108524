"""How long `cu-ray sweep sweeps/quickstart.yaml` takes from nothing to its tables, by how many trials run at once.

    python benchmarks/quickstart.py --out benchmarks/results/quickstart.json              # as many as there is room for
    python benchmarks/quickstart.py --workers 1 2 4 8 --out benchmarks/results/quickstart.json

On a GPU trials share it: one worker, two, four and eight of them tell what that brings to a small model.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
import yaml

from cu_ray.sweep import ledger
from cu_ray.types import Record

SWEEP = figures.ROOT / "sweeps" / "quickstart.yaml"


def measure(workers: int | None, small: bool) -> tuple[list[figures.Row], str]:
    """The rows of one run, and the device that its trials ran on."""
    with tempfile.TemporaryDirectory(prefix="cu-ray-quickstart-") as place:
        folder = Path(place)
        sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
        sweep["runtime"] = {"storage": str(folder / "storage"), "output": str(folder / "results")}
        if small:
            sweep |= {"model": {"name": "resnet9", "width": 2}, "seeds": [0], "deletion_fractions": [1.0]}
            sweep["train"]["steps"] = 20
        (folder / "quickstart.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
        command = [sys.executable, "-m", "cu_ray.cli", "sweep", "quickstart.yaml", "--local"]
        command += [] if workers is None else ["--workers", str(workers)]
        paths = os.pathsep.join([str(figures.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        before, began = datetime.datetime.now(datetime.UTC), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": paths})
        wall = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        known = ledger.read(folder / "results" / "quickstart" / "ledger")
    records = [*known.originals.values(), *known.trials.values()]
    first = min(moment(record, "started_at") for record in records)
    busy = sum((moment(record, "finished_at") - moment(record, "started_at")).total_seconds() for record in records)
    at_once = "as many at once as there is room for" if workers is None else f"{workers} at once"
    ends = [(moment(record, "started_at"), moment(record, "finished_at")) for record in records]
    most = max(sum(began <= when < ended for began, ended in ends) for when, _ in ends)
    rows = [
        figures.row(f"the whole command, {at_once}", "s", [wall], jobs=len(records)),
        figures.row(f"jobs that ran at the same time at most, {at_once}", "jobs", [most]),
        figures.row(f"of it until the first training starts, {at_once}", "s", [(first - before).total_seconds()]),
        figures.row(f"time of the workers in all, {at_once}", "s", [busy]),
    ]
    return rows, str(next(iter(known.trials.values())).facts["device"])


def moment(record: Record, name: str) -> datetime.datetime:
    """When it began or ended."""
    return datetime.datetime.fromisoformat(record.facts[name])


def main() -> None:
    """Measure and write."""
    parser = figures.arguments(__doc__)
    parser.add_argument("--workers", type=int, nargs="*", help="how many trials run at once, each in a run of its own")
    given = parser.parse_args()
    facts, rows = figures.environment("torch", "ray"), []
    for workers in given.workers or [None]:
        more, facts["device"] = measure(workers, given.small)
        rows += more
        figures.write(given.out, facts, rows)


if __name__ == "__main__":
    main()
