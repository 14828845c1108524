"""How long a sweep takes, from what is done and from canaries: of jobs that take a known time it is known to the second."""

from __future__ import annotations

import datetime
import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from cu_ray import config
from cu_ray.plugins import name_of
from cu_ray.stages.canary import Measure
from cu_ray.sweep import preview as preview_module
from cu_ray.sweep import progress as progress_module
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.estimate import ReadOnlyJournal, estimate, pace_of_others
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.pace import Load, Pace, work_of
from cu_ray.sweep.plan import memo_cost, memo_group, trial_cost
from cu_ray.sweep.preview import Preview
from cu_ray.sweep.progress import Progress
from cu_ray.types import OriginalSpec
from tests import sweeps
from tests.sweep.simulator import NUM_TRAIN, SCRUB, SSD_GRID, agenda_of, fails, plan, play, record_of

GRID = {**SCRUB, "alpha": [0.1, 1, 10], "sampler": "grid"}
METHODS = {"scrub": GRID, "exact_unlearning": {"steps": 4}}
PER_PASS = {"original": 0.01, "scrub": 0.003, "exact_unlearning": 0.02, "ssd": 0.05, "no_unlearning": 0.0}  # seconds
BESIDES = {"original": 7.0, "scrub": 3.0, "exact_unlearning": 2.0, "ssd": 0.5, "no_unlearning": 1.0}
BEGAN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def counted(methods=METHODS, **sections):
    return plan(methods, **{"seeds": [0, 1], "deletion_fractions": [0.1, 0.5], "search": {"seeds": "all"}} | sections)


def name(spec):
    return "original" if isinstance(spec, OriginalSpec) else name_of(spec.method)


class World:
    """Jobs take what their method says: for each pass, and besides. Of trials that share a memo the first has the passes."""

    def __init__(self, share=None, slow=lambda spec: 1.0):
        self.share, self.slow, self.groups, self.seconds = share, slow, set(), {}

    def __call__(self, job):
        record, method = record_of(job), name(job.spec)
        facts, group = dict(record.facts), None if method == "original" else memo_group(job.spec)
        passes = 3 * job.spec.images if method == "original" else facts["images_forward"] + 2 * facts["images_backward"]
        if group in self.groups:
            spent = trial_cost(job.spec, NUM_TRAIN) - memo_cost(job.spec, NUM_TRAIN)
            passes, facts["images_forward_spent"], facts["images_backward_spent"] = spent.passes, spent.forward, spent.backward
        self.groups |= {group} - {None}
        learning = PER_PASS[method] * passes * self.slow(job.spec)
        self.seconds[job.key] = learning + BESIDES[method]
        ended = BEGAN + datetime.timedelta(seconds=self.seconds[job.key])
        facts |= {"started_at": BEGAN.isoformat(), "finished_at": ended.isoformat(), "gpu_share": self.share}
        facts |= {"train_seconds": learning} if method == "original" else {"unlearn_seconds_spent": learning}
        return replace(record, facts=facts)


def played(made, world, num_jobs):
    """The counts after so many jobs, and the seconds that the others take."""
    journal = ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    done = {job.key for job in play(agenda, kill_after=num_jobs, outcome=world).ended} if num_jobs else set()
    whole = World(world.share, world.slow)
    rest = play(agenda_of(made, ReadOnlyJournal(Known())), outcome=whole)
    left = sum(seconds for key, seconds in whole.seconds.items() if key not in done)
    assert len(rest.ended) > num_jobs
    return estimate(made, agenda, journal.known), left, [job for job in rest.ended if job.key not in done]


def test_nothing_is_known_where_nothing_is_done():
    counts, _, _ = played(counted(), World(), 0)
    assert (counts.seconds, counts.hours, counts.pace.wall_seconds(counts.work, 2)) == (None, None, None)


def test_what_is_left_takes_what_jobs_of_its_method_took_though_other_methods_took_another_time():
    made, tested = counted(seeds=[0, 1, 2, 3]), 0
    whole = play(agenda_of(made, ReadOnlyJournal(Known())), outcome=World()).ended
    for num_jobs in range(1, len(whole)):
        if {name(job.spec) for job in whole[:num_jobs]} == {"original", *METHODS}:
            counts, left, others = played(made, World(), num_jobs)
            assert counts.seconds == pytest.approx(left)
            assert counts.pace.longest(counts.work) == pytest.approx(max(map(seconds_alone, others)))
            tested += 1
    assert tested == 7


def seconds_alone(job):
    passes = 3 * job.spec.images if name(job.spec) == "original" else job.images
    return PER_PASS[name(job.spec)] * passes + BESIDES[name(job.spec)]


def test_of_trials_that_share_a_memo_one_takes_its_passes_and_all_what_comes_besides():
    made = counted({"ssd": SSD_GRID}, seeds=[0])
    counts, left, others = played(made, World(), 1 + 2)  # the original, and who computes the memos
    assert ({name(job.spec) for job in others}, len(others)) == ({"ssd"}, 6)
    assert counts.seconds == pytest.approx(left) == pytest.approx(6 * BESIDES["ssd"])


def test_hyperparameters_that_shape_the_computation_have_a_pace_of_their_own():
    """With two blocks retrained a step is quicker than with all."""

    def slow(spec):
        return 0.25 if name(spec) == "exact_unlearning" and spec.method.k == 2 else 1.0

    made = counted({"exact_unlearning": {"k": [None, 2], "steps": 4, "sampler": "grid"}}, seeds=[0, 1, 2])
    tested = 0
    for num_jobs in range(4, 15):
        journal = ReadOnlyJournal(Known())
        done = play(agenda_of(made, journal), kill_after=num_jobs, outcome=World()).ended
        if len({job.spec.method.k for job in done if name(job.spec) != "original"}) == 2:
            counts, left, _ = played(made, World(slow=slow), num_jobs)
            assert counts.seconds == pytest.approx(left)
            tested += 1
    assert tested


def test_a_method_of_which_nothing_is_done_goes_by_the_originals_of_its_model():
    made = counted({"exact_unlearning": {"steps": 4}})
    counts, _, others = played(made, World(), 1)
    assert [name(job.spec) for job in others] == ["original", *4 * ["exact_unlearning"]]
    passes = 3 * others[0].spec.images + sum(job.images for job in others[1:])
    assert counts.seconds == pytest.approx(PER_PASS["original"] * passes + 5 * BESIDES["original"])


@pytest.mark.parametrize("share", [None, 1.0, 0.25])
def test_hours_of_gpus_are_those_of_the_share_that_a_worker_has(share):
    counts, _, _ = played(counted(), World(share), 12)
    assert counts.hours == pytest.approx((share or 1) * counts.seconds / 3600)


def test_what_failed_says_nothing():
    made, pace = counted(), Pace()
    job = agenda_of(made, ReadOnlyJournal(Known())).next()
    pace.hear(job.spec, fails(job))
    assert pace.took({pace.likeness(job.spec): Load(1, 10)}) is None


# --------------------------------------------------------------------------------------------------------------- canaries


def measure(per_pass, evaluation, stopped=None):
    return Measure("a processor", 0, 0, 0, 0, 0, per_pass, evaluation, stopped)


def estimated(made, agenda, journal, told=()):
    """With what canaries told behind what is done."""
    behind = Pace()
    for spec, each in told:
        behind.measured(spec, each)
    return estimate(made, agenda, journal.known, behind)


def specs_of(made):
    return {name(job.spec): job.spec for job in play(agenda_of(made, ReadOnlyJournal(Known()))).ended}


def test_before_anything_is_done_canaries_tell_and_afterwards_what_is_done():
    made = counted({"no_unlearning": {}, "exact_unlearning": {"steps": 8}})
    specs, journal = specs_of(made), ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    told = [(specs["original"], measure(0.1, 5.0)), (specs["exact_unlearning"], measure(0.2, 4.0))]
    told += [(specs["no_unlearning"], measure(None, 3.0))]
    counts = estimated(made, agenda, journal, told)
    images, original = 4 * specs["exact_unlearning"].method.steps * 16, specs["original"].images
    assert counts.seconds == pytest.approx(0.1 * 3 * 2 * original + 2 * 5 + 0.2 * 3 * images + 4 * 4 + 2 * 3)
    assert counts.hours == pytest.approx(counts.seconds / 3600)
    play(agenda, kill_after=1, outcome=World())  # an original: canaries of all other kinds still tell
    counts = estimated(made, agenda, journal, told)
    assert counts.seconds == pytest.approx(0.01 * 3 * original + 7 + 0.2 * 3 * images + 4 * 4 + 2 * 3)


def test_a_canary_that_came_to_no_end_tells_nothing():
    made = counted({"no_unlearning": {}})
    spec, journal = specs_of(made)["no_unlearning"], ReadOnlyJournal(Known())
    for stopped in (measure(0.1, 5.0, "RuntimeError: no luck"), measure(0.1, None)):
        assert estimated(made, agenda_of(made, journal), journal, [(spec, stopped)]).seconds is None


def test_what_a_canary_took_alone_on_a_gpu_is_not_taken_for_what_it_takes_on_a_share():
    made = counted({"no_unlearning": {}, "exact_unlearning": {"steps": 8}})
    specs, journal = specs_of(made), ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    play(agenda, kill_after=2, outcome=World(share=0.25))  # both originals
    told = [(specs["exact_unlearning"], measure(0.2, 4.0)), (specs["no_unlearning"], measure(None, 3.0))]
    counts = estimated(made, agenda, journal, told)
    assert counts.seconds == pytest.approx(3600 * counts.hours)


def test_other_records_of_the_ledger_tell_until_those_of_the_plan_do():
    """Seed 0 is done; what does seed 1 take, before and while it runs on a machine twice as fast?"""
    journal = ReadOnlyJournal(Known())
    play(agenda_of(counted(seeds=[0]), journal), outcome=World())
    made, world = counted(seeds=[1]), World()
    agenda = agenda_of(made, journal)
    behind = pace_of_others(agenda, journal.known)
    play(agenda_of(made, ReadOnlyJournal(Known())), outcome=world)
    assert estimate(made, agenda, journal.known).seconds is None
    assert estimate(made, agenda, journal.known, behind).seconds == pytest.approx(sum(world.seconds.values()))
    for _ in range(2):  # the original, and a trial of SCRUB
        job = agenda.next()
        began = world(job)
        half = BEGAN + datetime.timedelta(seconds=world.seconds[job.key] / 2)
        told = "train_seconds" if name(job.spec) == "original" else "unlearn_seconds_spent"
        facts = began.facts | {"finished_at": half.isoformat(), told: began.facts[told] / 2}
        agenda.write(replace(began, facts=facts)).result()
        agenda.complete(replace(began, facts=facts))
    assert name(job.spec) == "scrub"
    left = [other for other in play(agenda_of(made, ReadOnlyJournal(Known()))).ended if agenda.wants(other.key)]
    halves = {"scrub": 0.5, "exact_unlearning": 1.0}
    expected = sum(halves[name(other.spec)] * seconds_alone(other) for other in left)
    assert estimate(made, agenda, journal.known, behind).seconds == pytest.approx(expected)


def test_what_is_set_aside_is_not_left():
    made, journal = counted(seeds=[0, 1, 2, 3]), ReadOnlyJournal(Known())
    first = Agenda(made, journal, original_cached=lambda key: True, max_failures=2)
    play(first, outcome=lambda job: fails(job) if name(job.spec) == "scrub" else World()(job), kill_after=4 + 6)
    agenda = Agenda(made, journal, original_cached=lambda key: True, max_failures=2)
    assert agenda.set_aside.keys() == {"scrub"}
    counts = estimate(made, agenda, journal.known)
    left = list(play(agenda, outcome=World()).ended)
    assert {name(job.spec) for job in left} == {"exact_unlearning"}
    assert counts.seconds == pytest.approx(sum(map(seconds_alone, left)))


# -------------------------------------------------------------------------------------------------------------- work left


@pytest.fixture
def clock(monkeypatch):
    """Of the display."""
    hands = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: hands.now)
    return hands


def test_the_display_says_what_is_left_by_the_pace_of_each_method(tmp_path, clock):
    """Two workers, jobs of known times: from the moment when each kind was seen, what it says is what is to come."""
    made, world, journal = counted(seeds=[0, 1, 2, 3]), World(), ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    shown = Progress(Console(file=io.StringIO()), estimate(made, agenda, journal.known), tmp_path / "frame.json")
    running, seen, said = [], set(), []
    shown.follow(lambda: [(job, clock.now - began) for _, began, job, _ in running])
    while not agenda.done:
        while len(running) < 2 and (job := agenda.next()) is not None:
            record = world(job)
            running.append((clock.now + world.seconds[job.key], clock.now, job, record))
        running.sort(key=lambda each: each[0])
        shown.take_in(estimate(made, agenda, journal.known))
        if seen == {"original", *METHODS} and len(running) == 2:
            said.append((clock.now, shown.seconds_left()))
        clock.now, _, job, record = running.pop(0)
        if said:
            assert shown.seconds_left() == pytest.approx(max(0, said[-1][1] - (clock.now - said[-1][0])))
        journal.write(record)
        agenda.complete(record)
        shown.heard(job, record)
        seen.add(name(job.spec))
    shown.take_in(estimate(made, agenda, journal.known))
    assert shown.seconds_left() == 0
    assert len(said) >= 6
    for now, left in said:  # at the end one of two workers has nothing to do
        assert left == pytest.approx(clock.now - now, abs=max(world.seconds.values()) + 1e-6)


def test_a_job_that_takes_very_long_stands_for_no_others_and_without_workers_nothing_is_said(tmp_path, clock):
    made, journal = counted(seeds=[0, 1, 2, 3]), ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    play(agenda, kill_after=31, outcome=World())
    counts, job = estimate(made, agenda, journal.known), agenda.next()
    shown = Progress(Console(file=io.StringIO()), counts, tmp_path / "frame.json")
    shown.take_in(counts)
    assert counts.seconds > 0
    assert shown.seconds_left() is None
    shown.follow(lambda: [(job, 10_000.0)])
    shown.take_in(counts)
    assert shown.seconds_left() == pytest.approx(counts.seconds - seconds_alone(job))


@pytest.mark.parametrize(
    ("originals", "trials", "lanes", "share", "expected"),
    [
        (4, 10, 2, None, (4 * 10 + 10 * 6) / 2),  # as many originals as workers, or more: nobody waits for them
        (1, 10, 2, None, 10 + 10 * 6 / 2),  # two workers wait for one original
        (0, 10, 4, None, 10 * 6 / 4),
        (1, 3, 64, None, 10 + 6),  # never less than an original and a trial
        (0, 1, 64, None, 6),
        (4, 10, 1, 0.25, (4 * 10 + 10 * 6) / 4),  # four workers on a GPU
        (2, 10, 1, 0.25, (2 * 10 + 10 * 6) / 4 + 10 / 2),  # half of it waits for two originals
        (0, 10, 0.25, 0.25, 10 * 6),  # one worker with a quarter of a GPU
        (2, 10, None, None, None),
    ],
)
def test_the_time_of_a_sweep_is_its_work_by_workers_and_what_they_wait_for_originals(originals, trials, lanes, share, expected):
    """An original takes ten seconds, a trial six."""
    made, pace, loads = counted({"exact_unlearning": {"steps": 4}}), Pace(), {}
    for job in play(agenda_of(made, ReadOnlyJournal(Known()))).ended:
        passes, seconds = (3 * job.spec.images, 10) if name(job.spec) == "original" else (job.images, 6)
        facts = record_of(job).facts | {"started_at": BEGAN.isoformat(), "gpu_share": share}
        facts |= {"finished_at": (BEGAN + datetime.timedelta(seconds=seconds)).isoformat()}
        facts |= {"train_seconds": 9.0} if name(job.spec) == "original" else {"unlearn_seconds_spent": 5.0}
        pace.hear(job.spec, replace(record_of(job), facts=facts))
        load = {"original": originals, "exact_unlearning": trials}[name(job.spec)]
        loads[name(job.spec)] = pace.likeness(job.spec), Load(load, load * passes)
    counts = SimpleNamespace(pace=pace, work=work_of(loads.values()), chain_seconds=0.0)
    found = Preview(counts, [], "cpu", [], None, lanes).wall_seconds
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("runtime", "visible", "expected"),
    [
        ({"device": "cpu", "workers": 3}, None, 3),
        ({"device": "cpu"}, None, 5),
        ({"device": "cuda"}, None, 4),
        ({"device": "cuda"}, "0,2", 2),
        ({"device": "cuda"}, "", 0),
        ({"device": "cuda", "workers": 2}, None, 2),
        ({"device": "cuda", "workers": 2, "gpus_per_trial": 0.25}, None, 0.5),
        ({"device": "cuda", "address": "1.2.3.4:6379"}, None, None),
    ],
)
def test_workers_are_on_the_cpus_and_gpus_of_this_machine_that_the_sweep_may_use(
    runtime, visible, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(preview_module, "_num_cpus", lambda: 5)
    monkeypatch.setattr(preview_module.glob, "glob", lambda pattern: ["0", "1", "2", "3"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(preview_module.cluster, "is_joined", lambda runtime: runtime.address is not None)
    sweep = config.load(sweeps.small(tmp_path))
    assert preview_module._lanes(replace(sweep, runtime=replace(sweep.runtime, **runtime))) == expected


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 1), ("", 64)])
def test_in_a_container_the_cpus_are_those_of_its_share(quota, expected, monkeypatch):
    monkeypatch.setattr(preview_module.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(preview_module, "Path", lambda name: SimpleNamespace(read_text=lambda: quota))
    assert preview_module._num_cpus() == expected


def test_a_search_takes_as_long_as_its_rounds_however_many_workers_there_are():
    """12 points, three at a time: four rounds, and two more on the fraction that begins from their best."""
    made = counted({"scrub": {**SCRUB, "trials": 12}}, seeds=[0], deletion_fractions=[0.5], search={"lag": 3})
    counts, left, others = played(made, World(), 1 + 3)
    one = max(map(seconds_alone, others))
    assert counts.chain_seconds == pytest.approx(3 * one)
    assert counts.pace.wall_seconds(counts.work, 64, counts.chain_seconds) == pytest.approx(3 * one)
    assert counts.pace.wall_seconds(counts.work, 1, counts.chain_seconds) == pytest.approx(left)
    chained = counted(
        {"scrub": {**SCRUB, "trials": 6}}, seeds=[0], deletion_fractions=[0.1, 0.5], search={"lag": 3, "warm_start": "neighbour"}
    )
    counts, _, others = played(chained, World(), 1 + 3)
    assert counts.chain_seconds == pytest.approx((1 + 2) * max(map(seconds_alone, others)), rel=0.2)  # of two deletion sets


def test_a_method_whose_cost_is_a_bound_counts_by_what_it_took_as_soon_as_some_is_done():
    """Potion ends its search when it has found something, here after a tenth of the tries that it may make."""
    made = counted({"potion": {"remaining": [0.1, 0.2, 0.3, 0.4], "sampler": "grid"}}, seeds=[0], deletion_fractions=[0.5])
    agenda, journal = agenda_of(made, ReadOnlyJournal(Known())), ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)

    def a_tenth(job):
        record = record_of(job)
        if name(job.spec) == "original":
            return record
        memo, bound = memo_cost(job.spec, NUM_TRAIN), trial_cost(job.spec, NUM_TRAIN)
        after = bound - memo
        taken = {"images_forward": memo.forward + after.forward // 10, "images_backward": memo.backward + after.backward // 10}
        return replace(record, facts=record.facts | taken)

    whole = []
    while not agenda.done:
        whole.append(estimate(made, agenda, journal.known).images_forward)
        job = agenda.next()
        agenda.complete(a_tenth(job))
    memo = memo_cost(job.spec, NUM_TRAIN).forward
    after = trial_cost(job.spec, NUM_TRAIN).forward - memo
    assert whole[1:] == [memo + 4 * after, *(round(number * after / 10) for number in (3, 2, 1))]
