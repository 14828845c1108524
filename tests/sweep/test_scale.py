"""Ten thousand trials on 64 devices, simulated: no device waits while there is work, and the driver keeps up."""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import replace

from cu_ray.sweep import ledger
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.ledger import Known, Ledger, PointRecord
from tests.sweep.simulator import agenda_of, plan, record_of, run

DEVICES = 64
EVALUATION = 4_000  # forward passes that each job takes besides
METHODS = {
    "no_unlearning": {},
    "exact_unlearning": {"steps": 40},
    "catastrophic_forgetting": {"k": [None, 2, 4], "steps": 10, "sampler": "grid"},
    "scrub": {"steps": 10, "msteps": 2, "trials": 12},
    "bad_teaching": {"steps": 10},
    "ssd": {
        "selection_share": {"low": 0.002, "high": 0.1, "log": True, "num": 10},
        "relative_dampening": [0.25, 0.5, 1],
        "sampler": "grid",
    },
}


def simulated(made, devices: int):
    """Busy share of the devices until the last job ends, and what was run; jobs take as long as the images they see."""
    agenda = agenda_of(made, ReadOnlyJournal(Known()))
    now = busy = 0.0
    running: list[tuple[float, str, object]] = []
    while not agenda.done:
        while len(running) < devices and (job := agenda.next()) is not None:
            busy += job.images + EVALUATION
            heapq.heappush(running, (now + job.images + EVALUATION, job.key, job))
        now, _, job = heapq.heappop(running)
        agenda.complete(record_of(job))
    return busy / (devices * now), agenda


def test_64_devices_are_busy_nearly_all_the_time_over_10000_trials():
    made = plan(
        METHODS,
        manipulation={"name": "backdoor", "size": [50, 60, 80, 100]},
        deletion_fractions=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        seeds=[0, 1, 2, 3, 4],
        search={"seeds": "each"},
    )
    started = time.process_time()
    busy, agenda = simulated(made, DEVICES)
    seconds = time.process_time() - started
    trials = sum(agenda.finished.values()) - 20
    print(f"{trials} trials: devices busy {busy:.1%}, {1000 * seconds / trials:.1f} ms of the driver each")
    assert trials > 9_000
    assert busy > 0.97
    assert seconds / trials < 0.02, "the driver's own time for a trial"


def test_a_small_sweep_keeps_few_devices_busy_too():
    made = plan(METHODS, deletion_fractions=[0.1, 0.5, 1.0], seeds=[0, 1], search={"seeds": "each"})
    shares = [simulated(made, devices)[0] for devices in (1, 2, 4, 8)]
    assert shares[0] == 1.0
    assert all(share > 0.8 for share in shares[:3])


def test_the_ledger_of_10000_trials_is_small_and_opens_in_a_second(tmp_path):
    """Every score and time a number of its own: more than real ones, which repeat."""
    rng, (known, _) = random.Random(0), run(plan({"scrub": {"steps": 10, "msteps": 2, "trials": 4}}))
    like = next(iter(known.trials.values()))
    with Ledger(tmp_path) as book:
        for number in range(10_000):
            key = rng.randbytes(32).hex()
            scores = {name: value and rng.random() for name, value in like.scores.items()}
            facts = {name: rng.random() if isinstance(value, float) else value for name, value in like.facts.items()}
            book.append(PointRecord(rng.randbytes(32).hex(), number, {"lr": rng.random(), "alpha": rng.random()}, (key,)))
            book.append(replace(like, key=key, scores=scores, facts=facts))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    started = time.process_time()
    with Ledger(tmp_path) as book:
        seconds = time.process_time() - started
        assert len(book.known.trials) == 10_000
    print(f"{size / 2**20:.1f} MiB, opened in {seconds:.2f} s")
    assert size < 12e6
    assert seconds < 1.5
    assert ledger.read(tmp_path).trials == book.known.trials
