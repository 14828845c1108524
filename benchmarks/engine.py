"""What the engine costs: real sweeps on the real Tuner whose trials do nothing but wait.

    python benchmarks/engine.py --trials 1000 --studies 20
    python benchmarks/engine.py --trials 400 --studies 20 --seconds 0.5        # how busy the workers are
    python benchmarks/engine.py --all --out benchmarks/results/engine.json     # every row of benchmarks/results/engine.md
    python benchmarks/engine.py --small                                        # a row at toy size: that it runs, no figures

Plan, ledger, TPE, tables, Optuna journal, Ray and Tune are those of `cu-ray sweep`; only what a worker does with a job is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # tests.sweep.simulator: the records of trials that were not run
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # for workers, too

FRACTIONS = [round(0.1 * number, 1) for number in range(1, 11)]
ROWS: list[tuple[int, int, float]] = [
    *((trials, studies, 0.0) for trials in (100, 1_000) for studies in (1, 20, 200) if trials // studies > 1),
    (10_000, 20, 0.0),  # one study of 10,000 points asks TPE for what it is not made for
    (10_000, 200, 0.0),
    (2_000, 20, 0.05),
    (400, 20, 0.5),
    (20, 10, 5.0),
]
SMALL_ROWS = [(4, 2, 0.0)]


def sweep_file(folder: Path, trials: int, studies: int) -> Path:
    """A sweep of so many TPE searches that share so many trials."""
    sizes, fractions = -(-studies // 10), FRACTIONS[: min(studies, 10)]
    path = folder / "engine.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "engine",
                "dataset": "fashion_mnist_small",
                "model": {"name": "resnet9", "width": 2},
                "manipulation": {"name": "backdoor", "size": [100 + 10 * number for number in range(sizes)]},
                "train": {"steps": 20, "precision": "fp32"},
                "deletion_fractions": fractions,
                "methods": {"scrub": {"steps": 6, "trials": max(2, trials // studies)}},
                "runtime": {"storage": str(folder / "storage"), "output": str(folder / "results"), "device": "cpu"},
            }
        )
    )
    return path


def measure(trials: int, studies: int, seconds: float, workers: int) -> dict[str, Any]:
    """The figures of one sweep, run in this process."""
    import numpy as np
    from rich.console import Console

    from cu_ray import config
    from cu_ray.sweep import crew, ledger, runner
    from cu_ray.sweep.desk import Packed
    from cu_ray.sweep.dispatch import Dispatch
    from cu_ray.sweep.ledger import evidence
    from cu_ray.sweep.preview import preview
    from cu_ray.sweep.trainable import StageTrainable
    from cu_ray.types import OriginalSpec, Record, TrialSpec
    from tests.sweep.simulator import record_of

    class Waits(StageTrainable):
        """A worker that spends its time on nothing and tells when it did."""

        def _record(self, job: Packed) -> Record:
            from cu_ray.sweep.ready import Job

            began = time.time()
            spec = (OriginalSpec if job["kind"] == "original" else TrialSpec).build(json.loads(job["spec"]))
            record = record_of(Job(job["kind"], spec))
            if record.kind == "original":  # one that is not there is made again
                self._store.save("originals", record.key, {"weight": np.zeros(1)}, {})
            time.sleep(max(0.0, seconds - (time.time() - began)))
            record.facts.update(host=self.trial_id, started_at=str(began), finished_at=str(time.time()))
            return record

    ended: list[str] = []

    class Counts(Dispatch):
        """A dispatch that remembers what was done, also what was done twice."""

        def ended(self, name: str, record: Record, file: evidence.File | None = None) -> None:
            ended.append(record.key)
            super().ended(name, record, file)

    crew.StageTrainable = Waits  # type: ignore[misc]
    runner.Dispatch = Counts  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="cu-ray-engine-") as name:
        folder = Path(name)
        sweep = config.load(sweep_file(folder, trials, studies))
        object.__setattr__(sweep.runtime, "workers", workers)
        began = time.perf_counter()
        counts = preview(sweep).estimate
        planning = time.perf_counter() - began
        disk = Disk(folder)
        began, cpu = time.perf_counter(), time.process_time()
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            outcome = runner.run(sweep, Console(file=nowhere))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        disk.stop()
        known = ledger.read(sweep.folder / "ledger")
        records = [*known.trials.values(), *known.originals.values()]
        spans = [(float(each.facts["started_at"]), float(each.facts["finished_at"])) for each in records]
        first, last = min(start for start, _ in spans), max(end for _, end in spans)
        done = len(records)
        assert len(ended) == done, f"{len(ended) - done} jobs were done twice"
        assert outcome.num_failed == 0
        assert done >= counts.trials * 0.9, "a study answers what it has seen from the ledger, but not that often"
        began = time.perf_counter()
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            runner.run(sweep, Console(file=nowhere))
        return {
            "trials": counts.trials,
            "studies": counts.studies,
            "seconds_a_trial": seconds,
            "workers": workers,
            "wall_ms_a_trial": 1000 * (last - first) / done,
            "gap_ms": 1000 * statistics.median(gaps(records)),
            "busy": sum(end - start for start, end in spans) / (workers * (last - first)),
            "driver_cpu_ms_a_trial": 1000 * cpu / done,
            "start_and_end_s": wall - (last - first),
            "planning_s": planning,
            "nothing_to_do_s": time.perf_counter() - began,
            "driver_peak_mb": peak_mb(),
            **disk.figures(Path(str(sweep.folder / "tables"))),
        }


def peak_mb() -> float:
    """The most memory of this process; `ru_maxrss` would be at least that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def gaps(records: list[Any]) -> list[float]:
    """Seconds between the end of a job and the start of the next on the same worker."""
    by_worker: dict[str, list[tuple[float, float]]] = {}
    for each in records:
        span = (float(each.facts["started_at"]), float(each.facts["finished_at"]))
        by_worker.setdefault(each.facts["host"], []).append(span)
    return [after[0] - before[1] for spans in map(sorted, by_worker.values()) for before, after in itertools.pairwise(spans)]


class Disk:
    """Bytes and inodes that Ray and cu-ray have on the disk, looked at while they run."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._peak, self._ended = folder, 0, threading.Event()
        self._sessions = set(Path("/tmp/ray").glob("session_2*"))
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def figures(self, tables: Path) -> dict[str, float]:
        """What is there now, the tables aside, and the most that was."""
        size, inodes = self._look()
        in_tables, files = used(tables)
        return {"disk_mb": (size - in_tables) / 1e6, "disk_peak_mb": self._peak / 1e6, "inodes": inodes - files}

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._peak = max(self._peak, self._look()[0])

    def _look(self) -> tuple[int, int]:
        sessions = set(Path("/tmp/ray").glob("session_2*")) - self._sessions
        found = [used(folder) for folder in (self._folder, *sessions)]
        return sum(size for size, _ in found), sum(count for _, count in found)


def used(folder: Path) -> tuple[int, int]:
    """Bytes and number of files and folders below a folder."""
    size = count = 0
    for root, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        for file in files:
            try:
                size += (Path(root) / file).lstat().st_size
            except FileNotFoundError:
                continue
    return size, count


def apart(row: tuple[int, int, float], workers: int) -> dict[str, Any]:
    """The figures of a row, measured in a process of its own: memory and CPU are a process's."""
    trials, studies, seconds = row
    command = [sys.executable, __file__, "--trials", str(trials), "--studies", str(studies), "--seconds", str(seconds)]
    done = subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(figures), file=sys.stderr)
    return figures


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    import optuna
    import ray

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "processor": f"{os.cpu_count()} x {model[0] if model else platform.machine()}",
        "python": platform.python_version(),
        "ray": ray.__version__,
        "optuna": optuna.__version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    shown = {
        "trials": "trials",
        "studies": "studies",
        "seconds_a_trial": "s a trial",
        "wall_ms_a_trial": "wall ms a trial",
        "driver_cpu_ms_a_trial": "driver CPU ms a trial",
        "gap_ms": "gap ms",
        "busy": "share busy",
        "start_and_end_s": "start and end s",
        "planning_s": "planning s",
        "nothing_to_do_s": "nothing to do s",
        "driver_peak_mb": "driver MB",
        "disk_mb": "disk MB",
        "disk_peak_mb": "disk peak MB",
        "inodes": "inodes",
    }
    lines = ["| " + " | ".join(shown.values()) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        values = [row[name] for name in shown]
        cells = [f"{each:,}" if isinstance(each, int) else f"{each:,.3g}" for each in values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print figures: of one sweep as JSON, of all as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="what a trial takes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="every row, each in a process of its own")
    parser.add_argument("--small", action="store_true", help="as --all does it, one row at toy size: that it runs, no figures")
    parser.add_argument("--out", type=Path, help="JSON here, a table beside it")
    given = parser.parse_args()
    if not given.all and not given.small:
        print(json.dumps(measure(given.trials, given.studies, given.seconds, given.workers)))
        return
    rows = [apart(row, given.workers) for row in (SMALL_ROWS if given.small else ROWS)]
    print(table(rows))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
        facts = ", ".join(f"{name} {value}" for name, value in environment().items())
        given.out.with_suffix(".md").write_text(
            f"# What the engine costs\n\n`python benchmarks/engine.py --all`: {facts}\n\n{table(rows)}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
