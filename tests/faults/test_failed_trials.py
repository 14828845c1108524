"""A failed or diverged trial is a row with a reason, and the sweep goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests import sweeps

MORE = "bad_methods:Raises: {}\n  bad_methods:ReturnsNan: {}\n  bad_methods:OtherArchitecture: {}"


def test_bad_methods_are_rows_and_the_others_finish(tmp_path):
    shutil.copy(Path(__file__).parent / "bad_methods.py", tmp_path)
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more=MORE)
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed" in done.stdout
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert trials.loc["bad_methods:Raises", "status"] == "failed"
    assert "no luck" in trials.loc["bad_methods:Raises", "error"]
    assert trials.loc["bad_methods:ReturnsNan", "status"] == "diverged"
    assert "another architecture" in trials.loc["bad_methods:OtherArchitecture", "error"]
    assert (trials[trials["status"] != "ok"]["acc_corr"].isna()).all()
    assert set(trials.loc[["no_unlearning", "catastrophic_forgetting", "scrub", "ssd"], "status"]) == {"ok"}
    again = sweeps.command(tmp_path, "sweep", str(file))
    assert again.returncode == 1
    assert "Nothing to do" in again.stdout
