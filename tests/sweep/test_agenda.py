"""Which job comes next: reproducible whatever the workers do, nothing twice, never stuck."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cu_ray.plugins import name_of
from cu_ray.selection import RULES
from cu_ray.sweep import ledger, sampling
from cu_ray.sweep.estimate import ReadOnlyJournal
from cu_ray.sweep.judging import best_point, point_score
from cu_ray.sweep.ledger import Known, Ledger
from cu_ray.sweep.plan import memo_group
from cu_ray.types import OriginalSpec, Record, TrialSpec
from tests.sweep.simulator import (
    NUM_TEST,
    NUM_TRAIN,
    SCRUB,
    SSD_GRID,
    Killed,
    MortalJournal,
    agenda_of,
    fails,
    fails_sometimes,
    plan,
    play,
    points_of,
    record_of,
    run,
)

LAGS = (1, 2, 4)
SCRUB_AGAIN = "cu_ray.methods.scrub:Scrub"  # the same method under its dotted path: a study of its own
CF = "catastrophic_forgetting"
MIXED = {
    "no_unlearning": {},
    "scrub": {**SCRUB, "trials": 16},  # tpe: from the eleventh point on it learns
    SCRUB_AGAIN: {**SCRUB, "trials": 6, "sampler": "qmc"},
    "ssd": {"trials": 5, "sampler": "random"},
    "bad_teaching": {"points": [{"steps": 4}, {"steps": 6}]},
    CF: {"steps": [2, 4], "lr": [0.1, 0.01], "sampler": "grid"},
}

# without shrinking: a failure takes no longer than a success, and there is little to shrink
several = settings(max_examples=8, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
workers_and_seed = {"workers": st.integers(1, 8), "seed": st.integers(0, 10**6)}


def mixed(lag: int = 4, methods=None):
    return plan(methods or MIXED, seeds=[0, 1], search={"lag": lag})


@functools.cache
def one_worker(lag: int, failing: float = 0.0) -> Known:
    known, _ = run(mixed(lag), outcome=fails_sometimes(failing))
    return known


def one_study(method="scrub", given=None, **sections):
    return plan({method: {**SCRUB, **(given or {})}}, **sections)


def trial_fails(job):
    return fails(job) if job.kind == "trial" else record_of(job)


def original_fails(job):
    return fails(job, "diverged", "loss was nan") if job.kind == "original" else record_of(job)


# -------------------------------------------------------------------------------------------- reproducible though parallel


@several
@given(**workers_and_seed, lag=st.sampled_from(LAGS), failing=st.sampled_from([0.0, 0.2]))
def test_points_and_records_are_the_same_for_any_workers_and_any_order(workers, seed, lag, failing):
    known, _ = run(mixed(lag), workers=workers, seed=seed, outcome=fails_sometimes(failing))
    reference = one_worker(lag, failing)
    assert points_of(known, mixed(lag)) == points_of(reference, mixed(lag))
    assert known.trials == reference.trials
    assert known.originals == reference.originals


@several
@given(**workers_and_seed, kept=st.sets(st.sampled_from(sorted(MIXED)), min_size=1))
def test_points_do_not_depend_on_the_other_studies(workers, seed, kept):
    fewer = mixed(methods={name: MIXED[name] for name in MIXED if name in kept})
    known, _ = run(fewer, workers=workers, seed=seed)
    assert points_of(known, fewer) == points_of(one_worker(4), fewer)
    assert known.trials.items() <= one_worker(4).trials.items()


@several
@given(
    lag=st.sampled_from(LAGS),
    lives=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.integers(0, 10**6)), min_size=1, max_size=2),
)
def test_an_interrupted_sweep_comes_to_the_same_and_runs_nothing_twice(lag, lives):
    outcome, ended = fails_sometimes(0.2), []
    with tempfile.TemporaryDirectory() as folder:
        for kill_after, workers, seed in [*lives, (None, 3, 0)]:
            with Ledger(Path(folder)) as journal:
                trace = play(agenda_of(mixed(lag), journal), workers=workers, seed=seed, kill_after=kill_after, outcome=outcome)
            assert not set(trace.keys) & set(ended)
            ended += [job.key for job in trace.ended]
        known = ledger.read(Path(folder))
    reference = one_worker(lag, 0.2)
    assert len(ended) == len(set(ended))
    assert points_of(known, mixed(lag)) == points_of(reference, mixed(lag))
    assert known.trials == reference.trials


def test_a_kill_after_any_job_loses_only_what_was_in_flight(tmp_path):
    made = plan({"scrub": {**SCRUB, "trials": 7}, "ssd": SSD_GRID}, search={"lag": 2})
    reference, whole = run(made)
    for kill_after in range(len(whole.ended)):
        with Ledger(tmp_path / str(kill_after)) as journal:
            first = play(agenda_of(made, journal), workers=3, seed=kill_after, kill_after=kill_after)
        with Ledger(tmp_path / str(kill_after)) as journal:
            second = play(agenda_of(made, journal), workers=2, seed=1)
            assert journal.known.trials == reference.trials
        assert first.in_flight <= set(second.keys)
        assert sorted(second.keys) == sorted(set(whole.keys) - {job.key for job in first.ended})


@several
@given(lives=st.integers(0, 34), written=st.booleans(), failing=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 10**6))
def test_a_driver_that_dies_at_any_append_goes_on_from_the_disk(lives, written, failing, seed):
    methods, outcome = {"scrub": {**SCRUB, "trials": 13}, "no_unlearning": {}}, fails_sometimes(failing, "append")
    made = plan(methods, seeds=[0, 1], search={"lag": 1})
    reference, _ = run(made, outcome=outcome)
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder)) as journal:
            mortal = MortalJournal(journal, lives, written=written)
            with contextlib.suppress(Killed):
                play(agenda_of(made, mortal), workers=3, seed=seed, outcome=outcome)
        with Ledger(Path(folder)) as journal:
            play(agenda_of(made, journal), workers=3, seed=seed + 1, outcome=outcome)
        known = ledger.read(Path(folder))
    assert known.trials == reference.trials
    assert points_of(known, made) == points_of(reference, made)


def test_a_driver_that_dies_between_a_failed_original_and_its_dependents_writes_their_rows_when_it_goes_on(tmp_path):
    made = one_study(given={"alpha": [0.1, 1, 10], "sampler": "grid"})
    with Ledger(tmp_path) as journal, pytest.raises(Killed):
        play(agenda_of(made, MortalJournal(journal, 4, written=True)), outcome=original_fails)
    assert len(ledger.read(tmp_path).trials) == 1
    with Ledger(tmp_path) as journal:
        assert play(agenda_of(made, journal)).started == []
        assert [record.status for record in journal.known.trials.values()] == ["failed"] * 3


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_points_of_a_sampler_that_learns_depend_neither_on_workers_nor_on_order(sampler):
    made = one_study(given={"trials": 24, "sampler": sampler})
    alone, _ = run(made)
    others = [run(made, workers=workers, seed=seed, outcome=fails_sometimes(0.0))[0] for workers, seed in ((5, 9), (8, 1))]
    assert all(points_of(other, made) == points_of(alone, made) for other in others)
    _, trace = run(made, alone)
    assert trace.started == []


def test_tpe_points_follow_the_results():
    made = one_study(given={"trials": 16})
    one, _ = run(made)
    other, _ = run(made, outcome=lambda job: mirrored(record_of(job)))
    first, second = points_of(one, made)[0], points_of(other, made)[0]
    assert first[:4] == second[:4]
    assert first[13:] != second[13:]


def mirrored(record: Record) -> Record:
    scores = {name: None if score is None else 1 - score for name, score in record.scores.items()}
    return Record(record.kind, record.key, record.spec, record.status, None, scores, record.facts)


@pytest.mark.parametrize("lag", LAGS)
def test_a_sampler_is_told_the_results_of_points_0_to_n_minus_lag_in_index_order(lag, monkeypatch):
    asked, made = [], one_study(given={"trials": 9}, search={"lag": lag})
    real = sampling.point
    monkeypatch.setattr(
        sampling,
        "point",
        lambda spec, index, earlier, results, memory: (
            asked.append((index, len(earlier), list(results))) or real(spec, index, earlier, results, memory)
        ),
    )
    known, _ = run(made, workers=8, seed=3, outcome=fails_sometimes(0.5, "told"))
    study = made.studies[0]
    scores = [point_score(study, point, known.trials, "oracle_validation") for point in points_of(known, made)[0]]
    assert None in scores
    assert asked == [(index, index, scores[: max(0, index - lag + 1)]) for index in range(9)]


@pytest.mark.parametrize("lag", LAGS)
def test_so_many_points_of_an_adaptive_study_run_at_once_as_its_lag_says(lag):
    agenda, trials = after_the_original(one_study(given={"trials": 9}, search={"lag": lag}))
    assert len(trials) == lag
    for job in reversed(trials[1:]):
        agenda.complete(record_of(job))
        assert agenda.next() is None
    agenda.complete(record_of(trials[0]))
    assert len(handed_out(agenda)) == lag


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_points_that_no_result_shapes_are_all_ready_at_once(sampler):
    _, trials = after_the_original(one_study(given={"trials": 9, "sampler": sampler}))
    assert len(trials) == 9


def handed_out(agenda) -> list:
    return list(iter(agenda.next, None))


def after_the_original(made, known=None):
    """The agenda of a plan with one original, once that is there, and the jobs that are then handed out."""
    agenda = agenda_of(made, ReadOnlyJournal(known or Known()))
    original = agenda.next()
    assert agenda.next() is None
    agenda.complete(record_of(original))
    return agenda, handed_out(agenda)


# -------------------------------------------------------------------------------------------------- nothing runs twice


def test_when_all_is_known_nothing_is_to_be_done_and_no_sampler_is_asked(tmp_path, monkeypatch):
    with Ledger(tmp_path) as journal:
        play(agenda_of(mixed(), journal), workers=3)
    monkeypatch.setattr(sampling, "point", None)
    with Ledger(tmp_path) as journal:
        before = (tmp_path / "000001.log").read_bytes()
        agenda = agenda_of(mixed(), journal)
        assert agenda.done
        assert agenda.next() is None
        assert agenda.num_open == 0
    assert (tmp_path / "000001.log").read_bytes() == before


def test_failed_trials_are_not_run_again_unasked():
    known, _ = run(mixed(), outcome=fails_sometimes(0.3))
    assert not all(record.ok for record in known.trials.values())
    _, again = run(mixed(), known)
    assert again.started == []


def test_a_trial_that_two_studies_share_runs_once_and_serves_both():
    shared = [{"alpha": 0.1}, {"alpha": 1}]
    made = plan({"scrub": {**SCRUB, "points": shared}, SCRUB_AGAIN: {**SCRUB, "alpha": [0.1, 1, 10], "sampler": "grid"}})
    agenda = agenda_of(made, ReadOnlyJournal(Known()))
    trace = play(agenda, workers=4, seed=2)
    assert len(trace.trials) == len({trial.key for trial in trace.trials}) == 3
    assert [len(study.results) for study in agenda.studies] == [2, 3]
    assert None not in agenda.studies[0].results + agenda.studies[1].results


def test_equal_points_of_one_study_run_once_and_count_in_its_budget():
    agenda = agenda_of(one_study(given={"points": [{"alpha": 1}, {"alpha": 0.1}, {"alpha": 1.0}]}), ReadOnlyJournal(Known()))
    assert len(play(agenda, workers=2).trials) == 2
    results = agenda.studies[0].results
    assert len(results) == 3
    assert results[0] == results[2] != results[1]


def test_an_original_that_left_the_store_is_made_again_only_for_what_is_new():
    few, more = (one_study(given={"trials": trials, "sampler": "random"}) for trials in (3, 5))
    known, _ = run(few)
    _, nothing_new = run(few, known, cached=False)
    assert nothing_new.started == []
    _, two_new = run(more, known, cached=False)
    assert [job.kind for job in two_new.started] == ["original", "trial", "trial"]


# ------------------------------------------------------------------------------------------- what a changed sweep adds


def test_raising_trials_runs_only_what_is_new():
    few, many = (one_study(given={"trials": trials}, search={"lag": 2}) for trials in (11, 16))
    known, _ = run(few)
    continued, trace = run(many, known, workers=4, seed=5)
    assert len(trace.started) == 5
    assert continued.trials == run(many)[0].trials
    assert points_of(continued, many)[0][:11] == points_of(known, few)[0]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "nsga2"])
def test_lowering_trials_runs_nothing(sampler):
    known, _ = run(one_study(given={"trials": 8, "sampler": sampler}, seeds=[0, 1], search={"seeds": "all"}))
    _, trace = run(one_study(given={"trials": 3, "sampler": sampler}, seeds=[0, 1], search={"seeds": "all"}), known)
    assert trace.started == []


def test_lowering_trials_confirms_at_most_what_is_now_best():
    known, _ = run(one_study(given={"trials": 8}, seeds=[0, 1, 2]))
    _, trace = run(one_study(given={"trials": 3}, seeds=[0, 1, 2]), known)
    assert {trial.original.setting.seed for trial in trace.trials} <= {1, 2}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "nsga2"])
def test_adding_a_fraction_runs_only_that_fraction(sampler):
    few, many = (
        one_study(given={"trials": 4, "sampler": sampler}, deletion_fractions=fractions) for fractions in ([0.5], [0.1, 0.5])
    )
    known, _ = run(few)
    continued, trace = run(many, known)
    assert [trial.deletion_size for trial in trace.trials] == [10] * 4
    assert len(trace.started) == 4  # the original is there
    assert points_of(continued, few) == points_of(known, few)


def test_adding_a_method_leaves_the_points_of_the_others():
    known, _ = run(mixed(methods={"scrub": MIXED["scrub"]}))
    continued, trace = run(mixed(), known)
    assert not set(trace.keys) & set(known.trials)
    assert continued.points.items() >= known.points.items()
    assert continued.trials == one_worker(4).trials


@pytest.mark.parametrize("given", [{"trials": 5}, {"trials": 5, "sampler": "qmc"}, {"alpha": [0.1, 1], "sampler": "grid"}])
def test_adding_a_seed_to_a_search_on_the_first_confirms_on_the_new_one(given):
    few, many = (one_study(given=given, seeds=seeds) for seeds in ([0, 1], [0, 1, 2]))
    known, _ = run(few)
    continued, trace = run(many, known)
    assert points_of(continued, many) == points_of(known, few)
    assert {trial.original.setting.seed for trial in trace.trials} == {2}
    confirmed = [record for record in known.trials.values() if record.spec["original"]["setting"]["seed"] == 1]
    assert len(trace.trials) == len(confirmed)


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 1},
        {"alpha": [0.1, 1], "sampler": "grid"},
        {"points": [{"alpha": 1}, {"alpha": 2}]},
        {"trials": 4, "sampler": "random"},
        {"trials": 4, "sampler": "qmc"},
    ],
)
def test_adding_a_seed_to_a_search_on_all_runs_every_point_on_the_new_one(given):
    few, many = (one_study(given=given, seeds=seeds, search={"seeds": "all"}) for seeds in ([0, 1], [0, 1, 2]))
    known, _ = run(few)
    continued, trace = run(many, known)
    assert {trial.original.setting.seed for trial in trace.trials} == {2}
    assert len(trace.trials) == many.studies[0].method.budget
    assert points_of(continued, many) == points_of(known, few)


# ---------------------------------------------------------------------------------------------------------------- order


def test_originals_come_first():
    agenda = agenda_of(mixed(), ReadOnlyJournal(Known()))
    assert {job.kind for job in handed_out(agenda)} == {"original"}
    made = plan({"scrub": {**SCRUB, "alpha": [0.1, 1, 10], "sampler": "grid"}}, seeds=[0, 1, 2], search={"seeds": "all"})
    agenda = agenda_of(made, ReadOnlyJournal(Known()))
    _, second, _ = handed_out(agenda)
    agenda.complete(record_of(second))
    assert {job.spec.original.key for job in handed_out(agenda)} == {second.key}


def test_an_original_that_a_confirmation_needs_comes_before_waiting_trials():
    points = [{"alpha": number + 1} for number in range(5)]
    made = plan({CF: {"steps": [90, 80, 70], "sampler": "grid"}, "scrub": {**SCRUB, "points": points}}, seeds=[0, 1])
    agenda = agenda_of(made, ReadOnlyJournal(Known()))
    agenda.complete(record_of(agenda.next()))
    longest = [agenda.next() for _ in range(3)]
    for job in longest:
        agenda.complete(record_of(job))
    assert [job.kind for job in handed_out(agenda)] == ["original"] + ["trial"] * 5


def test_the_longest_trials_come_first():
    made = plan({CF: {"steps": [3, 9, 6], "sampler": "grid"}, "exact_unlearning": {"steps": 8}, "no_unlearning": {}})
    _, trials = after_the_original(made)
    lengths = [getattr(job.spec.method, "steps", 0) for job in trials]
    assert lengths == [9, 8, 6, 3, 0]


def test_a_search_whose_points_wait_for_each_other_comes_before_longer_trials_that_nothing_waits_for():
    """12 points with 3 at a time are four rounds: 4 x 6 steps and their evaluations, more than one trial of 20 steps."""
    made = plan({CF: {"steps": [20, 80], "sampler": "grid"}, "scrub": {**SCRUB, "trials": 12}}, search={"lag": 3})
    agenda, trials = after_the_original(made)
    scrub = [job for job in trials if name_of(job.spec.method) == "scrub"]
    assert [getattr(job.spec.method, "steps", 0) for job in trials] == [80, 6, 6, 6, 20]
    for job in scrub:
        agenda.complete(record_of(job))
    next_round = handed_out(agenda)
    assert [job.length / (job.images + 2 * NUM_TEST) for job in scrub + next_round] == [4, 4, 4, 3, 3, 3]


def test_a_study_that_others_begin_from_has_theirs_behind_it():
    """Each study is one round and its confirmation; that on the highest fraction has those on the two others behind it."""
    made = plan(
        {"scrub": {**SCRUB, "trials": 4, "sampler": "random"}, CF: {"steps": 6}},
        deletion_fractions=[0.5, 0.1, 1.0],
        seeds=[0, 1],
        search={"warm_start": "neighbour"},
    )
    searched = [job for job in run(made)[1].started if job.kind == "trial" and job.spec.original.setting.seed == 0]
    behind = {}
    for job in searched:
        rounds = behind.setdefault((name_of(job.spec.method), job.spec.deletion_size), set())
        rounds.add(job.length / (job.images + 2 * NUM_TEST))
    once = {("scrub", 100): {4}, ("scrub", 50): {3}, ("scrub", 10): {2}}
    assert behind == {**once, **{(CF, size): {1} for size in (10, 50, 100)}}


def test_a_trial_that_is_repeated_in_the_end_is_two_rounds_and_what_has_no_trigger_is_evaluated_once():
    made = plan(
        {"scrub": {**SCRUB, "alpha": [0.1, 1], "sampler": "grid"}},
        manipulation={"name": "random_label_swap", "size": 100},
        controls={"unlearning_seeds": 2},
    )
    trials = [job for job in run(made)[1].started if job.kind == "trial"]
    assert [job.length / (job.images + NUM_TEST) for job in trials] == [2, 2, 1]


def test_who_computes_a_memo_has_it_in_its_length():
    _, (leader,) = after_the_original(plan({"ssd": SSD_GRID}))
    assert leader.images == 3 * NUM_TRAIN
    assert leader.length == 3 * NUM_TRAIN + 2 * NUM_TEST


def test_trials_that_wait_for_nothing_but_confirm_are_two_rounds():
    made = plan({"scrub": {**SCRUB, "alpha": [0.1, 1], "sampler": "grid"}}, seeds=[0, 1])
    trace = run(made)[1]
    rounds = [job.length / (job.images + 2 * NUM_TEST) for job in trace.started if job.kind == "trial"]
    assert rounds == [2, 2, *(len(rounds) - 2) * [1]]


@pytest.mark.parametrize("ends", [record_of, fails], ids=["well", "badly"])
def test_of_the_trials_that_share_a_memo_one_runs_until_it_ends_then_the_rest(ends):
    agenda, (leader,) = after_the_original(plan({"ssd": SSD_GRID}))
    agenda.complete(ends(leader))
    rest = handed_out(agenda)
    assert len(rest) == 3
    assert {memo_group(job.spec) for job in rest} == {memo_group(leader.spec)}


def test_once_a_memo_is_there_later_points_wait_for_it_no_more():
    agenda, (leader,) = after_the_original(plan({"ssd": {"trials": 12}}, search={"lag": 3}))
    agenda.complete(record_of(leader))
    running = {job.key: job for job in handed_out(agenda)}
    for (key,) in agenda.studies[0].trial_keys[1:]:
        agenda.complete(record_of(running.pop(key)))
        running |= {job.key: job for job in handed_out(agenda)}
        assert len(running) == agenda.num_open == min(3, 12 - len(agenda.studies[0].results))


def test_each_deletion_set_has_a_memo_of_its_own():
    made = plan({"ssd": SSD_GRID}, deletion_fractions=[0.1, 0.5, 1.0], search={"defender": True})
    _, leaders = after_the_original(made)
    expected = [(10, False), (50, False), (50, True), (100, False), (100, True)]
    assert sorted((job.spec.deletion_size, job.spec.held_out) for job in leaders) == expected


def test_a_trial_that_computes_a_memo_comes_before_longer_ones_that_nobody_waits_for():
    made = plan({CF: {"steps": [300, 200], "sampler": "grid"}, "ssd": SSD_GRID})
    _, trials = after_the_original(made)
    assert [memo_group(job.spec) is not None for job in trials] == [True, False, False]


@several
@given(**workers_and_seed, failing=st.floats(0, 1), salt=st.integers(0, 99))
def test_whatever_fails_every_trial_gets_a_row_and_nothing_gets_stuck(workers, seed, failing, salt):
    made = plan(
        {"ssd": SSD_GRID, "scrub": {**SCRUB, "trials": 6}, "no_unlearning": {}},
        seeds=[0, 1, 2],
        search={"lag": 2, "defender": True},
    )
    known, trace = run(made, workers=workers, seed=seed, outcome=fails_sometimes(failing, str(salt)))
    assert [len(points) for points in points_of(known, made)] == [4, 6, 1]
    wanted = {key for points in known.points.values() for point in points.values() for key in point.trial_keys}
    assert wanted <= set(known.trials)
    assert len(trace.keys) == len(set(trace.keys))


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_trial_that_goes_wrong_is_a_failed_point_and_the_study_goes_on(status):
    agenda = agenda_of(one_study(given={"trials": 9}), ReadOnlyJournal(Known()))
    play(agenda, outcome=lambda job: fails(job, status) if job.kind == "trial" else record_of(job))
    assert agenda.studies[0].results == [None] * 9
    assert agenda.finished == {status: 9, "ok": 1}


def test_the_scores_of_a_failed_trial_never_count():
    made = one_study(given={"points": [{"alpha": 0.1}, {"alpha": 1}]})
    known, _ = run(made)
    best = made.studies[0].trial(points_of(known, made)[0][0], made.studies[0].settings[0], 0.5)
    record = known.trials[best.key]
    known.trials[best.key] = Record("trial", best.key, record.spec, "diverged", "nan", record.scores, record.facts)
    assert point_score(made.studies[0], points_of(known, made)[0][0], known.trials, "oracle") is None
    assert best_point(made.studies[0], points_of(known, made)[0], known.trials, "oracle") == 1


def test_a_point_fails_when_one_of_its_trials_does():
    made = one_study(given={"points": [{"alpha": 0.1}, {"alpha": 1}]}, seeds=[0, 1], search={"seeds": "all"})
    known, _ = run(made)
    spec, point = made.studies[0], points_of(known, made)[0][0]
    key = spec.trial(point, spec.settings[1], 0.5).key
    known.trials[key] = Record("trial", key, {}, "failed", "no luck")
    assert point_score(spec, point, known.trials, "oracle") is None


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_failed_original_fails_its_trials_with_rows_that_say_so(sampler):
    made = plan({"scrub": {**SCRUB, "trials": 12, "sampler": sampler}, "ssd": SSD_GRID, "no_unlearning": {}})
    known, trace = run(made, outcome=original_fails)
    assert len(trace.started) == 1
    assert len(known.trials) == 17
    for record in known.trials.values():
        assert record.status == "failed"
        assert record.error == "its original model diverged: loss was nan"
        assert TrialSpec.build(record.spec).key == record.key


def test_a_failed_original_fails_a_study_of_2000_points_one_after_another(monkeypatch):
    monkeypatch.setattr(sampling, "point", lambda spec, index, *known: {**spec.method.fixed, "alpha": 1.0 + index})
    known, trace = run(one_study(given={"trials": 2000}, search={"lag": 1}), outcome=original_fails)
    assert len(trace.started) == 1
    assert len(known.trials) == 2000


def test_a_failed_original_leaves_the_trials_of_others_alone():
    made = one_study(given={"alpha": [0.1, 1], "sampler": "grid"}, seeds=[0, 1], search={"seeds": "all"})
    known, _ = run(made, outcome=lambda job: fails(job) if on_seed(job.spec) == 1 and job.kind == "original" else record_of(job))
    statuses = {on_seed(TrialSpec.build(record.spec)): record.status for record in known.trials.values()}
    assert statuses == {0: "ok", 1: "failed"}


def on_seed(spec) -> int:
    return (spec if isinstance(spec, OriginalSpec) else spec.original).setting.seed


@pytest.mark.parametrize("outcome", [trial_fails, original_fails])
def test_retrying_runs_what_failed_once_more_and_only_that(outcome):
    made = one_study(given={"trials": 6, "sampler": "random"})
    known, _ = run(made, outcome=outcome)
    known, again = run(made, known, retry_failed=True, outcome=outcome)
    num_started = 6 if outcome is trial_fails else 1
    assert len(again.started) == num_started
    known, healed = run(made, known, retry_failed=True)
    assert len(healed.trials) == 6
    assert all(record.ok for record in known.trials.values())
    _, nothing = run(made, known, retry_failed=True)
    assert nothing.started == []


@several
@given(**workers_and_seed, failing=st.floats(0.1, 0.9))
def test_retrying_leaves_finished_trials_alone_and_ends(workers, seed, failing):
    made = plan({"scrub": {**SCRUB, "trials": 6}, "ssd": SSD_GRID}, seeds=[0, 1], search={"lag": 2})
    known, _ = run(made, outcome=fails_sometimes(failing))
    ok = {key for key, record in known.trials.items() if record.ok}
    _, again = run(made, known, retry_failed=True, workers=workers, seed=seed, outcome=fails_sometimes(failing / 2))
    assert not ok & set(again.keys)
    assert len(again.keys) == len(set(again.keys))


def test_equal_points_that_fail_run_once_and_are_retried_once():
    made = one_study(given={"alpha": [0.1, 1], "sampler": "tpe", "trials": 8}, search={"lag": 1})
    known, first = run(made, outcome=trial_fails, retry_failed=True)
    _, again = run(made, known, outcome=trial_fails, retry_failed=True)
    assert len(first.trials) == len(again.trials) == 2


def test_retrying_serves_every_study_that_shares_the_failed_trial():
    shared = [{"alpha": 0.1}, {"alpha": 1}]
    grid = {**SCRUB, "alpha": [0.1, 1], "sampler": "grid"}
    made = plan({"scrub": {**SCRUB, "points": shared}, SCRUB_AGAIN: grid}, seeds=[0, 1])
    known, _ = run(made, outcome=trial_fails)
    agenda = agenda_of(made, ReadOnlyJournal(known), retry_failed=True)
    play(agenda)
    assert [len(study.results) for study in agenda.studies] == [2, 2]
    assert all(study.confirmed for study in agenda.studies)


# -------------------------------------------------------------------------------- seeds, held-out trials, fractions


def by_hand(record: Record, rule: str) -> float:
    """A trial's score, from the definition of the rules."""
    scores = record.scores
    prefix = {"published": "", "oracle": "report_", "oracle_validation": "val_"}.get(rule)
    if prefix is not None:
        return (scores[f"{prefix}acc_corr"] + scores[f"{prefix}acc_retain"]) / 2
    if rule == "defender":
        return scores["validation_given"] * (1 - max(scores["held_out_given"], 0.1))
    if rule == "potion_stop":
        lacking = scores["deletion_given"] - 0.2 * scores["deletion_given_before"]
        return -lacking if lacking > 0 else scores["retain_given"]
    return scores["retain_given"] * (1 - max(scores["deletion_given"], 0.2))


def record_at(known, study, point, seed=0, fraction=0.5, held_out=False) -> Record:
    setting = next(setting for setting in study.settings if setting.seed == seed)
    return known.trials[study.trial(point, setting, fraction, held_out=held_out).key]


def test_a_search_on_the_first_seed_confirms_the_best_of_every_rule_on_the_others():
    made = one_study(given={"trials": 16}, seeds=[3, 1, 2], search={"defender": True})
    known, trace = run(made, workers=4, seed=1)
    study, (points,) = made.studies[0], points_of(known, made)
    best = {
        rule: max(range(16), key=lambda n: by_hand(record_at(known, study, points[n], 3, held_out=rule == "defender"), rule))
        for rule in RULES
    }
    assert len(set(best.values())) > 1
    confirmed = [trial for trial in trace.trials if trial.original.setting.seed != 3]
    assert trace.trials[: 2 * 16] == [trial for trial in trace.trials if trial.original.setting.seed == 3]
    expected = {
        study.trial(points[index], setting, 0.5, held_out=held_out).key
        for index in best.values()
        for setting in study.settings[1:]
        for held_out in (False, True)
    }
    assert {trial.key for trial in confirmed} == expected
    assert [best_point(study, points, known.trials, rule) for rule in RULES] == list(best.values())


def test_confirmations_do_not_change_the_choice():
    made = one_study(given={"trials": 6}, seeds=[0, 1])
    known, _ = run(made, outcome=lambda job: fails(job) if on_seed(job.spec) == 1 and job.kind == "trial" else record_of(job))
    agenda = agenda_of(made, ReadOnlyJournal(known))
    assert agenda.done
    assert None not in agenda.studies[0].results


def test_a_search_of_which_every_point_failed_confirms_nothing():
    _, trace = run(one_study(given={"trials": 6}, seeds=[0, 1]), outcome=trial_fails)
    assert len(trace.trials) == 6


@pytest.mark.parametrize("given", [{"alpha": 0.1}, {"points": [{"alpha": 0.1}]}, {"alpha": [0.1], "sampler": "grid"}])
def test_a_study_of_one_point_runs_on_all_seeds_at_once(given):
    agenda = agenda_of(one_study(given=given, seeds=[0, 1, 2]), ReadOnlyJournal(Known()))
    assert len(handed_out(agenda)) == 3
    assert agenda.studies[0].spec.report_settings == agenda.studies[0].spec.settings


def test_a_search_on_each_seed_is_scored_by_that_seed_and_confirmed_nowhere():
    made = one_study(given={"trials": 3}, seeds=[0, 1, 2], search={"seeds": "each"})
    known, trace = run(made, workers=5)
    assert len(trace.trials) == 9
    for study, points in zip(made.studies, points_of(known, made), strict=True):
        seed = study.settings[0].seed
        scores = [by_hand(record_at(known, study, point, seed), "oracle") for point in points]
        assert [point_score(study, point, known.trials, "oracle") for point in points] == scores


def test_a_search_on_all_seeds_scores_a_point_by_their_mean():
    made = one_study(given={"trials": 3}, seeds=[0, 1, 2], search={"seeds": "all"})
    agenda = agenda_of(made, ReadOnlyJournal(Known()))
    known = agenda._journal.known
    play(agenda, workers=5)
    study = agenda.studies[0]
    for point, score in zip(study.points, study.results, strict=True):
        each = [by_hand(record_at(known, study.spec, point, seed), "oracle_validation") for seed in (0, 1, 2)]
        assert score == pytest.approx(sum(each) / 3, abs=1e-12)


@pytest.mark.parametrize(("aggregate", "over"), [("mean", lambda scores: sum(scores) / len(scores)), ("min", min)])
def test_a_search_across_fractions_scores_a_point_by_their_mean_or_their_least(aggregate, over):
    made = one_study(
        given={"trials": 3}, deletion_fractions=[0.1, 0.5, 1.0], search={"scope": "across_fractions", "aggregate": aggregate}
    )
    known, trace = run(made)
    assert len(made.studies) == 1
    assert len(trace.trials) == 9
    for point in points_of(known, made)[0]:
        each = [by_hand(record_at(known, made.studies[0], point, 0, fraction), "published") for fraction in (0.1, 0.5, 1.0)]
        assert point_score(made.studies[0], point, known.trials, "published") == pytest.approx(over(each), abs=1e-12)


def test_for_the_defender_each_point_also_runs_with_a_part_held_out_and_is_chosen_by_that():
    made = one_study(given={"trials": 12, "sampler": "qmc"}, search={"objective": "defender"})
    known, trace = run(made)
    assert [trial.held_out for trial in trace.trials].count(True) == 12
    study, (points,) = made.studies[0], points_of(known, made)
    held_out = [record_at(known, study, point, held_out=True) for point in points]
    scores = [by_hand(record, "defender") for record in held_out]
    assert [point_score(study, point, known.trials, "defender") for point in points] == scores
    assert best_point(study, points, known.trials, "defender") == scores.index(max(scores))


def test_where_too_few_were_found_nothing_is_held_out_and_the_defender_has_no_score():
    made = one_study(given={"trials": 3}, deletion_fractions=[0.22, 0.25], search={"defender": True})
    known, trace = run(made)
    few, enough = made.studies
    assert {trial.deletion_size for trial in trace.trials if trial.held_out} == {25}
    assert best_point(few, points_of(known, made)[0], known.trials, "defender") is None
    assert best_point(enough, points_of(known, made)[1], known.trials, "defender") is not None


def test_without_being_asked_for_nothing_is_held_out():
    _, trace = run(one_study(given={"trials": 3}))
    assert not any(trial.held_out for trial in trace.trials)


def test_of_equally_good_points_the_first_is_best():
    scores = {"acc_corr": 1.0, "acc_retain": 0.5}
    made = one_study(given={"points": [{"alpha": 1}, {"alpha": 2}, {"alpha": 3}]})
    known, _ = run(made, outcome=lambda job: Record(job.kind, job.key, SCRUB_SPEC, "ok", None, scores, {"num_classes": 10}))
    assert best_point(made.studies[0], points_of(known, made)[0], known.trials, "published") == 0


SCRUB_SPEC: dict = {"method": {"name": "scrub"}}


# ---------------------------------------------------------------------------------------------------------------- speed


def test_an_agenda_of_2000_grid_trials_takes_seconds():
    made = one_study(given={"alpha": [0.001 * (n + 1) for n in range(2000)], "sampler": "grid"})
    scores, facts = {"val_acc_corr": 0.5, "val_acc_retain": 0.5}, {"num_classes": 10}
    started = time.process_time()
    known, _ = run(made, workers=8, outcome=lambda job: Record(job.kind, job.key, SCRUB_SPEC, "ok", None, scores, facts))
    seconds = time.process_time() - started
    print(f"2,000 trials: {seconds:.1f} s of CPU")
    assert len(known.trials) == 2000
    assert seconds < 10


# --------------------------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize("failing", [None, "trial", "original"])
def test_what_lacks_evidence_is_made_again_once_and_a_failure_then_takes_no_result_away(failing, tmp_path):
    """Whatever fails, also an original: what was made before it stays, here and in the ledger."""

    def outcome(job):
        return fails(job) if job.kind == failing else record_of(job)

    made = mixed(4)
    with Ledger(tmp_path) as journal:
        first = play(agenda_of(made, journal))
        before = Known(dict(journal.known.originals), dict(journal.known.trials))
        lacking = {*before.originals, *before.trials}
        made_again = play(agenda_of(made, journal, lacking=lacking), outcome=outcome, workers=3).keys
    assert sorted(made_again) == sorted(first.keys)
    after = ledger.read(tmp_path)
    assert (after.originals, after.trials) == (before.originals, before.trials)
    with Ledger(tmp_path) as journal:
        assert play(agenda_of(made, journal)).started == []
