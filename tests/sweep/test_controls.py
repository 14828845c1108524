"""Controls and repetitions under other unlearning seeds: what is run, once, when, and in which tables it is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from cu_ray import config
from cu_ray.errors import Faults
from cu_ray.plugins import name_of
from cu_ray.selection import RULES
from cu_ray.sweep import ledger, tables
from cu_ray.sweep.estimate import ReadOnlyJournal, estimate
from cu_ray.sweep.judging import best_point
from cu_ray.sweep.ledger import Known, Ledger
from cu_ray.sweep.plan import memo_group
from cu_ray.types import TrialSpec
from tests.sweep.simulator import SCRUB, SSD_GRID, agenda_of, fails, plan, play, record_of, run, sweep_file

BOTH = {"never_manipulated": True, "trigger_only": True}
METHODS = {
    "no_unlearning": {},
    "scrub": {**SCRUB, "trials": 5, "sampler": "random"},
    "ssd": SSD_GRID,
    "bad_teaching": {"steps": 4},
}
KINDS = [{"name": "backdoor", "size": 100}, {"name": "interclass_confusion", "size": 100}]
CSV = Path(__file__).parent.parent / "data" / "identified.csv"


def made(controls=None, methods=None, **sections):
    """A plan of two fractions and seeds."""
    small = {"deletion_fractions": [0.1, 0.5], "seeds": [0, 1], **sections}
    return plan(methods or METHODS, **small, **({} if controls is None else {"controls": controls}))


def control_of(spec: TrialSpec) -> str | None:
    """The control that a trial belongs to."""
    return spec.original.setting.control


# ------------------------------------------------------------------------------------------------------------- controls


def test_controls_add_originals_and_one_trial_without_unlearning_for_each_setting_and_seed():
    plain, more = made(manipulation=KINDS), made(BOTH, manipulation=KINDS)
    assert {spec.key for spec in plain.originals()} < {spec.key for spec in more.originals()}
    assert {study.key for study in plain.studies} < {study.key for study in more.studies}
    _, trace = run(more)
    added = [spec for spec in trace.trials if control_of(spec)]
    assert Counter((name_of(spec.original.setting.manipulation), control_of(spec)) for spec in added) == {
        ("backdoor", "never_manipulated"): 2,
        ("backdoor", "trigger_only"): 2,
        ("interclass_confusion", "never_manipulated"): 2,  # which has no trigger
    }
    assert {name_of(spec.method) for spec in added} == {"no_unlearning"}
    assert {spec.deletion_size for spec in added} == {0}
    assert {spec.key for spec in run(plain)[1].trials} == {spec.key for spec in trace.trials if not control_of(spec)}


def test_controls_are_the_same_whatever_detection_and_methods_there_are():
    one, other = made(BOTH), made(BOTH, {"scrub": {**SCRUB, "points": [{"alpha": 1}]}})
    keys = [{study.key for study in each.studies if study.settings[0].control} for each in (one, other)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 2


def test_controls_follow_the_search_on_each_seed():
    each = made(BOTH, search={"seeds": "each"})
    assert [len(study.settings) for study in each.studies if study.settings[0].control] == [2, 2]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep with everything, and its tables."""
    everything = made({**BOTH, "unlearning_seeds": 3}, seeds=[0, 1, 2])
    folder = tmp_path_factory.mktemp("controls")
    known, _ = run(everything, workers=3, seed=5)
    tables.write(folder, everything, known)
    frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("trials", "originals", "best", "curves")}
    return SimpleNamespace(plan=everything, known=known, **frames)


def test_every_table_tells_controls_apart(done):
    for frame, per_control in ((done.trials, 3), (done.originals, 3), (done.best, 2 * len(RULES))):
        assert frame["control"].value_counts().to_dict() == {"never_manipulated": per_control, "trigger_only": per_control}
        assert (frame["control"].isna()).sum() > 0
    controls = done.best[done.best["control"].notna()]
    assert set(controls["method"]) == {"no_unlearning"}
    assert set(controls["n"]) == {3}
    assert set(controls["deletion_fraction"]) == {0.1, 0.5}
    assert set(done.curves["control"].dropna()) == {"never_manipulated", "trigger_only"}
    for key, control in zip(controls["trial_keys"].map(list), controls["control"], strict=True):
        rows = done.trials[done.trials["trial_key"].isin(key)]
        assert set(rows["control"]) == {control}
    ordinary = done.best[done.best["control"].isna() & (done.best["method"] == "no_unlearning")]
    assert len(ordinary) == 2 * len(RULES)


# ---------------------------------------------------------------------------------------------------------- repetitions


def repeated(specs) -> list[TrialSpec]:
    """The repetitions among trials."""
    return [spec for spec in specs if spec.unlearning_seed]


def expected_repetitions(everything, known, seeds: int) -> set[str]:
    """By hand: of each study with a best point, on the first seed that is reported."""
    keys = set()
    for study in everything.studies:
        if study.settings[0].control or name_of(study.method.cls) == "no_unlearning":
            continue
        points = [point.hyperparameters for _, point in sorted(known.points[study.key].items())]
        best = best_point(study, points, known.trials, study.search.objective)
        if best is None:  # too few samples to hold some out, so that the rule cannot choose
            continue
        first_only = study.search.seeds == "first" and study.method.has_choice
        setting = study.settings[1] if first_only and len(study.settings) > 1 else study.settings[0]
        for fraction in study.fractions:
            plain = study.trial(points[best], setting, fraction)
            keys |= {TrialSpec(**{**vars_of(plain), "unlearning_seed": seed}).key for seed in range(1, seeds)}
    return keys


def vars_of(spec: TrialSpec) -> dict:
    """The fields of a trial."""
    return {name: getattr(spec, name) for name in ("original", "detection", "deletion_size", "method", "keep", "held_out")}


@pytest.mark.parametrize(
    "sections",
    [
        {"search": {"seeds": "first"}},
        {"search": {"seeds": "all"}},
        {"search": {"seeds": "each"}},
        {"search": {"scope": "across_fractions", "objective": "rem_proxy"}},
        {"search": {"defender": True, "objective": "defender"}},
        {"seeds": [0]},
    ],
    ids=str,
)
def test_the_best_point_alone_is_repeated_on_the_first_reported_seed_at_every_fraction(sections):
    everything = made({"unlearning_seeds": 4, **BOTH}, **sections)
    expected = None
    for seed in range(4):
        known, trace = run(everything, workers=1 + seed, seed=seed)
        got = [spec.key for spec in repeated(trace.trials)]
        assert len(got) == len(set(got))
        assert set(got) == expected_repetitions(everything, known, 4)
        expected = expected or set(got)
        assert set(got) == expected, "depends on the order in which trials end"
        assert {spec.unlearning_seed for spec in repeated(trace.trials)} == {1, 2, 3}
        assert not any(spec.held_out or control_of(spec) for spec in repeated(trace.trials))
        plain = {spec.key for spec in trace.trials if not spec.unlearning_seed}
        assert plain == {spec.key for spec in run(made(BOTH, **sections), workers=2, seed=9)[1].trials}


def test_repetitions_come_after_their_study_and_wait_for_no_other():
    _, trace = run(made({"unlearning_seeds": 2}, search={"seeds": "all"}), workers=2, seed=3)
    searched = Counter()
    for spec in trace.trials:
        cell = (name_of(spec.method), spec.deletion_size)
        if spec.unlearning_seed:
            assert searched[cell] == {"scrub": 5, "ssd": 4, "bad_teaching": 1}[cell[0]] * 2
        else:
            searched[cell] += 1


def test_a_repetition_shares_no_memo_with_another_seed():
    _, trace = run(made({"unlearning_seeds": 3}))
    groups = {}
    for spec in trace.trials:
        if name_of(spec.method) == "ssd":
            groups.setdefault(memo_group(spec), set()).add(spec.unlearning_seed)
    assert all(len(seeds) == 1 for seeds in groups.values())
    assert {next(iter(seeds)) for seeds in groups.values()} == {0, 1, 2}


def test_nothing_is_repeated_where_nothing_went_well():
    def no_scrub(job):
        return fails(job) if job.kind == "trial" and name_of(job.spec.method) == "scrub" else record_of(job)

    _, trace = run(made({"unlearning_seeds": 2}), outcome=no_scrub)
    assert {name_of(spec.method) for spec in repeated(trace.trials)} == {"ssd", "bad_teaching"}


def test_a_failed_repetition_is_a_row_and_takes_nothing_from_what_is_reported(tmp_path):
    everything = made({"unlearning_seeds": 2})

    def only_repetitions_fail(job):
        return fails(job) if job.kind == "trial" and job.spec.unlearning_seed else record_of(job)

    tables.write(tmp_path, everything, run(everything, outcome=only_repetitions_fail)[0])
    best, trials = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("best", "trials"))
    assert set(trials[trials["unlearning_seed"] > 0]["status"]) == {"failed"}
    reported = best[(best["method"] != "no_unlearning") & (best["rule"] == "oracle_validation")]
    assert (reported["n"] > 0).all()
    assert (reported["num_trials_failed"] == 1).all()


def test_repetitions_are_rows_of_trials_and_are_never_reported(done):
    assert set(done.trials["unlearning_seed"]) == {0, 1, 2}
    again = done.trials[done.trials["unlearning_seed"] > 0]
    assert len(again) == 2 * 2 * 3  # further seeds x fractions x methods
    assert again["study_key"].notna().all()
    assert not set(again["trial_key"]) & {key for keys in done.best["trial_keys"] for key in keys}
    plain = made({"never_manipulated": True, "trigger_only": True}, seeds=[0, 1, 2])
    assert {study.key for study in plain.studies} == {study.key for study in done.plan.studies}


def test_more_unlearning_seeds_run_only_the_further_ones(tmp_path):
    with Ledger(tmp_path / "ledger") as journal:
        play(agenda_of(made({"unlearning_seeds": 2}), journal), workers=2, seed=1)
    with Ledger(tmp_path / "ledger") as journal:
        before = set(journal.known.trials)
        trace = play(agenda_of(made({"unlearning_seeds": 4}), journal), workers=2, seed=2)
    assert trace.trials == repeated(trace.trials)
    assert {spec.unlearning_seed for spec in trace.trials} == {2, 3}
    known = ledger.read(tmp_path / "ledger")
    assert set(known.trials) == before | {spec.key for spec in trace.trials}
    assert run(made({"unlearning_seeds": 4}), known)[1].started == []
    assert run(made({"unlearning_seeds": 1}), known)[1].started == []


def test_a_sweep_interrupted_anywhere_goes_on_with_its_repetitions():
    everything = made({"unlearning_seeds": 3, **BOTH})
    whole, trace = run(everything)
    for kill_after in range(0, len(trace.ended), 7):
        journal = ReadOnlyJournal(Known())
        first = play(agenda_of(everything, journal), workers=3, seed=kill_after, kill_after=kill_after)
        rest = play(agenda_of(everything, journal), workers=2, seed=kill_after)
        assert set(journal.known.trials) == set(whole.trials)
        assert not {job.key for job in first.ended} & set(rest.keys)


def test_plan_counts_controls_and_repetitions_before_while_and_after_they_run():
    everything = made({"unlearning_seeds": 3, **BOTH}, search={"seeds": "all"})
    journal = ReadOnlyJournal(Known())
    agenda = agenda_of(everything, journal)
    searched, fractions, seeds = {"scrub": 5, "ssd": 4, "bad_teaching": 1}, 2, 2
    by_method = {name: points * fractions * seeds + 2 * fractions for name, points in searched.items()}
    before = estimate(everything, agenda, journal.known)
    assert before.by_method == {**by_method, "no_unlearning": seeds + 2 * seeds}
    assert (before.originals, before.trials_done) == (3 * seeds, 0)
    play(agenda, workers=2, seed=1, kill_after=40)
    while_running = estimate(everything, agenda_of(everything, journal), journal.known)
    assert while_running.by_method == before.by_method
    play(agenda_of(everything, journal))
    after = estimate(everything, agenda_of(everything, journal), journal.known)
    assert after.by_method == before.by_method
    assert after.trials == after.trials_done == sum(by_method.values()) + 6


# ----------------------------------------------------------------------------------------------------- earlier results


def without_the_new_fields(record):
    """The record as an earlier version wrote it."""
    values = json.loads(json.dumps(record.to_json()))
    values["spec"].pop("unlearning_seed", None)
    return type(record)(**values)


def test_an_earlier_ledger_stays_valid_and_is_still_tabulated(tmp_path):
    plain = made()
    known, _ = run(plain)
    old = Known(
        known.originals, {key: without_the_new_fields(record) for key, record in known.trials.items()}, known.points, known.code
    )
    more = made({"unlearning_seeds": 2, **BOTH})
    both, trace = run(more, old)
    assert all(spec.unlearning_seed or control_of(spec) for spec in trace.trials)
    tables.write(tmp_path, more, both)
    trials = pd.read_parquet(tmp_path / "trials.parquet").set_index("trial_key").loc[list(known.trials)]
    assert set(trials["unlearning_seed"]) == {0}
    assert trials["control"].isna().all()
    assert json.loads(trials["manipulation_settings"].iloc[0])["position"] == "bottom_right"


# ----------------------------------------------------------------------------------------------------------- complaints


def faults_of(**sections) -> list[str]:
    """What is wrong with such a file."""
    with pytest.raises(Faults) as caught:
        config.parse(sweep_file({"no_unlearning": {}}, **sections))
    return caught.value.faults


def test_a_control_that_no_manipulation_has_is_refused():
    confusion = {"name": "interclass_confusion", "size": 100}
    found = {"name": "from_file", "file": str(CSV)}
    assert len(config.parse(sweep_file({"no_unlearning": {}}, manipulation=KINDS, controls=BOTH)).manipulations) == 2
    (fault,) = faults_of(manipulation=confusion, controls=BOTH)
    assert fault.startswith("controls.trigger_only (line ")
    assert "none of the manipulations has a trigger" in fault
    one = faults_of(manipulation=found, controls={"never_manipulated": True}, deletion_fractions=[1.0])
    assert len(one) == 1
    assert one[0].startswith("controls.never_manipulated (line ")
    assert "true labels are not known" in one[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"unlearning_seeds": 0}, "at least 1"),
        ({"unlearning_seeds": True}, "an integer"),
        ({"never_manipulated": 1}, "true or false"),
        ({"trigger": True}, "Did you mean 'trigger_only'?"),
    ],
)
def test_a_wrong_control_is_one_message(given, expected):
    (fault,) = faults_of(controls=given)
    assert fault.startswith(f"controls.{next(iter(given))} (line ")
    assert expected in fault


def test_a_manipulation_that_is_wrong_itself_is_not_blamed_for_a_control():
    (fault,) = faults_of(manipulation={"name": "backdoor", "size": 100, "target": "x"}, controls=BOTH)
    assert fault.startswith("manipulation.target")
