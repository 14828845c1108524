"""What Tune tells the searcher: workers arrive, report records, leave or die; as many are asked for as there is room."""

from __future__ import annotations

import json
import platform
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cu_ray.errors import SearchFailed, TimeIsUp
from cu_ray.sweep import trainable
from cu_ray.sweep.dispatch import Dispatch
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.searcher import Faults, NowAndThen, WhenOver, WorkerSearcher
from cu_ray.sweep.shortages import SHORT_FOR
from cu_ray.sweep.starts import MOST_FAILED_STARTS, START_AGAIN_AFTER
from cu_ray.sweep.trainable import StageTrainable, pack, unpack
from cu_ray.sweep.watchdog import at_most
from tests.sweep.simulator import SCRUB, agenda_of, plan, record_of, run

METHODS = {"no_unlearning": {}, "scrub": {**SCRUB, "trials": 3}}
ARRIVED = {"record": None, "node": "n"}


class Tune:
    """Tune, as far as the searcher sees it."""

    def __init__(self, room: int) -> None:
        self.jobs = {}
        self.room = room
        self.agenda = agenda_of(plan(METHODS), ReadOnlyJournal(Known()))
        self.dispatch = Dispatch(self.agenda, self.jobs.__setitem__, lambda job, record: None)
        self.faults = Faults()
        self.searcher = WorkerSearcher(self.dispatch, lambda: self.room, self.faults)
        self.over = WhenOver(self.dispatch)
        self.callback = NowAndThen(self.dispatch, self.faults)

    def die(self, name: str, error_file: Path | None = None) -> None:
        self.searcher.on_trial_complete(name, None, error=True)
        self.callback.on_trial_error(0, [], SimpleNamespace(trial_id=name, error_file=error_file))

    def report(self, name: str) -> None:
        record = record_of(self.jobs.pop(name))
        self.searcher.on_trial_result(name, {"record": json.dumps(record.to_json())})


def test_as_many_workers_are_asked_for_as_there_is_room_also_later():
    tune = Tune(room=2)
    assert [tune.searcher.suggest(name) for name in "abc"] == [{}, {}, None]
    tune.room = 3  # a node joined
    assert tune.searcher.suggest("c") == {}
    tune.die("a")
    assert tune.searcher.suggest("d") == {}
    assert tune.searcher.suggest("e") is None


def test_where_one_after_another_dies_while_it_starts_they_are_asked_for_one_at_a_time_and_ever_more_rarely(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    tune = Tune(room=20)
    tune.searcher.suggest("a")
    tune.searcher.on_trial_result("a", ARRIVED)
    for number in range(MOST_FAILED_STARTS):
        assert tune.searcher.suggest(f"b{number}") == {}
        tune.die(f"b{number}")
    for pause in (START_AGAIN_AFTER, 2 * START_AGAIN_AFTER, 4 * START_AGAIN_AFTER):
        assert tune.searcher.suggest("c") is None
        clock[0] += pause - 1
        assert tune.searcher.suggest("c") is None
        clock[0] += 2
        assert [tune.searcher.suggest(name) for name in "cde"] == [{}, None, None]
        tune.die("c")
    assert not tune.over.stop_all()


def test_workers_report_until_all_is_done_and_the_run_ends_when_they_have_left():
    tune = Tune(room=1)
    tune.searcher.suggest("a")
    tune.searcher.on_trial_result("a", ARRIVED)
    while not tune.agenda.done:
        assert not tune.over.stop_all()
        tune.report("a")
    assert tune.jobs == {"a": None}
    tune.searcher.on_trial_complete("a", {"record": None, "done": True})
    assert tune.over.stop_all()
    assert tune.searcher.suggest("b") == "FINISHED"
    assert len(tune.agenda._journal.known.trials) == 4


def test_a_worker_that_dies_before_it_arrived_leaves_room_for_another():
    tune = Tune(room=1)
    tune.searcher.suggest("a")
    tune.die("a")
    assert tune.searcher.suggest("b") == {}


# what Ray 2.60 says, shortened
MEMORY_RAN_LOW = """Failure # 1 (occurred at 2026-11-27_05-24-13)
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 5c35329a) was 1.55GB
OOM kill reason: Memory usage 1668472832B exceeded threshold of 1642972544B (6.5% of 25276502016B limit)
Refer to the documentation on how to address the out of memory issue.
"""
NODE_DIED = """Failure # 1 (occurred at 2026-11-27_05-24-13)
The actor died unexpectedly before finishing this task.
\tclass_name: StageTrainable
The actor died because its node has died. Node Id: 5c35329a3fa6de8c91ab1de2c446a04d926fdfdc8a67b6c8dc5f758c
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
"""
CRASHED = """Failure # 1 (occurred at 2026-11-27_05-24-13)
The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""


@pytest.mark.parametrize(
    ("text", "of_memory", "with_node", "says"),
    [
        (MEMORY_RAN_LOW, True, False, "running low on memory"),
        (NODE_DIED, False, True, "health check failed"),
        ("The actor 5c35 is unavailable: connection reset. The task may or may not have been executed.", False, False, "reset"),
        (CRASHED, False, False, "worker process has died"),
        ("", False, False, None),
    ],
    ids=["memory", "node", "unavailable", "crash", "nothing"],
)
def test_how_a_worker_died_is_read_from_what_ray_says(text, of_memory, with_node, says, tmp_path):
    (tmp_path / "error.txt").write_text(text)
    tune = Tune(room=1)
    tune.searcher.suggest("a")
    tune.searcher.on_trial_result("a", ARRIVED)
    heard = []
    tune.dispatch.left = lambda name, death: heard.append((name, death))
    tune.die("a", tmp_path / "error.txt")
    ((name, death),) = heard
    assert (name, death.of_memory, death.with_node) == ("a", of_memory, with_node)
    assert death.why is None if says is None else says in death.why
    assert death.node == ("5c35329a" if of_memory else None)
    assert "ID: " not in (death.why or "")


def test_no_more_workers_are_asked_for_than_memory_allows_and_one_more_after_a_while(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cu_ray.sweep.dispatch.time.monotonic", lambda: clock[0])
    (tmp_path / "error.txt").write_text(MEMORY_RAN_LOW)
    tune = Tune(room=3)
    for name in "abc":
        tune.searcher.suggest(name)
        tune.searcher.on_trial_result(name, ARRIVED)
    tune.die("b", tmp_path / "error.txt")
    assert tune.searcher.suggest("d") is None
    tune.die("c")  # a crash: its place is free
    assert [tune.searcher.suggest(name) for name in "de"] == [{}, None]
    clock[0] += SHORT_FOR + 1
    assert [tune.searcher.suggest(name) for name in "ef"] == [{}, None]


# ------------------------------------------------------------------------------------------------------ in the worker


def a_job():
    return next(job for job in run(plan(METHODS))[1].started if job.kind == "trial")


def test_a_job_that_a_worker_cannot_build_is_a_failure_that_says_why():
    """A plug-in that is not on its machine, or another version of it."""
    job = pack(a_job())
    worker = StageTrainable.__new__(StageTrainable)
    record = worker._record(job | {"spec": job["spec"].replace('"scrub"', '"scrubbed"').replace('"no_unlearning"', '"no_more"')})
    assert (record.key, record.status) == (job["key"], "failed")
    assert "cannot build this job: UserError: " in record.error
    assert "Did you mean" in record.error


def test_a_worker_whose_plugins_are_others_by_now_says_so_and_gets_no_job(tmp_path, monkeypatch):
    (tmp_path / "mine_of_old.py").write_text("class Mine:\n    steps = 3\n")
    (tmp_path / "broken_by_now.py").write_text("class Mine:\n    steps =\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trainable.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a node"))
    (tmp_path / "mine_as_sent.py").write_text("class Mine:\n    steps = 3\n")
    names = ("mine_of_old", "broken_by_now", "nowhere_to_be_found")
    code = {f"{name}:Mine": (str(tmp_path / f"{name}.py"), "0123") for name in names}
    code["mine_as_sent:Mine"] = "/elsewhere/mine_as_sent.py", "0123"
    worker = StageTrainable.__new__(StageTrainable)
    setting = {"desk": None, "storage": str(tmp_path), "device": "cpu", "trial_seconds": 1.0, "keeps_evidence": False}
    worker.setup({}, import_path=[str(tmp_path)], own_code=code, **setting)
    result = worker.step()
    assert (result["record"], result["changed"]) == (None, ["mine_of_old:Mine"])
    tune = Tune(room=2)
    assert [tune.searcher.suggest(name) for name in "ab"] == [{}, {}]
    tune.searcher.on_trial_result("a", ARRIVED)
    tune.searcher.on_trial_result("b", result)
    assert set(tune.jobs) == {"a"}
    tune.report("a")
    assert tune.jobs == {"a": None, "b": None}  # dismissed
    assert tune.dispatch.over
    assert tune.dispatch.hopeless == "mine_of_old:Mine changed while the sweep ran"
    assert platform.node() in tune.dispatch.reason


def test_a_worker_keeps_the_data_sets_warm_that_it_used_last_and_no_more(monkeypatch):
    shared = {name: name for name in "abc"}
    monkeypatch.setattr(trainable.ray, "get", lambda reference: shared if reference is shared else f"images of {reference}")
    monkeypatch.setattr(trainable, "Workbench", Bench)
    worker = StageTrainable.__new__(StageTrainable)
    worker._desk = SimpleNamespace(datasets=SimpleNamespace(remote=lambda: shared))
    worker._benches, worker._store, worker._device = {}, None, "cpu"
    made = [worker._bench(name) for name in "abacab"]
    assert [bench.dataset for bench in made] == [f"images of {name}" for name in "abacab"]
    assert made[2] is made[0] and made[4] is made[0]
    assert [bench.forgotten for bench in made] == [False, True, False, True, False, False]
    assert made[5] is not made[1]


class Bench:
    """A workbench that knows whether it was told to forget."""

    def __init__(self, dataset, store, device):
        self.dataset, self.forgotten = dataset, False

    def forget(self):
        """Told so."""
        self.forgotten = True


def test_a_record_survives_its_way_to_the_driver():
    record = record_of(a_job())
    assert unpack({"record": json.dumps(record.to_json())}) == record
    assert unpack(ARRIVED) is None


def test_what_takes_too_long_is_interrupted_with_the_reason():
    spec, began = a_job().spec, time.monotonic()
    with pytest.raises(TimeIsUp, match=r"took longer than runtime.trial_time_limit \(0.2 s\)"), at_most(0.2, spec):
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # a method that swallows everything
                continue
    assert time.monotonic() - began < 5


def test_what_ends_in_time_is_left_alone_and_so_is_what_follows():
    with at_most(0.2, a_job().spec):
        pass
    time.sleep(0.4)


def test_there_is_no_limit_outside_the_main_thread():
    caught = []

    def work():
        with at_most(0.05, a_job().spec):
            time.sleep(0.2)
        caught.append("ended")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught == ["ended"]


@pytest.mark.parametrize("told", ["result", "left", "died"])
def test_what_our_own_code_raises_is_remembered_as_tune_keeps_the_text_only(told, monkeypatch):
    tune = Tune(room=1)
    tune.searcher.suggest("a")
    tune.searcher.on_trial_result("a", ARRIVED)
    ours = SearchFailed("no next point")

    def fail(*args, **how):
        raise ours

    monkeypatch.setattr(tune.dispatch, "ended" if told == "result" else "left", fail)
    acts = {
        "result": lambda: tune.report("a"),
        "left": lambda: tune.searcher.on_trial_complete("a", {}),
        "died": lambda: tune.die("a"),
    }
    with pytest.raises(SearchFailed):
        acts[told]()
    assert tune.faults.first is ours
