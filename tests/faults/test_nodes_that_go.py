"""Nodes that are taken away while a real sweep is at them: announced, as spot nodes are, or as machines vanish."""

from __future__ import annotations

import time

import pytest
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from tests import sweeps
from tests.faults.driver import Driver
from tests.faults.soak import Cluster

LONG = "exact_unlearning: {k: [null, 2], steps: [300, 301, 302], sampler: grid}"  # so that nodes go while workers are at a job


@pytest.mark.timeout(300)
def test_a_node_that_is_taken_away_with_notice_costs_nothing_but_time(tmp_path):
    """Tune takes a preempted worker for one to be started anew, and tells nobody."""
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=2, more=LONG)
    cluster = Cluster(tmp_path)
    try:
        driver = Driver(tmp_path, str(file), "--address", cluster.facts["address"])
        for _ in range(2):
            driver.wait_for_trials(1)
            facts = cluster.facts
            accepted, why = GcsClient(address=facts["address"]).drain_node(
                facts["node_id"],
                DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
                "taken away",
                int(1000 * time.time()) + 1,
            )
            assert accepted, why
            cluster.member("node").kill()
            while cluster.facts == facts:
                time.sleep(0.1)
        assert driver.process.wait(200) == 0, driver.said
    finally:
        cluster.close()
    trials = sweeps.table(tmp_path / "results" / "small", "trials")
    assert set(trials["status"]) == {"ok"}
    assert (trials["method"] == "exact_unlearning").sum() == 6
