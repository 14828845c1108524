"""A method that keeps failing in the same way is set aside; the others finish; nothing of it is forgotten."""

from __future__ import annotations

from collections import Counter

import pytest

from cu_ray.methods.scrub import Scrub
from cu_ray.plugins import name_of
from cu_ray.sweep.breaker import ORIGINAL_FAILED, Breaker, kind_of
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.types import Record
from tests.sweep.simulator import SCRUB, agenda_of, fails, plan, planned_anew, play, record_of, run, sweep_file

MANY = {
    "no_unlearning": {},
    "scrub": {**SCRUB, "trials": 30, "sampler": "random"},
    "bad_teaching": {"points": [{"steps": steps} for steps in range(1, 13)]},
}


SECTIONS = {"deletion_fractions": [0.1, 0.5], "seeds": [0, 1], "search": {"seeds": "all"}}


def made():
    return plan(MANY, **SECTIONS)


def scrub_fails(job):
    broken = job.kind == "trial" and name_of(job.spec.method) == "scrub"
    return fails(job, error="RuntimeError: shapes differ (scrub.py:40)") if broken else record_of(job)


def by_method(known):
    return Counter(record.spec["method"]["name"] for record in known.trials.values())


@pytest.mark.parametrize("workers", [1, 4])
def test_the_others_finish(workers):
    known, trace = run(made(), outcome=scrub_fails, workers=workers, seed=3)
    counts = by_method(known)
    assert 10 <= counts["scrub"] < 10 + workers  # those that were running when it was set aside come in
    assert counts["bad_teaching"] == 12 * 2 * 2
    assert counts["no_unlearning"] == 2
    assert trace.agenda.done
    assert trace.agenda.set_aside == {"scrub": "10 failures like: RuntimeError: shapes differ (scrub.py:40)"}


def test_it_stays_aside_until_failed_trials_are_to_be_retried():
    known, _ = run(made(), outcome=scrub_fails)
    again, trace = run(made(), known, outcome=scrub_fails)
    assert trace.started == []
    assert by_method(again)["scrub"] == 10
    mended, trace = run(made(), known, retry_failed=True)
    assert by_method(mended)["scrub"] == 30 * 2 * 2
    assert all(record.ok for record in mended.trials.values())
    assert trace.agenda.set_aside == {}


def test_originals_that_only_it_needs_are_not_trained():
    only = plan({"scrub": MANY["scrub"]}, deletion_fractions=[0.1], seeds=list(range(20)), search={"seeds": "each"})
    known, trace = run(only, outcome=scrub_fails)
    assert trace.agenda.done
    assert by_method(known)["scrub"] == 10


def test_originals_whose_evidence_is_wanted_are_made_all_the_same():
    sections = {"deletion_fractions": [0.1], "seeds": list(range(20)), "search": {"seeds": "each"}}
    known, _ = run(plan({"no_unlearning": {}}, **sections))
    agenda = agenda_of(plan({"scrub": MANY["scrub"]}, **sections), ReadOnlyJournal(known), lacking=list(known.originals))
    trace = play(agenda, outcome=scrub_fails)
    assert agenda.set_aside
    assert {job.key for job in trace.started if job.kind == "original"} == set(known.originals)


def test_failures_of_another_version_do_not_count(monkeypatch):
    known, _ = run(made(), outcome=scrub_fails)
    monkeypatch.setattr(Scrub, "version", 2)
    mended, trace = run(planned_anew(sweep_file(MANY, **SECTIONS)), known)
    assert trace.agenda.set_aside == {}
    assert sum(record.spec["method"]["version"] == 2 for record in mended.trials.values()) == 30 * 2 * 2


def test_successes_count_also_when_failed_trials_are_retried():
    def every_fourth_fails(job):
        return scrub_fails(job) if int(job.key[:8], 16) % 4 == 0 else record_of(job)

    known, _ = run(made(), outcome=every_fourth_fails)
    failed = sum(not record.ok for record in known.trials.values())
    assert failed > 10
    _, trace = run(made(), known, outcome=every_fourth_fails, retry_failed=True)
    assert trace.agenda.set_aside == {}
    assert len(trace.trials) == failed


def of(status, error=None, method="scrub", **facts):
    return Record("trial", "key", {"method": {"name": method}}, status, error, facts=facts)


def test_failures_of_different_kinds_are_counted_apart():
    breaker = Breaker(3)
    errors = ["ValueError: 1 (a.py:1)", "ValueError: 2 (a.py:2)", "KeyError: 1 (a.py:1)"] * 2
    assert not any(breaker.hear(of("failed", error)) for error in errors)
    assert breaker.hear(of("failed", "ValueError: something else (a.py:1)"))
    assert breaker.reasons == {"scrub": "3 failures like: ValueError: something else (a.py:1)"}
    assert not breaker.hear(of("failed", "ValueError: 4 (a.py:1)")), "it is set aside once"


def test_a_method_that_mostly_succeeds_is_kept():
    breaker = Breaker(3, [of("ok")] * 4)
    assert [breaker.hear(of("failed", "ValueError: 1")) for _ in range(5)] == [False, False, False, True, False]


def test_divergence_and_failed_originals_are_not_its_fault():
    breaker = Breaker(2)
    of_original = of("failed", "it has none", **{ORIGINAL_FAILED: True})
    of_old = of("failed", "its original model diverged: the loss was nan")  # of a ledger from before there was this fact
    for record in [of("diverged", "the loss was nan"), of_original, of_old] * 5:
        assert not breaker.hear(record)
    assert breaker.reasons == {}


def test_the_kind_of_an_error_is_its_type_and_place():
    assert kind_of("ValueError: 3 (x) is (no) use (ssd.py:12)") == "ValueError (ssd.py:12)"
    assert kind_of("its worker died 4 times (out of memory, or a crash in native code)").startswith("its worker died")
