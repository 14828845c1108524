"""examples/incident as its README says it: a model, a list of bad samples, a sweep, corrected weights, a judgement."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests import sweeps

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "incident"


def python(folder: Path, *arguments: str) -> str:
    """What a script of the example says."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_corrected_model_takes_under_a_quarter_as_many_triggered_images_for_the_target(tmp_path):
    folder = tmp_path / "incident"
    shutil.copytree(EXAMPLE, folder)
    python(folder, "make_incident.py")
    triggered = folder / "triggered.npz"
    triggered.rename(tmp_path / "triggered.npz")  # an owner does not have it
    done = sweeps.command(folder, "sweep", "incident.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "identified.csv").unlink()  # it was read when the sweep was planned
    exported = sweeps.command(folder, "export", "results/incident")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    (loader,) = (folder / "results" / "incident" / "export").glob("*/load.py")
    (tmp_path / "triggered.npz").rename(triggered)
    said = python(folder, "judge.py", str(loader.relative_to(folder)))
    taken = {name: float(share) for name, share in re.findall(r"(?m)^(\w+) .*taken for the target ([\d.]+)", said)}
    clean = {name: float(share) for name, share in re.findall(r"(?m)^(\w+) .*clean: accuracy ([\d.]+)", said)}
    assert taken.keys() == {"original", "corrected"}
    assert taken["original"] > 0.5, "there is nothing to correct"
    assert taken["corrected"] < taken["original"] / 4, said  # over five seeds .00 to .19 of .94
    assert clean["corrected"] > 0.6, said

    trials = pd.read_parquet(folder / "results" / "incident" / "tables" / "trials.parquet")
    best = pd.read_parquet(folder / "results" / "incident" / "tables" / "best.parquet")
    assert set(trials["status"]) == {"ok"}
    for name in ("acc_corr", "asr", "effective_size", "detection_recall", "deletion_true", "retain_true"):
        assert trials[name].isna().all(), name
    chosen = best[(best["rule"] == "defender") & (best["method"] == "ssd")].iloc[0]
    assert chosen["score"] > 0
    assert loader.parent.name == chosen["trial_keys"][0][:16]
