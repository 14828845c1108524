"""The Optuna journal beside the tables: what `optuna-dashboard` shows is what the sweep found."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock
from optuna.trial import TrialState

from cu_ray.sweep import aside
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.mirror import FILE, Mirror, name_of_study
from tests.sweep.simulator import SCRUB, agenda_of, fails, plan, play, record_of

METHODS = {
    "no_unlearning": {},
    "scrub": {**SCRUB, "trials": 8},
    "catastrophic_forgetting": {"k": [None, 2, 4], "steps": [1, 2], "sampler": "grid"},
    "bad_teaching": {"points": [{"steps": 4}, {"steps": 6}]},
}


@pytest.fixture
def finished():
    """The agenda of a sweep that has run; a fifth of its scrub trials failed."""
    from cu_ray.sweep.estimate import ReadOnlyJournal

    def outcome(job):
        return fails(job) if job.kind == "trial" and job.key < "3" else record_of(job)

    agenda = agenda_of(plan(METHODS, deletion_fractions=[0.1, 1.0]), ReadOnlyJournal(Known()))
    play(agenda, outcome=outcome)
    return agenda


def studies_in(folder):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / FILE)))
    return {study.study_name: study for study in (optuna.load_study(storage=storage, study_name=name) for name in
            [summary.study_name for summary in optuna.get_all_study_summaries(storage)])}  # fmt: skip


def test_it_holds_every_point_of_every_search_with_its_score(tmp_path, finished):
    with Mirror(tmp_path) as mirror:
        mirror.take(finished.studies)
    shown = studies_in(tmp_path)
    searches = [study for study in finished.studies if study.spec.method.has_choice]
    assert len(shown) == len(searches) == 6
    for study in searches:
        trials = shown[name_of_study(study.spec)].trials
        assert [trial.value for trial in trials] == study.results
        assert [trial.state == TrialState.FAIL for trial in trials] == [result is None for result in study.results]
        assert [trial.user_attrs["trial_keys"] for trial in trials] == [list(keys) for keys in study.trial_keys]
        for trial, point in zip(trials, study.points, strict=True):
            assert trial.params == {name: point[name] for name in study.spec.method.space}
            assert point.items() <= trial.user_attrs.items()
    assert any(result is None for study in searches for result in study.results)


def test_points_are_added_as_they_come_and_once(tmp_path, finished):
    study = next(each for each in finished.studies if each.spec.method.has_choice)
    results = list(study.results)
    for end in (2, 2, 5, len(results)):
        study.results = results[:end]
        with Mirror(tmp_path) as mirror:
            mirror.take([study])
            mirror.take([study])
        assert [trial.value for trial in studies_in(tmp_path)[name_of_study(study.spec)].trials] == results[:end]


def test_two_objectives_are_two_values(tmp_path):
    from cu_ray.sweep.estimate import ReadOnlyJournal

    agenda = agenda_of(plan({"scrub": {**SCRUB, "trials": 5, "sampler": "nsga2"}}), ReadOnlyJournal(Known()))
    play(agenda)
    with Mirror(tmp_path) as mirror:
        mirror.take(agenda.studies)
    (study,) = studies_in(tmp_path).values()
    assert len(study.directions) == 2
    assert [tuple(trial.values) for trial in study.trials] == agenda.studies[0].results


@pytest.mark.parametrize("rest", [b"garbage", b'{"op_code": 0, "worker', b"\x00\xff\n"])
def test_a_journal_cut_short_is_mended_or_written_anew(tmp_path, finished, rest):
    with Mirror(tmp_path) as mirror:
        mirror.take(finished.studies)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20] + rest)
    with Mirror(tmp_path) as mirror:
        mirror.take(finished.studies)
    shown = studies_in(tmp_path)
    for study in finished.studies:
        if study.spec.method.has_choice:
            assert [trial.value for trial in shown[name_of_study(study.spec)].trials] == study.results


@pytest.mark.parametrize("lock", [JournalFileOpenLock, JournalFileSymlinkLock])
def test_a_lock_that_a_killed_process_held_is_broken(tmp_path, finished, monkeypatch, lock):
    """In a folder that is given relative to the working directory, as by default: what is a link then leads nowhere."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    lock(str(Path("results", FILE))).acquire()

    def mirror_all():
        with Mirror(Path("results")) as mirror:
            mirror.take(finished.studies)

    thread = threading.Thread(target=mirror_all, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(studies_in(tmp_path / "results")) == 6


def test_it_makes_no_links(tmp_path, finished, monkeypatch):
    """Not every folder can hold them, and one that leads nowhere Optuna waits for without end."""
    monkeypatch.setattr(os, "symlink", lambda *given: pytest.fail("a link"))
    with Mirror(tmp_path) as mirror:
        mirror.take(finished.studies)
    assert len(studies_in(tmp_path)) == 6


def test_it_never_holds_up_the_end_of_a_sweep(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(aside, "PATIENCE", 0.2)
    began = time.monotonic()
    with Mirror(tmp_path) as mirror:
        JournalFileOpenLock(str(tmp_path / FILE)).acquire()  # by somebody who was killed meanwhile
        mirror.take(finished.studies)
    assert time.monotonic() - began < 10


def test_a_full_disk_does_not_stop_the_sweep(tmp_path, finished, monkeypatch, capfd):
    def full(**how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(optuna, "create_study", full)
    with Mirror(tmp_path) as mirror:
        mirror.take(finished.studies)
        mirror.take(finished.studies)
    assert "No space left" in capfd.readouterr().err
