"""Evidence under kill -9: a trial that is finished has it, and keeping it changes no key, no score and no table."""

from __future__ import annotations

import os
import random

from cu_ray.places import Folder
from cu_ray.sweep import ledger
from tests import sweeps
from tests.faults.test_kill_and_resume import KILLS, kill_at_random


def test_a_driver_killed_again_and_again_has_the_evidence_of_all_that_it_finished(undisturbed, tmp_path):
    rng = random.Random(int(os.environ.get("CU_RAY_KILL_SEED", "0")))
    file = sweeps.small(tmp_path)
    file.write_text(f"evidence: true\n{file.read_text()}")
    results = tmp_path / "results" / "small"
    for _ in range(int(os.environ.get("CU_RAY_KILLS", KILLS))):
        if not kill_at_random(tmp_path, ["sweep", str(file)], rng):
            break
        known = ledger.read(results / "ledger")
        assert known.originals.keys() | known.trials.keys() <= ledger.evidence.keys(Folder(results / "ledger"))
    last = sweeps.command(tmp_path, "sweep", str(file))
    assert last.returncode == 0, last.stdout + last.stderr
    known = ledger.read(results / "ledger")
    assert ledger.evidence.keys(Folder(results / "ledger")) == known.originals.keys() | known.trials.keys()
    sweeps.assert_same_tables(undisturbed / "results" / "small", results)
    again = sweeps.command(tmp_path, "sweep", str(file))
    assert "Nothing to do" in again.stdout, again.stdout + again.stderr
