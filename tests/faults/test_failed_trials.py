"""A failed or diverged trial is a row with a reason, and the sweep goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from cu_ray.sweep import ledger
from tests import sweeps

BAD = ("Raises", "ReturnsNan", "OtherArchitecture", "Exits", "Interrupts")
MORE = "\n  ".join(f"bad_methods:{name}: {{}}" for name in BAD)


def test_bad_methods_are_rows_and_the_others_finish(tmp_path):
    shutil.copy(Path(__file__).parent / "bad_methods.py", tmp_path)
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1, more=MORE)
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 failed" in done.stdout
    trials = sweeps.table(tmp_path / "results" / "small", "trials").set_index("method")
    assert trials.loc["bad_methods:Raises", "status"] == "failed"
    assert "no luck" in trials.loc["bad_methods:Raises", "error"]
    assert trials.loc["bad_methods:ReturnsNan", "status"] == "diverged"
    assert "another architecture" in trials.loc["bad_methods:OtherArchitecture", "error"]
    for name, error in (("Exits", "SystemExit"), ("Interrupts", "KeyboardInterrupt")):
        assert trials.loc[f"bad_methods:{name}", "error"].startswith(f"{error} in bad_methods:{name}:")
    assert (trials[trials["status"] != "ok"]["acc_corr"].isna()).all()
    assert set(trials.loc[["no_unlearning", "catastrophic_forgetting", "scrub", "ssd"], "status"]) == {"ok"}
    again = sweeps.command(tmp_path, "sweep", str(file))
    assert again.returncode == 1
    assert "Nothing to do" in again.stdout


def test_images_in_shared_memory_that_a_method_wrote_to_are_put_back(tmp_path):
    """A tensor on Ray's shared memory can be written to, for all workers of the machine."""
    tables = {}
    for name, more in (("clean", ""), ("bad", "bad_methods:WritesPixels: {}")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(Path(__file__).parent / "bad_methods.py", folder)
        file = sweeps.small(folder, fractions="[0.5, 1.0]", seeds="[0]", trials=2, more=more)
        done = sweeps.command(folder, "sweep", str(file), "--workers", "1")
        assert done.returncode == (1 if more else 0), done.stdout + done.stderr
        tables[name] = sweeps.table(folder / "results" / "small", "trials").set_index("trial_key").sort_index()
    bad = tables["bad"][tables["bad"]["method"] == "bad_methods:WritesPixels"]
    assert len(bad) == 2
    assert set(bad["error"]) == {
        "ContractBroken in bad_methods:WritesPixels: wrote into the training images: what trials share is read-only"
    }
    scores = ["acc_corr", "acc_retain", "asr", "deletion_given", "retain_given", "changed_share"]
    others = tables["bad"].drop(bad.index)
    pd.testing.assert_frame_equal(others[scores], tables["clean"][scores])
    facts = {key: record.facts for key, record in ledger.read(folder / "results" / "small" / "ledger").trials.items()}
    wrote = min(facts[key]["finished_at"] for key in bad.index)
    assert max(facts[key]["started_at"] for key in others.index) > wrote, "nothing ran after it on that worker"
