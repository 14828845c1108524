"""Kills at random moments, again and again, on one sweep: nothing lost, nothing twice, the same tables."""

from __future__ import annotations

import pytest

from tests.faults import soak


def test_six_kills_on_one_sweep_lose_nothing_and_repeat_nothing(tmp_path):
    undisturbed = soak.undisturbed_in(tmp_path / "undisturbed", 4)
    made = soak.soak(tmp_path / "killed", undisturbed, 4, "19", kills=6)
    assert set(made.kills) == {"worker", "driver", "raylet", "gcs", soak.TWICE}
    assert len(made.kills) == 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nodes", [1, 2])
def test_twenty_kills_on_one_sweep_lose_nothing_and_repeat_nothing(tmp_path, nodes):
    undisturbed = soak.undisturbed_in(tmp_path / "undisturbed", 20)
    made = soak.soak(tmp_path / "killed", undisturbed, 20, "0", kills=20, nodes=nodes)
    assert len(made.kills) == 20
    assert max(map(len, soak.executions(made.folder).values())) > 1, "no kill hit a trial that counts itself: nothing was tested"
