"""The report of 50,000 trials: within 20 s and 1 GB, its page under 5 MB. `pytest -m slow -s tests/report/test_scale.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.report.made import folder

NUM_CELLS, FRACTIONS, SEEDS = 12, [round(0.1 * tenth, 1) for tenth in range(1, 11)], list(range(6))
METHODS = {
    "no_unlearning": {},
    "exact_unlearning": {"steps": 20},
    "catastrophic_forgetting": {"steps": 5},
    "scrub": {"steps": 6, "msteps": 2, "lr": 0.005, "trials": 18, "sampler": "random"},
    "bad_teaching": {"steps": 5},
    "ssd": {
        "selection_share": {"low": 0.002, "high": 0.1, "log": True, "num": 25},
        "relative_dampening": [0.5, 1],
        "sampler": "grid",
    },
}


def many(where: Path) -> Path:
    """The folder of a sweep as large as the published grid on six seeds: one cell's rows, twelve times over."""
    one = folder(where / "one", methods=METHODS, seeds=SEEDS, deletion_fractions=FRACTIONS)
    (where / "many" / "tables").mkdir(parents=True)
    for path in (one / "tables").iterdir():
        schema, frame = pq.read_schema(path), pd.read_parquet(path)
        parts = [_as_cell(frame, number) for number in range(NUM_CELLS)]
        pq.write_table(
            pa.Table.from_pandas(pd.concat(parts), schema=schema, preserve_index=False), where / "many" / "tables" / path.name
        )
    return where / "many"


def _as_cell(frame: pd.DataFrame, number: int) -> pd.DataFrame:
    """The rows as those of another size of the manipulation, with keys of their own."""
    changed = {
        name: frame[name] + str(number) for name in ("trial_key", "original_key", "study_key", "search_key") if name in frame
    }
    for name in ("trial_keys", "study_keys"):
        if name in frame:
            changed[name] = frame[name].map(lambda keys: [key + str(number) for key in keys])
    sizes = {"manipulation_size": frame["manipulation_size"] + number}
    if "deletion_size" in frame:
        whole = frame["deletion_size"] == frame["manipulation_size"]
        sizes["deletion_size"] = frame["deletion_size"] + number * whole
    return frame.assign(**changed, **sizes)


@pytest.mark.slow
def test_the_report_of_50_000_trials_is_there_in_20_seconds_and_1_gigabyte(tmp_path):
    where = many(tmp_path)
    assert len(pd.read_parquet(where / "tables" / "trials.parquet")) >= 50_000
    done = subprocess.run([sys.executable, "-m", "cu_ray.cli", "report", str(where)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, memory = (
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
    )  # of the processor: what a machine for itself would take
    size = (where / "report" / "report.html").stat().st_size
    print(f"\n{seconds:.1f} s of one processor, {memory / 1e9:.2f} GB, page of {size / 1e6:.2f} MB")
    assert seconds < 20
    assert memory < 1e9
    assert size < 5e6
