"""The benchmarks for processors run as they are at toy size, and what compares two sides sees where they differ."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import alone  # noqa: E402
import cell_checks  # noqa: E402
import cell_given  # noqa: E402
import published  # noqa: E402
from cell_tables import SIDES, ladder  # noqa: E402


def run(name, tmp_path, *options):
    """The results and the table of a benchmark at toy size, and what it said."""
    out = tmp_path / f"{name}.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--small", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out.with_suffix(".md").read_text(), done.stdout


@pytest.mark.parametrize("name", ["loader", "step", "evaluate", "ssd", "quickstart"])
def test_a_benchmark_gives_figures_and_says_what_they_were_measured_on(name, tmp_path):
    result, table, _ = run(name, tmp_path)
    assert {"date", "commit", "processor", "python", "torch"} <= result["environment"].keys()
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in result["rows"])
    assert all(row["what"] in table for row in result["rows"])


def test_the_engine_is_measured_and_all_that_is_measured_is_shown(tmp_path):
    result, table, said = run("engine", tmp_path, "--workers", "1")
    (row,) = result["rows"]
    assert (row["trials"], row["studies"], row["workers"]) == (4, 2, 1)
    assert all(row[name] > 0 for name in ("wall_ms_a_trial", "start_and_end_s", "driver_cpu_ms_a_trial", "inodes"))
    assert "| start and end s |" in table
    assert said.strip() in table


def test_the_cell_is_done_round_by_round_and_each_once(tmp_path):
    kept = ("--folder", str(tmp_path / "kept"), "--sides", "shared")
    nothing, _, said = run("cell", tmp_path, *kept, "--minutes", "0")
    assert (nothing["rounds"], said.splitlines()[-1]) == ([], "rounds left: 1. The same command goes on.")
    result, table, said = run("cell", tmp_path, *kept)
    assert said.splitlines()[-1] == "all rounds are done"
    (noted,) = result["rounds"][0]["machine"]
    assert noted["load"] >= 0
    assert 0 <= noted["stolen"] <= 1
    assert f"| shared | 0 | {noted['load']:.2f} | {noted['stolen']:.1%} |" in table
    again, _, _ = run("cell", tmp_path, *kept)
    assert again["rounds"] == result["rounds"]


@pytest.mark.parametrize(("side", "program"), [("shared", "alone.py"), ("two", "published.py")])
def test_a_cell_that_is_ended_takes_what_it_started_with_it(side, program, tmp_path):
    command = [sys.executable, str(FOLDER / "cell.py"), "--small", "--folder", str(tmp_path / "kept"), "--sides", side]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path) as cell:
        while not (children := [each for each in psutil.Process(cell.pid).children() if program in " ".join(command_of(each))]):
            assert cell.poll() is None, "it is over, and has started nothing"
            time.sleep(0.01)
        cell.send_signal(signal.SIGTERM)
        assert cell.wait(60) == 128 + signal.SIGTERM
    assert not any(child.is_running() for child in children)


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it is over
        return []


def test_a_ladder_has_the_rungs_that_were_measured():
    measured = [("shared", 50.0), ("processes", 200.0), ("warm", 100.0), ("processes", 400.0), ("two", 1.0)]
    lines = ladder([{"side": side, "seconds": seconds} for side, seconds in measured]).splitlines()
    assert lines[2:] == ["| processes | 300 | 1.00 | 1.00 |", "| warm | 100 | 3.00 | 3.00 |", "| shared | 50 | 2.00 | 6.00 |"]
    assert ladder([{"side": "warm", "seconds": 1.0}]) == ""


@pytest.mark.slow
def test_the_whole_cell_by_all_sides(tmp_path):
    result, table, _ = run("cell", tmp_path, "--folder", str(tmp_path / "kept"), "--sides", *SIDES)
    assert {this["side"] for this in result["rounds"]} == set(SIDES)
    assert result["checks"]["ssd"]["weights"] <= 1e-4
    assert "| rung |" in table


@pytest.mark.slow
def test_plan_says_what_the_rest_of_a_sweep_takes(tmp_path):
    out = tmp_path / "projection.json"
    subprocess.run([sys.executable, str(FOLDER / "projection.py"), "--out", str(out)], check=True, timeout=1500)
    ratios = [row["median"] for row in json.loads(out.read_text())["rows"] if row["unit"] == "times"]
    assert all(0.7 <= ratio <= 1.3 for ratio in ratios), ratios


# ------------------------------------------------------------------------------------------------- the published procedure


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A cell with a run of each method, prepared."""
    folder = tmp_path_factory.mktemp("cell")
    made = cell_given.describe(8, 2, folder, small=True)
    cell_given.prepare(made, folder)
    return made


def test_the_cell_has_the_published_runs():
    counts: dict[str, int] = {}
    for name, _ in cell_given.runs(4000):
        counts[name] = counts.get(name, 0) + 1
    assert counts == {"exact_unlearning": 3, "catastrophic_forgetting": 3, "scrub": 8, "bad_teaching": 1, "ssd": 50}
    steps = {name: {given["steps"] for _, given in group(name)} for name in counts if name != "ssd"}
    assert steps["exact_unlearning"] == {4000, 1000}
    assert all(steps[name] == {1000} for name in ("catastrophic_forgetting", "scrub", "bad_teaching"))


def group(name):
    return [each for each in cell_given.runs(4000) if each[0] == name]


def test_both_sides_do_the_same_work_in_each_run(cell, tmp_path):
    records = alone.records(cell, list(range(len(cell["runs"]))), str(tmp_path), anew=True)
    for number, record in records.items():
        other = published.run_of(cell, number, 0)
        scores = other.scores(other.make())
        facts = alone.facts(record)
        assert (other.forward, other.backward) == (facts["forward"], facts["backward"]), cell["runs"][number]
        assert other.steps == cell["runs"][number][1].get("steps", 0)
        assert all(0 <= scores[name] <= 1 for name in cell_checks.SCORES)


def test_both_sides_start_from_the_same_original_and_score_it_alike(cell, tmp_path):
    other = published.run_of(cell, 0, 0)
    scores = other.scores(other.model)
    cell = {**cell, "runs": [("no_unlearning", {})], "deleted": 0}
    record = alone.records(cell, [0], str(tmp_path), anew=False)[0]
    assert {name: pytest.approx(record.scores[name], abs=1e-6) for name in cell_checks.SCORES} == {
        name: scores[name] for name in cell_checks.SCORES
    }


def test_ssd_is_the_same_where_nothing_is_drawn_and_that_is_seen(cell, monkeypatch):
    apart = cell_checks.difference_of_ssd(cell)
    assert max(apart[name] for name in ("weights", "dampened", "scores")) <= 1e-4
    assert apart["importances"] <= 1e-3
    whole = published.dampened

    def too_little(model, deletion, retain, alpha, relative):
        return whole(model, deletion, retain, alpha, 1.01 * relative)

    monkeypatch.setattr(cell_checks, "dampened", too_little)
    apart = cell_checks.difference_of_ssd(cell)
    assert apart["weights"] > 1e-4
    assert apart["dampened"] > 1e-4


@torch.no_grad()
def test_the_published_procedure_freezes_and_renews_what_it_should(cell):
    for number, (name, given) in enumerate(cell["runs"]):
        run = published.run_of(cell, number, 0)
        before = copy.deepcopy(run.model.state_dict())
        with torch.enable_grad():
            after = run.make().state_dict()
        changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        last = {None: set("0123456"), 2: set("56"), 4: set("456")}.get(given.get("k"), set("0123456"))
        assert changed <= last, (name, given)
        assert name == "ssd" or changed == last, (name, given)


# -------------------------------------------------------------------------------------------------------------- the checks


def rounds(count, score, own):
    """Rounds of the published procedure whose scores are about 0.5, and one of cu-ray with a score of its own."""
    others = [
        {
            "side": side,
            "repeat": repeat,
            "runs": {"0": {"forward": 9, "backward": 3, "scores": scores(0.5 + 0.01 * repeat, score)}},
        }
        for repeat in range(count)
        for side in ("processes", "two")
    ]
    return [{"side": "cu-ray", "repeat": 0, "runs": {"0": {"forward": 9, "backward": 3, "scores": scores(own, score)}}}, *others]


def scores(value, which):
    return {name: value if name == which else 0.2 for name in cell_checks.SCORES}


@pytest.mark.parametrize("score", cell_checks.SCORES)
def test_a_score_out_of_the_noise_of_seeds_is_told(score):
    runs = {"runs": [("scrub", {"alpha": 1.0})]}
    assert cell_checks.out_of_noise(runs, rounds(3, score, 0.52))[0] == []
    told, furthest = cell_checks.out_of_noise(runs, rounds(3, score, 0.6))
    assert len(told) == 1
    assert score in told[0]
    assert furthest > cell_checks.DEVIATIONS


def test_other_work_is_told():
    found = rounds(1, "asr", 0.5)
    cell_checks.require_same_work(found)
    found[1]["runs"]["0"]["backward"] = 4
    with pytest.raises(AssertionError, match="run 0: processes has"):
        cell_checks.require_same_work(found)
