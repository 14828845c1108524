"""Where files of a ledger are gone, that is said and the tables of what it knew are kept."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from cu_ray.places import Folder
from cu_ray.sweep import ledger, tables
from cu_ray.sweep.lost import set_aside
from tests.sweep.simulator import SCRUB, agenda_of, plan, play

MADE = plan({"no_unlearning": {}, "scrub": {**SCRUB, "trials": 3}})
STATUS = {"running": False, "process": 1, "host": "here", "storage": "", "device": "cpu", "studies": 2}
NUM_TRIALS, NUM_ORIGINALS = 4, 1


@pytest.fixture
def folder(tmp_path):
    """The folder of a sweep that has run."""
    with ledger.Ledger(tmp_path / "ledger") as book:
        play(agenda_of(MADE, book))
        tables.write(tmp_path / "tables", MADE, book.known)
    note_done(tmp_path, NUM_TRIALS, NUM_ORIGINALS)
    return tmp_path


def note_done(folder, trials, originals):
    counts = {"trials": NUM_TRIALS, "trials_done": trials, "trials_failed": 0, "originals": 1, "originals_done": originals}
    (folder / "status.json").write_text(json.dumps(STATUS | counts))


def told(folder):
    return set_aside(Folder(folder), ledger.read(folder / "ledger"))


def kept_in(folder):
    return sorted(folder.glob("tables.before-*"))


def test_nothing_is_said_where_the_ledger_knows_all(folder, tmp_path):
    assert told(folder) is None
    note_done(folder, 1, 1)  # of another file
    assert told(folder) is None
    assert told(tmp_path / "nowhere") is None
    assert (folder / "tables" / "trials.parquet").exists() and kept_in(folder) == []


def test_tables_of_more_than_the_ledger_knows_are_kept_once(folder):
    before = {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
    (folder / "ledger" / "000001.log").unlink()
    said = told(folder)
    (kept,) = kept_in(folder)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert re.fullmatch(r"tables\.before-\d{4}-\d\d-\d\d-\d{6}", kept.name)
    assert f"{folder / 'ledger'} does not know: {NUM_TRIALS + NUM_ORIGINALS}." in said
    assert said.endswith(f" The tables are kept in {kept}.")

    with ledger.Ledger(folder / "ledger") as book:
        play(agenda_of(MADE, book), kill_after=2)
        tables.write(folder / "tables", MADE, book.known)
    note_done(folder, 1, 1)
    assert told(folder) is None
    assert kept_in(folder) == [kept]
    assert len(pd.read_parquet(folder / "tables" / "trials.parquet")) == 1


def test_what_one_lost_record_was_is_in_the_tables(folder):
    """Other trials came in since, so that counts alone say nothing."""
    known = ledger.read(folder / "ledger")
    key, record = known.trials.popitem()
    known.trials["another"] = record
    assert "does not know: 1." in set_aside(Folder(folder), known)
    (kept,) = kept_in(folder)
    assert key in set(pd.read_parquet(kept / "trials.parquet")["trial_key"])


def test_a_status_of_more_than_the_ledger_knows_is_said_without_tables_too(folder):
    (folder / "ledger" / "000001.log").unlink()
    for path in (folder / "tables").iterdir():
        path.write_bytes(b"damaged")
    assert f"does not know: {NUM_TRIALS + NUM_ORIGINALS}." in told(folder)
    assert kept_in(folder) == []
