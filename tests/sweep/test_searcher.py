"""What Tune tells the searcher: records are taken in, jobs of dead workers given back, other trials' records not believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.searcher import MAX_RETRIES, AgendaSearcher
from cu_ray.sweep.trainable import StageTrainable, pack, unpack
from tests.sweep.simulator import SCRUB, agenda_of, plan, record_of

METHODS = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 3}}


@pytest.fixture
def searcher():
    return AgendaSearcher(agenda_of(plan(METHODS), ReadOnlyJournal(Known())), lambda job, record: None)


def ended(searcher, name, change=lambda record: record):
    """The next job ends with its record, changed."""
    searcher.suggest(name)
    record = change(record_of(searcher._jobs[name]))
    searcher.on_trial_complete(name, {"record": json.dumps(record.to_json())})


def finish(searcher):
    number = 0
    while not searcher._agenda.done:
        number += 1
        ended(searcher, f"further {number}")
    return searcher._agenda._journal.known


def test_all_jobs_are_handed_out_and_then_it_is_finished(searcher):
    known = finish(searcher)
    assert len(known.originals) == 1
    assert len(known.trials) == 4
    assert searcher.suggest("more") == "FINISHED"


def test_the_record_of_another_trial_is_a_failure_that_says_why(searcher):
    ended(searcher, "original")
    ended(searcher, "first", lambda record: replace(record, key="0" * 64, facts=record.facts | {"host": "node7"}))
    known = finish(searcher)
    assert "0" * 64 not in known.trials
    failed = [record for record in known.trials.values() if not record.ok]
    assert len(failed) == 1
    assert "runs another version of cu-ray or of a plug-in (node7)" in failed[0].error


def test_a_job_whose_worker_died_is_handed_out_again_up_to_a_limit(searcher):
    jobs = []
    for number in range(MAX_RETRIES + 1):
        searcher.suggest(str(number))
        jobs.append(searcher._jobs[str(number)].key)
        searcher.on_trial_complete(str(number), None, error=True)
    assert len(set(jobs)) == 1
    known = searcher._agenda._journal.known
    assert known.originals[jobs[0]].error.startswith(f"its worker died {MAX_RETRIES + 1} times")


def test_after_the_deadline_nothing_more_is_handed_out():
    late = AgendaSearcher(agenda_of(plan(METHODS), ReadOnlyJournal(Known())), lambda job, record: None, deadline=0.0)
    assert late.suggest("first") == "FINISHED"
    assert not late._agenda.done


def test_a_job_that_a_worker_cannot_build_is_a_failure_that_says_why(searcher):
    """A plug-in that is not on its machine, or another version of it."""
    ended(searcher, "original")
    searcher.suggest("first")
    job = pack(searcher._jobs["first"])
    worker = StageTrainable.__new__(StageTrainable)
    worker._config = job | {"spec": job["spec"].replace('"scrub"', '"scrubbed"').replace('"no_unlearning"', '"no_more"')}
    record = unpack(worker.step())
    assert (record.key, record.status) == (job["key"], "failed")
    assert "cannot build this job: UserError: " in record.error
    assert "Did you mean" in record.error
