"""Two sweeps at once, each with results of its own, that share one storage: neither disturbs the other."""

from __future__ import annotations

import warnings

import pandas as pd

from cu_ray.store import LocalStore
from cu_ray.sweep import ledger
from tests import sweeps

ONLY = ("--only", "method=ssd", "--workers", "1")


def small(folder, storage):
    """A sweep of one original, one memo and four trials."""
    folder.mkdir()
    return str(sweeps.small(folder, storage=storage, seeds="[0]", fractions="[1.0]"))


def test_two_drivers_that_share_a_storage_train_an_original_once_and_have_the_tables_of_one_alone(tmp_path):
    alone, one, other, later = (tmp_path / name for name in ("alone", "one", "other", "later"))
    done = sweeps.command(alone, "sweep", small(alone, "store"), *ONLY)
    assert done.returncode == 0, done.stdout + done.stderr

    shared = tmp_path / "shared"
    at_once = [sweeps.start(folder, "sweep", small(folder, shared), *ONLY) for folder in (one, other)]
    assert [process.wait(300) for process in at_once] == [0, 0], (one / "driver.log").read_text()
    for folder in (one, other):
        sweeps.assert_same_tables(alone / "results" / "small", folder / "results" / "small")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            known = ledger.read(folder / "results" / "small" / "ledger")
        assert all(record.ok for record in known.trials.values())
    assert not [path for path in shared.rglob(".*") if path.is_file()], "an unfinished file was left"
    for kind in ("originals", "memos"):
        keys = [path.stem for path in (shared / kind).iterdir()]
        assert keys
        assert all(LocalStore(shared).load(kind, key) is not None for key in keys)

    done = sweeps.command(later, "sweep", small(later, shared), *ONLY)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [
        pd.read_parquet(folder / "results" / "small" / "tables" / "originals.parquet")["train_seconds"].count()
        for folder in (one, other, later)
    ]
    assert sorted(trained[:2]) == [0, 1], "both trained the original"
    assert trained[2] == 0, "the original is there, and it was trained again"
