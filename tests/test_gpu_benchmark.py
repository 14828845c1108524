"""The benchmark for GPU machines runs as it is on a CPU at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(tmp_path, *options):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out.with_suffix(".md").read_text()


def test_every_part_gives_figures(tmp_path):
    result, table = run(tmp_path)
    assert {name: part.get("error") for name, part in result["parts"].items() if "rows" not in part} == {}
    rows = [row for part in result["parts"].values() for row in part["rows"]]
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in rows)
    assert all(row["what"] in table for row in rows)


def test_what_does_not_fit_into_the_time_is_said_not_measured(tmp_path):
    result, table = run(tmp_path, "--minutes", "0")
    assert all(set(part) == {"left_out"} for part in result["parts"].values())
    assert table.count("not measured") == len(result["parts"])


def test_parts_can_be_chosen(tmp_path):
    result, _ = run(tmp_path, "--only", "SSD")
    assert list(result["parts"]) == ["floors", "SSD"]
