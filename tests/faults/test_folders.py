"""Places that fill up, cannot be written, or hold another sweep: one message, nothing destroyed, the same command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager

import pandas as pd
import pytest

from cu_ray.sweep import ledger
from tests import sweeps

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextmanager
def mounted(folder, options):
    """A file system of its own at the folder."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_sweep_and_with_room_it_goes_on(undisturbed, tmp_path):
    file, results = sweeps.small(tmp_path), tmp_path / "results" / "small"
    with mounted(tmp_path / "results", "size=96k"):
        first = sweeps.command(tmp_path, "sweep", str(file))
        assert first.returncode == 1
        assert "cu-ray: stopped: No space left on device" in first.stderr
        assert "the same command goes on" in first.stderr
        assert "Traceback" not in first.stdout + first.stderr
        done = ledger.read(results / "ledger").trials
        assert done
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "results")], check=True)
        second = sweeps.command(tmp_path, "sweep", str(file))
        assert second.returncode == 0, second.stdout + second.stderr
        known = ledger.read(results / "ledger").trials
        assert len(done) < len(known)
        assert {key: known[key] for key in done} == done
        sweeps.assert_same_tables(undisturbed / "results" / "small", results)


def test_a_storage_that_fills_up_ends_the_sweep_without_a_failed_row_and_with_room_it_goes_on(undisturbed, tmp_path):
    file, results = sweeps.small(tmp_path), tmp_path / "results" / "small"
    with mounted(tmp_path / "store", "size=24k"):
        first = sweeps.command(tmp_path, "sweep", str(file))
        said = " ".join(first.stderr.split())
        assert first.returncode == 1
        assert "cu-ray: original models cannot be kept or read: StoreFailed: runtime.storage: " in said
        assert "No space left on device" in said
        assert "Traceback" not in first.stdout + first.stderr
        known = ledger.read(results / "ledger")
        assert all(record.ok for record in {**known.originals, **known.trials}.values())
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "store")], check=True)
        second = sweeps.command(tmp_path, "sweep", str(file))
        assert second.returncode == 0, second.stdout + second.stderr
        sweeps.assert_same_tables(undisturbed / "results" / "small", results)


@pytest.mark.parametrize("which", ["results", "store"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(tmp_path, which):
    file = sweeps.small(tmp_path)
    with mounted(tmp_path / which, "ro"):
        done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 2
    assert "cannot be written to" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "Ray" not in done.stdout


def test_a_changed_sweep_file_over_old_results_keeps_them_and_says_what_is_left_out(undisturbed, tmp_path):
    old, new = sweeps.table(undisturbed / "results" / "small", "trials"), tmp_path / "results" / "small"
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = ledger.read(new / "ledger").trials
    file = sweeps.small(tmp_path)
    file.write_text(file.read_text().replace("steps: 12", "steps: 11").replace("[0, 1]", "[0]").replace("[0.1, 1.0]", "[1.0]"))
    done = sweeps.command(tmp_path, "sweep", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    said = "Note: trials kept here but not asked for now, so in trials.parquet only (another or changed file, --only): "
    assert f"{said}{len(old)}." in done.stdout
    known = ledger.read(new / "ledger").trials
    assert {key: known[key] for key in before} == before
    assert set(sweeps.table(new, "trials")["trial_key"]) == set(known)
    assert len(sweeps.table(new, "best")) < len(sweeps.table(undisturbed / "results" / "small", "best"))

    again = sweeps.command(tmp_path, "sweep", str(sweeps.small(tmp_path)))
    assert "Nothing to do" in again.stdout
    for name in ("best", "curves"):
        pd.testing.assert_frame_equal(sweeps.table(new, name), sweeps.table(undisturbed / "results" / "small", name))
    trials = sweeps.table(new, "trials")
    mine = trials[trials["trial_key"].isin(old["trial_key"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, old, check_dtype=False)


def test_a_ledger_whose_files_are_gone_is_said_before_the_sweep_starts_and_the_tables_are_kept(undisturbed, tmp_path):
    old, new = undisturbed / "results" / "small", tmp_path / "results" / "small"
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    for path in (new / "ledger").glob("*.log"):
        path.unlink()
    said = f"results/small/ledger does not know: {len(sweeps.table(old, 'trials')) + len(sweeps.table(old, 'originals'))}."
    first = sweeps.command(tmp_path, "sweep", str(sweeps.small(tmp_path)), "--time-limit", "1s")
    assert said in first.stdout, first.stdout + first.stderr
    (kept,) = new.glob("tables.before-*")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in (old / "tables").iterdir()
    }
    again = sweeps.command(tmp_path, "sweep", str(tmp_path / "small.yaml"), "--time-limit", "1s")
    assert "does not know" not in again.stdout and list(new.glob("tables.before-*")) == [kept]
