"""Which worker does what: nobody idle while there is work, jobs of dead workers done by others, large ones kept for later."""

from __future__ import annotations

import copy
import math
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from threading import Timer

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cu_ray.plugins import name_of
from cu_ray.sweep.deaths import MAX_RETRIES, MOST_LOST, NODE_MISSED_WITHIN, NOTICED_WITHIN, Death
from cu_ray.sweep.dispatch import LEAVES_WITHIN, Dispatch
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.losses import MOST_LOSSES, Health
from cu_ray.sweep.plan import memo_group
from cu_ray.sweep.ready import OTHER, Job, Ready
from cu_ray.sweep.shares import trials_in
from cu_ray.sweep.shortages import AT_ONCE, SHORT_FOR
from cu_ray.sweep.starts import MOST_FAILED_STARTS, START_AGAIN_AFTER
from cu_ray.sweep.watchdog import GRACE
from cu_ray.types import Record
from tests.sweep.simulator import SCRUB, SSD_GRID, agenda_of, fails, plan, record_of, run

CF = "catastrophic_forgetting"
METHODS = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 5}, "ssd": SSD_GRID}


class Crew:
    """Workers by name, and the dispatch that hands them jobs."""

    def __init__(self, made, *names: str, journal=None, **how) -> None:
        self.agenda = agenda_of(made, journal or ReadOnlyJournal(Known()))
        self.jobs: dict[str, Job] = {}
        self.dismissed: list[str] = []
        self.started: list[tuple[str, Job]] = []
        self.heard: list[str] = []
        self.dispatch = Dispatch(self.agenda, self.hand, self.hear, **how)
        for name in names:
            self.dispatch.arrived(name)

    @property
    def known(self) -> Known:
        return self.agenda._journal.known

    def hand(self, name: str, job: Job | None) -> None:
        assert name not in self.jobs, "it has a job"
        if job is None:
            self.dismissed.append(name)
        else:
            self.jobs[name] = job
            self.started.append((name, job))

    def hear(self, job: Job, record: Record) -> None:
        self.heard.append(record.key)

    def end(self, name: str, outcome=record_of) -> None:
        self.dispatch.ended(name, outcome(self.jobs.pop(name)))

    def die(self, name: str, death: Death | None = None) -> None:
        self.jobs.pop(name, None)
        self.dispatch.left(name, death)

    def at_larger_share(self, *names: str, **how) -> Crew:
        """Those who go on with what is set aside."""
        share = self.dispatch.share_for_set_aside
        for job in self.dispatch.set_aside:
            self.agenda.give_back(job)
        larger = copy.copy(self)
        larger.jobs, larger.dismissed, larger.started = {}, [], []
        larger.dispatch = Dispatch(self.agenda, larger.hand, larger.hear, share=share, **how)
        for name in names:
            larger.dispatch.arrived(name)
        return larger

    def finish(self, outcome=record_of) -> None:
        while self.jobs:
            self.end(next(iter(self.jobs)), outcome)


def small():
    return plan(METHODS, deletion_fractions=[0.5, 1.0], seeds=[0])


def test_all_jobs_are_done_and_then_every_worker_is_dismissed_once():
    crew = Crew(small(), "a", "b")
    crew.finish()
    assert crew.agenda.done
    assert crew.dispatch.over
    assert sorted(crew.dismissed) == ["a", "b"]
    assert crew.known.trials.keys() == run(small())[0].trials.keys()


def test_trials_that_fail_with_their_original_are_heard_of_each():
    crew = Crew(small(), "a", "b")
    crew.finish(lambda job: fails(job, "diverged"))
    assert len(crew.known.trials) > 5
    assert sorted(crew.heard) == sorted([*crew.known.originals, *crew.known.trials])


def test_a_worker_that_comes_late_helps_and_one_that_comes_too_late_is_sent_home():
    crew = Crew(small(), "a")
    crew.end("a")
    crew.dispatch.arrived("b")
    assert set(crew.jobs) == {"a", "b"}
    crew.finish()
    crew.dispatch.arrived("c")
    assert crew.dismissed == ["a", "b", "c"]
    for name in crew.dismissed:
        crew.die(name)
    assert crew.dispatch.num_workers == 0
    assert not crew.dispatch.hopeless


def test_workers_wait_for_the_original_and_start_when_it_is_there():
    crew = Crew(small(), "a", "b", "c")
    assert list(crew.jobs) == ["a"]
    crew.end("a")
    assert set(crew.jobs) == {"a", "b", "c"}


def test_a_job_whose_worker_died_is_done_by_another_up_to_a_limit():
    crew = Crew(small(), *"abcdef")
    keys = []
    for name in "abcdef"[: MAX_RETRIES + 1]:
        keys.append(crew.jobs[name].key)
        crew.die(name)
    assert len(set(keys)) == 1
    assert crew.known.originals[keys[0]].error.startswith(f"its worker died {MAX_RETRIES + 1} times")


def test_when_workers_die_while_they_start_again_and_again_it_is_over():
    crew = Crew(small())
    for number in range(MOST_FAILED_STARTS):
        assert not crew.dispatch.over
        crew.die(f"never came {number}")
    assert crew.dispatch.hopeless == "no worker comes up, they die while they start"
    assert crew.dispatch.over


def test_one_worker_that_is_up_goes_on_though_no_other_comes_and_these_are_tried_again_after_a_while(monkeypatch):
    """A node may be broken, and all new workers land there."""
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a")
    for number in range(MOST_FAILED_STARTS):
        assert crew.dispatch.takes_workers
        crew.die(f"never came {number}")
    assert not crew.dispatch.takes_workers
    clock[0] = START_AGAIN_AFTER + 1
    assert crew.dispatch.takes_workers
    crew.die("nor this one")
    assert not crew.dispatch.takes_workers
    assert not crew.dispatch.hopeless
    while crew.jobs:
        crew.end("a")
    assert crew.dispatch.over
    assert crew.agenda.done


def test_where_others_are_starting_those_that_died_first_do_not_end_it_unless_nobody_comes_for_long(monkeypatch):
    """All workers are asked for at once; on a broken node they die while others still load their images."""
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    for comes in (True, False):
        crew, names = Crew(small()), [f"on the broken node {number}" for number in range(8)]
        for name in ["slow", *names]:
            crew.dispatch.asked_for(name)
        for name in names:
            crew.die(name)
        assert not crew.dispatch.hopeless
        assert not crew.dispatch.takes_workers
        if comes:
            crew.dispatch.arrived("slow")
            while crew.jobs:
                crew.end("slow")
            assert crew.agenda.done
        else:
            clock[0] += START_AGAIN_AFTER + 1
            assert crew.dispatch.hopeless


def lost_device(job):
    return replace(record_of(job), facts=record_of(job).facts | {"device_lost": True})


def test_a_worker_that_was_dismissed_is_no_hope_and_its_end_is_waited_for_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a")
    crew.end("a", lost_device)
    assert crew.dismissed == ["a"]
    for number in range(MOST_FAILED_STARTS):
        assert not crew.dispatch.hopeless
        crew.die(f"never came {number}")
    assert crew.dispatch.over
    assert crew.dispatch.num_awaited == 1
    clock[0] = LEAVES_WITHIN + 1
    assert crew.dispatch.num_awaited == 0
    crew.die("a")
    assert crew.dispatch.hopeless, "it says why at the end"


def test_when_the_last_worker_is_dismissed_others_are_tried_anew():
    crew = Crew(small(), "a")
    for number in range(MOST_FAILED_STARTS):
        crew.die(f"never came {number}")
    crew.end("a", lost_device)
    assert not crew.dispatch.hopeless
    assert crew.dispatch.takes_workers


def test_when_the_last_worker_dies_others_are_tried_anew_before_it_is_over():
    crew = Crew(small(), "a")
    for number in range(MOST_FAILED_STARTS):
        crew.die(f"never came {number}")
    crew.die("a")
    for number in range(MOST_FAILED_STARTS):
        assert crew.dispatch.takes_workers
        assert not crew.dispatch.hopeless
        crew.die(f"nor these {number}")
    assert crew.dispatch.hopeless


def test_a_worker_that_dies_long_after_the_time_limit_of_its_trial_did_not_crash(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(plan({"no_unlearning": {}}), "a", "b", trial_seconds=60.0)
    crew.end("a")
    (name, job), *_ = crew.jobs.items()
    clock[0] = 71.0
    crew.die(name)
    record = crew.known.trials[job.key]
    assert record.status == "failed"
    assert record.error == ("no_unlearning took longer than runtime.trial_time_limit (60 s), and its worker had to be ended")


def test_the_record_of_another_job_is_a_failure_that_says_why():
    crew = Crew(small(), "a")
    crew.end("a")
    asked = crew.jobs["a"].key
    crew.end("a", lambda job: replace(record_of(job), key="0" * 64, facts=record_of(job).facts | {"host": "node7"}))
    assert "0" * 64 not in crew.known.trials
    assert "runs another version of cu-ray or of a plug-in (node7)" in crew.known.trials[asked].error


def test_after_the_deadline_nothing_is_handed_out_but_what_runs_is_taken_in(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a", "b", deadline=10.0)
    clock[0] = 11.0
    assert not crew.dispatch.over
    crew.end("a")
    assert len(crew.known.originals) == 1
    assert crew.dispatch.over
    assert sorted(crew.dismissed) == ["a", "b"]
    assert not crew.agenda.done


def test_idle_workers_are_dismissed_when_the_deadline_comes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a", "b", deadline=10.0)
    crew.die("a")
    crew.die("b")
    crew.dispatch.arrived("c")
    clock[0] = 11.0
    crew.die("c")
    crew.dispatch.go_on()
    assert crew.dispatch.over


def test_workers_that_are_more_than_there_are_jobs_are_let_go_after_a_while_and_the_sweep_goes_on(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    one_at_a_time = plan({"no_unlearning": {}}, seeds=[0])
    for seconds, let_go in ((math.inf, []), (60.0, ["b"])):
        clock[0] = 0.0
        crew = Crew(one_at_a_time, "a", "b", "c", spare_seconds=seconds)
        assert (list(crew.jobs), crew.dispatch.num_wanted) == (["a"], 2)
        clock[0] = 59.0
        crew.dispatch.go_on()
        assert crew.dismissed == []
        clock[0] = 61.0
        crew.dispatch.go_on()
        crew.dispatch.go_on()
        assert crew.dismissed == let_go
        crew.finish()
        assert crew.agenda.done
        assert sorted(crew.dismissed) == ["a", "b", "c"]


# ---------------------------------------------------------------------------------------------------- a ledger at a URI


class SlowJournal(ReadOnlyJournal):
    """A ledger at a URI: what is to be written is there when the test says so."""

    def __init__(self) -> None:
        super().__init__(Known())
        self.under_way: list[Future[None]] = []

    def write(self, record, file=None):
        self.under_way.append(Future())
        return self.under_way[-1]


def test_a_record_is_heard_of_when_the_ledger_has_it_and_not_before():
    journal = SlowJournal()
    crew = Crew(small(), "a", "b", journal=journal)
    original = crew.jobs["a"].key
    crew.end("a")
    crew.dispatch.go_on()
    assert (crew.heard, crew.known.originals, crew.jobs) == ([], {}, {})
    journal.under_way[0].set_result(None)
    crew.dispatch.go_on()
    assert crew.heard == [original] == list(crew.known.originals)
    assert set(crew.jobs) == {"a", "b"}


def test_a_worker_goes_on_while_its_record_is_written_and_it_is_over_when_all_are():
    journal = SlowJournal()
    crew = Crew(small(), "a", journal=journal)
    crew.end("a")
    journal.under_way[0].set_result(None)
    crew.dispatch.go_on()
    crew.end("a")
    assert "a" in crew.jobs, "it waits for the ledger though there is work"
    while not crew.agenda.done:
        if crew.jobs:
            crew.end("a")
        assert not crew.dispatch.over
        assert crew.dismissed == []
        for future in journal.under_way:
            if not future.done():
                future.set_result(None)
        crew.dispatch.go_on()
    assert crew.dispatch.over
    assert crew.dismissed == ["a"]
    assert crew.known.trials.keys() == run(small())[0].trials.keys()


def test_after_the_deadline_it_is_over_when_the_ledger_has_what_ran(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a", journal=SlowJournal(), deadline=10.0)
    clock[0] = 11.0
    crew.end("a")
    assert not crew.dispatch.over
    crew.agenda._journal.under_way[0].set_result(None)
    crew.dispatch.go_on()
    assert crew.dispatch.over
    assert len(crew.known.originals) == 1


def test_what_has_ended_is_taken_in_at_the_end_in_its_order():
    journal = SlowJournal()
    crew = Crew(small(), "a", "b", journal=journal)
    crew.end("a")
    journal.under_way[0].set_result(None)
    crew.dispatch.go_on()
    keys = [crew.jobs[name].key for name in "ba"]
    for name in "ba":
        crew.end(name)
    journal.under_way[2].set_result(None)
    crew.dispatch.go_on()
    assert len(crew.heard) == 1, "the later one is not heard of before the earlier one"
    Timer(0.2, journal.under_way[1].set_result, [None]).start()
    crew.dispatch.settle()
    assert crew.heard[1:] == keys == list(crew.known.trials)


def test_a_ledger_that_cannot_be_written_ends_the_sweep_and_nothing_is_heard():
    journal = SlowJournal()
    crew = Crew(small(), "a", journal=journal)
    crew.end("a")
    journal.under_way[0].set_exception(OSError("the network is down"))
    for act in (crew.dispatch.go_on, crew.dispatch.settle):
        with pytest.raises(OSError, match="down"):
            act()
    assert (crew.heard, crew.known.originals) == ([], {})


# ------------------------------------------------------------------------------------- memory runs low, and nodes that go

OF_MEMORY, WITH_NODE = Death("memory ran low", of_memory=True), Death("its node died", with_node=True)


def one_long():
    return plan({CF: {"steps": 6}}, seeds=[0])


def test_workers_that_ended_as_memory_ran_low_are_missing_and_what_they_did_is_done_by_those_that_are_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small(), "a", "b", "c", "d")
    crew.end("a")  # the original
    assert set(crew.jobs) == {*"abcd"}
    for name in "bc":
        crew.die(name, OF_MEMORY)
    assert crew.dispatch.num_missing == 2
    assert list(crew.dispatch.remarks) == [
        "Ray: memory ran low. What was lost is done again, by fewer workers for now."  # once: they ended together
    ]
    crew.finish()
    assert crew.agenda.done
    assert all(record.ok for record in crew.known.trials.values())
    missing = []
    for clock[0] in (SHORT_FOR - 1, SHORT_FOR + 1, 2 * SHORT_FOR + 1, 9 * SHORT_FOR):
        missing.append(crew.dispatch.num_missing)
    assert missing == [2, 1, 0, 0]


def test_workers_are_missing_the_longer_the_more_often_memory_ran_low_and_not_where_the_node_has_gone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    health = Health()
    crew = Crew(small(), health=health)
    crew.dispatch.arrived("witness", "node")
    for number in range(2):
        crew.dispatch.arrived(f"worker {number}", "node")
        crew.die(f"worker {number}", OF_MEMORY)
        clock[0] += AT_ONCE + 1
    assert crew.dispatch.num_missing == 2
    clock[0] += SHORT_FOR
    assert crew.dispatch.num_missing == 2, "the second time it lasts twice as long"
    clock[0] += SHORT_FOR
    assert crew.dispatch.num_missing == 1
    crew.dispatch.node_gone("node")
    assert crew.dispatch.num_missing == 0


def test_a_worker_that_was_dismissed_and_then_ended_for_memory_is_not_missing():
    crew = Crew(one_long(), "a")
    crew.finish()
    assert crew.dismissed == ["a"]
    crew.die("a", OF_MEMORY)
    assert crew.dispatch.num_missing == 0
    assert not crew.dispatch.remarks


@pytest.mark.parametrize(("others", "runs"), [(0, MAX_RETRIES + 1), (1, 2 * MAX_RETRIES + 1)], ids=["alone", "beside others"])
def test_a_job_for_which_memory_never_suffices_fails_in_the_end_with_the_reason(others, runs, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(one_long())
    crew.dispatch.arrived("first", "node")
    crew.end("first")
    for number in range(others):
        crew.dispatch.arrived(f"other {number}", "node")
    number = 0
    while crew.jobs:
        number += 1
        (name,) = crew.jobs
        crew.die(name, OF_MEMORY)
        clock[0] += AT_ONCE + 1
        crew.dispatch.arrived(f"further {number}", "node")
    (record,) = crew.known.trials.values()
    assert record.status == "failed"
    assert "memory ran low" in record.error
    assert number == runs


def test_a_job_is_not_to_blame_for_nodes_that_go_but_not_without_end():
    for number_of_nodes, ends_well in ((MOST_LOST, True), (MOST_LOST + 1, False)):
        crew = Crew(one_long(), "a")
        crew.end("a")
        for number in range(number_of_nodes):
            crew.die(*crew.jobs, WITH_NODE)
            crew.dispatch.arrived(f"further {number}")
        crew.finish()
        (record,) = crew.known.trials.values()
        assert record.ok == ends_well
        assert crew.dispatch.num_missing == 0


@pytest.mark.parametrize(("known_after", "excused"), [(NODE_MISSED_WITHIN - 1, True), (NODE_MISSED_WITHIN + 1, False)])
def test_that_a_node_had_gone_may_be_known_a_while_later(known_after, excused, monkeypatch):
    """A virtual machine that vanishes looks like a crash at first; a node may also go long after a crash on it."""
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(one_long(), "who trains the original")
    crew.end("who trains the original")
    crew.die("who trains the original", WITH_NODE)
    for number in range(MAX_RETRIES + 1):
        crew.dispatch.arrived(f"worker {number}", f"node {number}")
        clock[0] += 1000.0
        crew.die(f"worker {number}")
        clock[0] += known_after
        crew.dispatch.node_gone(f"node {number}")
    crew.dispatch.arrived("last", "last node")
    crew.finish()
    (record,) = crew.known.trials.values()
    assert record.ok == excused


def test_nodes_that_go_while_workers_start_there_do_not_end_a_sweep_unless_none_ever_comes_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(one_long())
    for number in range(MOST_LOST + MOST_FAILED_STARTS):
        assert not crew.dispatch.hopeless
        assert crew.dispatch.takes_workers
        for name in (f"never came {number}", f"nor this {number}"):  # both there
            crew.dispatch.asked_for(name)
        for name in (f"never came {number}", f"nor this {number}"):
            crew.die(name, WITH_NODE)
        clock[0] += AT_ONCE + 1
    assert crew.dispatch.hopeless
    assert crew.dispatch.reason == "its node died"


def test_a_large_node_that_goes_while_workers_start_there_is_one_loss():
    crew, names = Crew(one_long()), [f"never came {number}" for number in range(100)]
    for name in names:
        crew.dispatch.asked_for(name)
    for name in names:
        crew.die(name, WITH_NODE)
    assert crew.dispatch.takes_workers
    assert not crew.dispatch.hopeless


def test_a_worker_that_comes_to_a_node_whose_memory_is_short_gets_no_job_before_another_has_ended_its_own(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small())
    crew.dispatch.arrived("a", "node")
    crew.end("a")
    crew.dispatch.arrived("b", "node")
    crew.die("b", OF_MEMORY)
    crew.dispatch.arrived("c", "node")  # Tune had been asked for it before
    crew.dispatch.arrived("d", "other node")
    assert set(crew.jobs) == {"a", "d"}
    crew.end("a")
    assert len(crew.jobs) == 2 and "d" in crew.jobs
    clock[0] += SHORT_FOR + 1
    crew.dispatch.go_on()
    assert set(crew.jobs) == {"a", "c", "d"}
    crew.finish()
    assert crew.agenda.done
    assert {"a", "c", "d"} <= set(crew.dismissed)


def test_those_who_come_to_a_short_node_do_not_make_up_for_those_who_end_there(monkeypatch):
    """Tune had been asked for them before: they are there, have no job, and are counted among the missing."""
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small())
    for name in "abcd":
        crew.dispatch.arrived(name, "node")
    crew.end(*crew.jobs)
    at_work = []
    for name in "ef":
        crew.die(next(iter(crew.jobs)), OF_MEMORY)
        crew.dispatch.arrived(name, "node")
        clock[0] += AT_ONCE + 1
        crew.dispatch.go_on()
        at_work.append((len(crew.jobs), crew.dispatch.num_workers, crew.dispatch.num_missing))
    assert at_work == [(3, 4, 0), (2, 4, 0)]


def test_where_nobody_else_was_on_a_node_fewer_workers_would_be_of_no_help(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(small())
    for name in "abc":
        crew.dispatch.arrived(name, f"node of {name}")
    crew.die(next(iter(crew.jobs)), OF_MEMORY)
    assert crew.dispatch.num_missing == 0
    assert crew.dispatch.remarks.pop() == "Ray: memory ran low. What was lost is done again."


def test_where_memory_does_not_suffice_for_one_worker_to_start_it_ends_with_the_reason(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(one_long())
    for number in range(MOST_FAILED_STARTS):
        assert not crew.dispatch.hopeless
        crew.dispatch.asked_for(f"never came {number}")
        clock[0] += 3.0
        crew.die(f"never came {number}", OF_MEMORY)
        clock[0] += 0.1
    assert crew.dispatch.hopeless
    assert crew.dispatch.reason == "memory ran low"


def test_workers_that_memory_does_not_suffice_for_while_they_start_beside_each_other_may_come_one_by_one(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew, names = Crew(one_long()), [f"never came {number}" for number in range(MOST_LOST)]
    for name in names:
        crew.dispatch.asked_for(name)
    clock[0] += 3.0
    for name in names:
        crew.die(name, OF_MEMORY)
    assert not crew.dispatch.hopeless
    assert crew.dispatch.takes_workers
    assert crew.dispatch.num_missing == len(names) - 1


def test_a_worker_that_comes_again_under_its_name_had_died():
    """Tune would start one of a node that was taken away anew, and say nothing."""
    crew = Crew(one_long(), "a")
    crew.end("a")
    (lost,) = crew.jobs.values()
    crew.jobs.clear()
    crew.dispatch.arrived("a")
    assert list(crew.jobs.values()) == [lost]
    crew.finish()
    assert crew.agenda.done


@pytest.mark.parametrize(
    ("seconds", "death", "too_long"),
    [
        (99, None, False),
        (101, None, True),
        (101, WITH_NODE, False),
        (101, OF_MEMORY, True),  # nobody beside it
        (100 + GRACE + NOTICED_WITHIN + 1, None, False),
    ],
)
def test_only_a_worker_that_died_when_its_time_limit_ends_processes_took_too_long(seconds, death, too_long, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    crew = Crew(one_long(), "a", trial_seconds=100)
    crew.end("a")
    clock[0] = seconds
    crew.die("a", death)
    assert bool(crew.known.trials) == too_long
    assert all("took longer" in record.error for record in crew.known.trials.values())


# ------------------------------------------------------------------------------------------------------- what is warm


def test_a_worker_goes_on_with_the_memo_that_it_holds():
    """Each of two workers computed the importances of one deletion set, and does all points on that set."""
    crew = Crew(plan({"ssd": SSD_GRID}, deletion_fractions=[0.5, 1.0]), "a", "b")
    crew.end("a")
    while crew.jobs:
        for name in sorted(crew.jobs):  # one after another, in step
            crew.end(name)
    sets = {name: {memo_group(job.spec) for owner, job in crew.started[1:] if owner == name} for name in "ab"}
    assert all(len(each) == 1 for each in sets.values()), "it changed the deletion set"
    assert sets["a"] != sets["b"]


def test_a_held_memo_comes_before_longer_trials_and_what_others_wait_for_before_both():
    crew = Crew(plan({CF: {"steps": [300, 200, 100], "sampler": "grid"}, "ssd": SSD_GRID}), "a")
    order = []
    while crew.jobs:
        order.append(name_of(crew.jobs["a"].spec.method) if crew.jobs["a"].kind == "trial" else "original")
        crew.end("a")
    assert order == ["original", "ssd", "ssd", "ssd", "ssd", CF, CF, CF]


def trials_of(made) -> list[Job]:
    return [job for job in run(made)[1].started if job.kind == "trial"]


@pytest.mark.parametrize(("length", "held_goes_first"), [(1000, True), (500, True), (499, False)])
def test_of_trials_half_as_long_or_more_one_on_a_held_original_goes_first(length, held_goes_first):
    longest, other = trials_of(plan({CF: {"steps": 6}}, seeds=[0, 1]))
    ready = Ready(lambda job: True)
    for job in (replace(longest, length=1000), replace(other, length=length)):
        ready.push(job, OTHER)
    assert ready.choose().spec == longest.spec
    assert ready.choose([other.spec.original.key]).spec == (other if held_goes_first else longest).spec


def test_who_holds_the_original_of_the_longest_trial_takes_that_one_whatever_else_it_holds():
    longest, other = trials_of(plan({CF: {"steps": 6}}, seeds=[0, 1]))
    ready = Ready(lambda job: True)
    for job in (replace(longest, length=1000), replace(other, length=999)):
        ready.push(job, OTHER)
    assert ready.choose([other.spec.original.key, longest.spec.original.key]).spec == longest.spec


def test_of_what_it_holds_a_worker_takes_the_longest():
    jobs = trials_of(plan({CF: {"steps": 6}}, seeds=[0, 1, 2]))
    ready, lengths = Ready(lambda job: True), (1000, 700, 800)
    for job, length in zip(jobs, lengths, strict=True):
        ready.push(replace(job, length=length), OTHER)
    assert ready.choose([job.spec.original.key for job in jobs[1:]]).length == 800


def test_a_memo_that_is_held_comes_first_only_where_nothing_is_to_be_learned_after_it():
    given = {"steps": 6, "lr": 0.01, "share": [0.2, 0.4], "sampler": "grid"}
    for method, after in (("ssd", "ssd"), ("salun", CF)):
        made = plan({CF: {"steps": 300}, method: SSD_GRID if method == "ssd" else given})
        jobs = trials_of(made)
        ready = Ready(lambda job: True)
        for job in [job for job in jobs if name_of(job.spec.method) == CF] + jobs[-1:]:
            ready.push(job, OTHER)
        memo, original = jobs[-1].uses()
        assert (name_of(jobs[-1].spec.method), memo is not None) == (method, True)
        assert name_of(ready.choose([memo, original]).spec.method) == after


def test_of_equally_long_trials_one_on_a_held_original_is_chosen_but_a_longer_one_before_it():
    made = plan({CF: {"steps": [9, 20], "sampler": "grid"}}, seeds=[0, 1], search={"seeds": "all"})
    ready = Ready(lambda job: True)
    for job in trials_of(made):
        ready.push(job, OTHER)
    for held in {job.spec.original.key for job in trials_of(made)}:
        chosen = ready.choose([held])
        assert chosen.spec.original.key == held
        assert chosen.spec.method.steps == 20
    first = ready.choose()
    short = [job for job in trials_of(made) if job.spec.method.steps == 9 and job.spec.original.key != first.spec.original.key]
    only_long_on_one = Ready(lambda job: True)
    for job in [first, *short]:
        only_long_on_one.push(job, OTHER)
    assert only_long_on_one.choose([short[0].spec.original.key]) == first


def test_equally_long_trials_of_two_studies_take_turns():
    points = [{"steps": 6, "lr": number / 100} for number in range(1, 5)]
    made = plan({CF: {"points": points}}, deletion_fractions=[0.5, 0.6])
    by_length = {job.length for job in trials_of(made)}
    assert len(by_length) == 1
    assert [job.turn for job in trials_of(made)] == [0, 0, 1, 1, 2, 2, 3, 3]


# --------------------------------------------------------------------------------------------------- too large for a share


def out_of_memory(*methods: str):
    """Trials of these methods do not fit."""

    def outcome(job):
        if job.kind == "trial" and name_of(job.spec.method) in methods:
            record = fails(job, error="OutOfMemoryError: too much")
            return replace(record, facts=record.facts | {"out_of_memory": True})
        return record_of(job)

    return outcome


def test_what_runs_out_of_memory_is_kept_for_a_larger_share_and_so_is_all_of_its_kind():
    ran_out = Counter()
    crew = Crew(small(), "a", share=0.25, ran_out=ran_out)
    crew.finish(out_of_memory("ssd"))
    assert crew.dispatch.over
    assert not crew.agenda.done
    assert {name_of(job.spec.method) for job in crew.dispatch.set_aside} == {"ssd"}
    assert sum(ran_out.values()) == 1, "one was tried, the others of its kind were not"
    assert {record.spec["method"]["name"] for record in crew.known.trials.values()} == {"no_unlearning", "scrub"}
    crew.at_larger_share("b", ran_out=ran_out).finish()
    assert crew.agenda.done
    by_method = {name: [r for r in crew.known.trials.values() if r.spec["method"]["name"] == name] for name in METHODS}
    assert {record.facts["gpu_share"] for record in by_method["scrub"]} == {0.25}
    assert {record.facts["gpu_share"] for record in by_method["ssd"]} == {0.5}
    assert sum(record.facts["num_out_of_memory"] for record in by_method["ssd"]) == 1
    assert all(record.ok for record in crew.known.trials.values())


@pytest.mark.parametrize("share", [1.0, 2.0, None])
def test_what_does_not_fit_into_a_whole_gpu_has_failed(share):
    crew = Crew(small(), "a", share=share)
    crew.finish(out_of_memory("scrub"))
    assert crew.agenda.done
    scrub = [record for record in crew.known.trials.values() if record.spec["method"]["name"] == "scrub"]
    assert {record.status for record in scrub} == {"failed"}
    assert {record.facts["num_out_of_memory"] for record in scrub} == {1}


# ------------------------------------------------------------------------------------------------------------ a lost device


def without_store(job):
    """The disk with the originals was full."""
    record = fails(job, error="StoreFailed: runtime.storage: No space left on device")
    return replace(record, facts={"store_failed": True, "host": "host 7"})


def test_a_full_disk_is_no_result_and_ends_the_sweep_where_it_stays_full():
    crew = Crew(small(), "a", "b")
    job = crew.jobs["a"]
    crew.end("a", without_store)
    assert not crew.dispatch.hopeless
    assert crew.dismissed == ["a"], "another may have a disk that works"
    assert crew.jobs["b"].key == job.key
    crew.end("b", without_store)
    assert crew.dispatch.hopeless == "original models cannot be kept or read"
    crew.dispatch.last_death = "somebody else died"
    assert crew.dispatch.reason == "StoreFailed: runtime.storage: No space left on device, on host 7"
    assert crew.dispatch.over
    assert sorted(crew.dismissed) == ["a", "b"]
    assert not crew.known.originals and not crew.known.trials


def test_a_disk_that_was_full_for_a_moment_changes_nothing():
    crew = Crew(small(), "a")
    crew.end("a", without_store)
    crew.die("a")
    crew.dispatch.arrived("b")
    crew.finish()
    assert crew.agenda.done
    assert all(record.ok for record in {**crew.known.trials, **crew.known.originals}.values())


def test_where_it_gives_up_what_runs_is_taken_in_and_nothing_more_begins():
    crew = Crew(small(), "a", "b", "c")
    crew.end("a")
    running = dict(crew.jobs)
    crew.dispatch.give_up("the desk ended", "killed")
    assert not crew.dispatch.over
    crew.finish()
    assert crew.dispatch.over
    assert (crew.dispatch.hopeless, crew.dispatch.reason) == ("the desk ended", "killed")
    assert crew.known.trials.keys() == {job.key for job in running.values()}


def loses_its_device(job, *, ok=False):
    """After this job its process can use the GPU no more."""
    record = record_of(job) if ok else fails(job, error="RuntimeError: CUDA error: device-side assert triggered")
    return replace(record, facts=record.facts | {"device_lost": True})


def test_a_worker_that_lost_its_gpu_is_dismissed_and_another_does_the_job_once_more():
    crew = Crew(small(), "a", "b")
    job = crew.jobs["a"]
    crew.end("a", loses_its_device)
    assert crew.dismissed == ["a"]
    assert "a" not in crew.jobs, "it gets no other"
    assert job.key not in {**crew.known.trials, **crew.known.originals}
    crew.die("a")
    crew.dispatch.arrived("c")
    crew.finish()
    assert crew.agenda.done
    assert all(record.ok for record in crew.known.trials.values())


def test_a_job_that_loses_two_workers_their_gpu_has_failed_and_says_why():
    crew = Crew(small(), "w0")
    tries = Counter()
    for number in range(1, 100):
        if not crew.jobs:
            break
        (name, job) = next(iter(crew.jobs.items()))
        bad = job.kind == "trial" and name_of(job.spec.method) == "no_unlearning"
        tries[job.key] += bad
        crew.end(name, loses_its_device if bad else record_of)
        if bad:
            crew.die(name)
            crew.dispatch.arrived(f"w{number}")
    assert crew.agenda.done
    failed = {record.error for record in crew.known.trials.values() if not record.ok}
    assert failed == {"RuntimeError: CUDA error: device-side assert triggered"}
    assert set(tries.values()) == {0, 2}


def test_one_method_that_loses_every_gpu_does_not_stop_the_others_but_a_gpu_that_is_broken_does():
    made = small()
    crew = Crew(made, "w0")
    for number in range(1, 100):
        if not crew.jobs:
            break
        (name, job) = next(iter(crew.jobs.items()))
        bad = job.kind == "trial" and name_of(job.spec.method) == "ssd"
        crew.end(name, loses_its_device if bad else record_of)
        if bad:
            crew.die(name)
            crew.dispatch.arrived(f"w{number}")
    assert crew.agenda.done
    assert not crew.dispatch.hopeless
    broken = Crew(made, "w0")
    broken.end("w0")  # the original
    for number in range(1, 100):
        if not broken.jobs:
            break
        name = next(iter(broken.jobs))
        broken.end(name, loses_its_device)
        broken.die(name)
        broken.dispatch.arrived(f"w{number}")
    assert broken.dispatch.hopeless == "workers lose their GPU, whatever they do"
    assert "device-side assert" in broken.dispatch.last_death
    assert broken.dispatch.over


def through_all_shares(crew, health, falls, workers=99):
    """Play a sweep to its end, at most so many workers at once: `falls` says which of the jobs that run together lose the GPU.

    A worker that lost it is replaced. Returns the last crew, and how often each job was handed out at each share.
    """
    tries, number = {}, 0
    while True:
        while crew.jobs and not crew.dispatch.hopeless:
            down = {job.key for job in falls(list(crew.jobs.values()))}
            for name in [name for name, job in crew.jobs.items() if job.key in down] or [next(iter(crew.jobs))]:
                crew.end(name, loses_its_device if crew.jobs[name].key in down else record_of)
            for name in [name for name in crew.dismissed if name in crew.dispatch._workers and not crew.dispatch.over]:
                number += 1
                crew.die(name)
                crew.dispatch.arrived(f"new {number}")
            assert number < 1000
        share = crew.dispatch._share
        tries[share] = Counter(job.key for _, job in crew.started)
        if crew.dispatch.hopeless or not crew.dispatch.set_aside:
            return crew, tries
        count = min(workers, trials_in(crew.dispatch.share_for_set_aside))
        crew = crew.at_larger_share(*[f"{share} {place}" for place in range(count)], health=health)


def four_at_once(made, health):
    """Four workers that share a GPU, once the original is there."""
    crew = Crew(made, "w0", share=0.25, health=health)
    crew.end("w0")
    for number in range(1, 4):
        crew.dispatch.arrived(f"w{number}")
    return crew


def ssd_and_all_beside_it(jobs):
    return jobs if "ssd" in map(name_of_trial, jobs) else []


def ssd_alone(jobs):
    return [job for job in jobs if name_of_trial(job) == "ssd"]


@pytest.mark.parametrize("falls", [ssd_and_all_beside_it, ssd_alone])
def test_who_loses_its_gpu_beside_others_is_tried_again_and_has_failed_only_alone(falls):
    """Kernels that run at the same time share a fault (NVIDIA's MPS): it takes the GPU from all who are at it."""
    crew, _ = through_all_shares(four_at_once(small(), health := Health()), health, falls)
    assert crew.agenda.done
    by_method = {name: [r for r in crew.known.trials.values() if r.spec["method"]["name"] == name] for name in METHODS}
    assert {record.ok for record in by_method["ssd"]} == {False}
    assert {record.facts["gpu_share"] for record in by_method["ssd"]} == {1.0}
    assert {record.ok for name in ("scrub", "no_unlearning") for record in by_method[name]} == {True}
    assert crew.known.trials.keys() == run(small())[0].trials.keys()


def test_a_kind_that_keeps_losing_its_gpu_is_held_back_after_three_losses_and_then_has_a_gpu_alone():
    crew = Crew(small(), "w0", share=0.25, health=(health := Health()))
    crew, tries = through_all_shares(crew, health, ssd_alone, workers=1)
    ssd = {key for key, record in crew.known.trials.items() if not record.ok}
    assert len(ssd) >= 4
    assert {share: sum(handed[key] for key in ssd) for share, handed in tries.items()} == {0.25: MOST_LOSSES, 1.0: len(ssd)}


def test_what_lost_its_gpu_shares_the_next_phase_with_what_ran_out_of_memory():
    crew = Crew(small(), "w0", share=0.25, health=Health())
    for number in range(1, 50):
        if crew.dispatch.over:
            break
        name, job = next(iter(crew.jobs.items()))
        lost = name_of_trial(job) == "ssd"
        crew.end(name, loses_its_device if lost else out_of_memory("scrub"))
        if lost:
            crew.die(name)
            crew.dispatch.arrived(f"w{number}")
    assert {name_of_trial(job) for job in crew.dispatch.set_aside} == {"ssd", "scrub"}
    assert crew.dispatch.share_for_set_aside == 0.5


def test_jobs_that_go_down_together_are_one_loss_of_their_kind():
    points = [{"lr": number / 100, "steps": 20} for number in range(1, 9)]
    crew = four_at_once(plan({CF: {"points": points}}, seeds=[0]), health := Health())
    assert len(crew.jobs) == 4
    for name in list(crew.jobs):
        crew.end(name, loses_its_device)
        crew.die(name)
    assert list(health.losses.values()) == [1]
    assert not crew.dispatch.set_aside
    crew.dispatch.arrived("next")
    crew.end("next")
    assert not health.losses, "one ended well: it is not of their kind"


def test_an_idle_worker_goes_with_a_gpu_that_was_lost_beside_it_but_not_with_that_of_another():
    for share, gone in ((0.5, ["a", "b"]), (1.0, ["a"])):
        crew = Crew(small(), "a", "b", share=share)
        assert list(crew.jobs) == ["a"], "the other waits for the original"
        crew.end("a", loses_its_device)
        assert crew.dismissed == gone


def test_a_gpu_that_is_broken_ends_a_sweep_that_shares_it_too():
    made = plan({"exact_unlearning": {"steps": 20}, CF: {"steps": 20}, **METHODS}, seeds=[0])
    health = Health()
    crew = Crew(made, "w0", share=0.25, health=health)
    crew, _ = through_all_shares(crew, health, lambda jobs: jobs)
    assert crew.dispatch.hopeless is None, "it is the original's training that fails, as far as anybody knows"
    crew = four_at_once(made, health := Health())
    health.works = False
    crew, _ = through_all_shares(crew, health, lambda jobs: jobs)
    assert crew.dispatch.hopeless == "workers lose their GPU, whatever they do"
    assert len(crew.known.trials) < len(run(made)[0].trials), "not everything has failed before that"


def test_three_methods_whose_kernels_fail_do_not_end_a_sweep_on_a_gpu_that_works():
    methods = {"exact_unlearning": {"steps": 20}, CF: {"steps": 20}, **METHODS}
    bad = {"exact_unlearning", CF, "ssd"}
    crew = four_at_once(plan(methods, seeds=[0]), health := Health())
    crew, _ = through_all_shares(crew, health, lambda jobs: [job for job in jobs if name_of_trial(job) in bad])
    assert crew.agenda.done
    assert {record.spec["method"]["name"] for record in crew.known.trials.values() if not record.ok} == bad


def name_of_trial(job) -> str | None:
    """The method of a trial's job."""
    return name_of(job.spec.method) if job.kind == "trial" else None


def test_a_job_that_ended_well_before_its_worker_lost_the_gpu_counts():
    crew = Crew(small(), "a")
    job = crew.jobs["a"]
    crew.end("a", lambda job: loses_its_device(job, ok=True))
    assert crew.dismissed == ["a"]
    assert job.key in {**crew.known.trials, **crew.known.originals}


# -------------------------------------------------------------------------------------------------------- whatever happens


@settings(max_examples=90, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_whoever_comes_goes_or_dies_every_trial_gets_its_one_row(data):
    health = Health()
    crew = Crew(small(), "w0", share=data.draw(st.sampled_from([None, 1.0, 0.25])), health=health)
    for number in range(1, 400):
        if not crew.jobs and crew.agenda.done:
            break
        if crew.dispatch.hopeless:  # three methods lost their device
            return
        if crew.dispatch.over and crew.dispatch.set_aside:
            crew = crew.at_larger_share(f"w{number}", health=health)
            continue
        act = data.draw(st.sampled_from(["end", "end", "end", "arrive", "die", "lose"]))
        if act == "arrive" or not crew.jobs:
            crew.dispatch.arrived(f"w{number}")
        else:
            name = data.draw(st.sampled_from(sorted(crew.jobs)))
            if act != "die":
                crew.end(name, record_of if act == "end" else loses_its_device)
            if act != "end":
                crew.die(name)
        assert len({job.key for job in crew.jobs.values()}) == len(crew.jobs), "one job at two workers"
        idle = [each for each in crew.dispatch._workers.values() if each.job is None and not each.dismissed]
        assert not idle or crew.agenda.next() is None, "a worker idles while there is work"
    assert crew.agenda.done
    assert crew.known.originals.keys() == run(small())[0].originals.keys()
    lost = [record for record in crew.known.originals.values() if not record.ok]
    if not lost:
        assert crew.known.trials.keys() == run(small())[0].trials.keys()
