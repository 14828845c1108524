"""Sweep files that run in seconds, and the command as a user gives it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

SMALL = """
name: small
dataset: fashion_mnist_small
model: {{name: resnet9, width: 2}}
manipulation: {{name: backdoor, size: 300}}
train: {{steps: 12, lr: 0.05, batch_size: 64, precision: fp32}}
deletion_fractions: {fractions}
seeds: {seeds}
methods:
  no_unlearning: {{}}
  catastrophic_forgetting: {{steps: 4}}
  scrub: {{steps: 6, lr: 0.005, msteps: 2, trials: {trials}}}
  ssd: {{selection_share: {{low: 0.002, high: 0.1, log: true, num: 4}}, relative_dampening: 1, sampler: grid}}
  {more}
search: {{seeds: first, lag: 2}}
runtime: {{storage: {storage}}}
"""

# columns that differ from run to run: clocks, machines, and which trial paid for a shared memo
EXEMPT = [
    *("unlearn_seconds", "unlearn_seconds_spent", "unlearn_seconds_mean", "eval_seconds", "train_seconds"),
    *("images_forward_spent", "images_backward_spent", "peak_memory_bytes", "started_at", "finished_at", "host"),
    *("gpu_share", "num_out_of_memory"),
]


def small(folder: Path, *, fractions="[0.1, 1.0]", seeds="[0, 1]", trials=6, more="", storage="store", name="small.yaml") -> Path:
    """The path of a sweep file in the folder."""
    path = folder / name
    path.write_text(SMALL.format(fractions=fractions, seeds=seeds, trials=trials, more=more, storage=storage))
    return path


def command(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """`cu-ray` with these arguments, run in the folder to its end."""
    return subprocess.run(program(*arguments), cwd=folder, capture_output=True, text=True, timeout=300, **options)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`cu-ray` with these arguments, started in the folder as a process group of its own."""
    with open(folder / "driver.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(program(*arguments), cwd=folder, stdout=log, stderr=log, text=True, start_new_session=True)


def program(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "cu_ray.cli", *arguments]


def counts(folder: Path, file: Path) -> dict:
    """What `cu-ray plan --json` says."""
    done = command(folder, "plan", str(file), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def table(folder: Path, name: str) -> pd.DataFrame:
    """A table without the columns that differ from run to run, in the order of its keys."""
    frame = pd.read_parquet(folder / "tables" / f"{name}.parquet")
    frame = frame.drop(columns=[column for column in EXEMPT if column in frame.columns])
    keys = {
        "trials": ["trial_key"],
        "originals": ["original_key"],
        "best": ["search_key", "deletion_fraction", "rule"],
        "curves": ["search_key", "deletion_fraction", "rule", "metric"],
    }
    return frame.sort_values(keys[name]).reset_index(drop=True)


def assert_same_tables(one: Path, other: Path) -> None:
    """All tables of two result folders are equal to the bit."""
    for name in ("trials", "originals", "best", "curves"):
        pd.testing.assert_frame_equal(table(one, name), table(other, name), check_exact=True, obj=name)
