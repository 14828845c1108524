"""What a sweep consists of, what its keys depend on, and what it comes to before, while and after it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from cu_ray.errors import Faults, UserError
from cu_ray.plugins import name_of
from cu_ray.stages.poison import num_held_out_of
from cu_ray.sweep.agenda import Agenda, Job
from cu_ray.sweep.estimate import ReadOnlyJournal, estimate
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import memo_cost, memo_group, num_memos, trial_cost, typical_point
from cu_ray.types import Cost, OriginalSpec, Sizes, TrialSpec
from tests.sweep.own_plugins import Costless
from tests.sweep.simulator import NUM_TRAIN, SCRUB, SSD_GRID, agenda_of, fails, fails_sometimes, plan, play, record_of, run

OWN = "tests.sweep.own_plugins:OtherOriginal"
GRID = {**SCRUB, "alpha": [0.1, 1, 10], "sampler": "grid"}
COUNTED = {"no_unlearning": {}, "scrub": GRID, "exact_unlearning": {"steps": 8}, "ssd": SSD_GRID}


def counted(methods=None, **sections):
    return plan(methods or COUNTED, **{"seeds": [0, 1], "deletion_fractions": [0.1, 0.5], "search": {"seeds": "all"}} | sections)


def test_a_method_that_does_not_say_what_it_costs_is_a_mistake_of_its_author():
    with pytest.raises(UserError, match=r"Costless does not say what a trial costs: it needs a `cost`"):
        Costless().cost(Sizes(deletion=1, retain=1, batch_size=1, train_steps=1))


# -------------------------------------------------------------------------------------------------------------- structure


def test_there_is_a_study_for_each_setting_method_and_fraction():
    made = plan(
        {"no_unlearning": {}, "scrub": SCRUB, "ssd": {}},
        model={"name": "resnet9", "width": [2, 4]},
        manipulation=[{"name": "backdoor", "size": [50, 100]}, {"name": "random_label_swap", "size": 100}],
        train={"steps": 20, "batch_size": 16, "lr": [0.1, 0.01]},
        deletion_fractions=[0.1, 0.5, 1.0],
        seeds=[0, 1, 2, 3],
    )
    settings = 2 * 3 * 2
    by_method = Counter(name_of(study.method.cls) for study in made.studies)
    assert by_method == {"no_unlearning": settings, "scrub": 3 * settings, "ssd": 3 * settings}
    assert len(made.originals()) == 4 * settings
    assert len({study.key for study in made.studies}) == len(made.studies)


def test_across_fractions_there_is_one_study_of_them_all():
    made = plan({"scrub": SCRUB, "no_unlearning": {}}, deletion_fractions=[0.1, 0.5], search={"scope": "across_fractions"})
    assert [study.fractions for study in made.studies] == [(0.1, 0.5), ()]


def test_a_search_on_each_seed_is_a_study_for_each_seed():
    made = plan({"scrub": SCRUB, "exact_unlearning": {}}, seeds=[0, 1, 2], search={"seeds": "each"})
    seeds = [[setting.seed for setting in study.settings] for study in made.studies]
    assert seeds == [[0], [1], [2], [0, 1, 2]]
    assert all(not study.confirm_settings for study in made.studies)


def test_a_method_with_a_variant_of_the_original_has_originals_of_its_own():
    made = plan({"scrub": SCRUB, OWN: {}, "no_unlearning": {}}, seeds=[0, 1])
    assert Counter(spec.variant for spec in made.originals()) == {(): 2, (("example_tied_dropout", 0.4),): 2}


def test_a_variant_that_no_training_knows_is_named_before_anything_runs():
    with pytest.raises(Faults, match=r"original_variant has 'example_tied_dropuot', known is 'example_tied_dropout' alone"):
        plan({"tests.sweep.own_plugins:UnknownVariant": {}})


def test_auto_precision_is_what_it_means_here_and_another_stays():
    resolved, given = (
        plan({"scrub": SCRUB}, train={"steps": 20, "batch_size": 16, "precision": precision}).studies[0].settings[0]
        for precision in ("auto", "bf16")
    )
    assert (resolved.train.precision, given.train.precision) == ("fp32", "bf16")


def test_trials_of_a_point_are_one_a_seed_and_fraction_and_one_more_where_a_part_is_held_out():
    made = plan(
        {"scrub": SCRUB}, seeds=[0, 1], deletion_fractions=[0.1, 0.5], search={"defender": True, "scope": "across_fractions"}
    )
    (study,) = made.studies
    trials = study.trials({**SCRUB, "alpha": 1.0, "temperature": 4.0}, study.settings)
    found = [(trial.original.setting.seed, trial.deletion_size, trial.held_out) for trial in trials]
    assert found == [(seed, *rest) for seed in (0, 1) for rest in ((10, False), (50, False), (50, True))]
    assert len({trial.key for trial in trials}) == 6


@pytest.mark.parametrize(("size", "held_out"), [(1, 0), (10, 0), (22, 0), (25, 5), (50, 10), (100, 20)])
def test_a_fifth_is_held_out_where_that_is_at_least_five(size, held_out):
    assert num_held_out_of(size) == held_out
    (study,) = plan({"scrub": SCRUB}, deletion_fractions=[size / 100], search={"defender": True}).studies
    assert study.holds_out_at(size / 100) == (held_out > 0)


def test_a_method_that_ignores_the_deletion_set_has_nothing_held_out():
    (study,) = plan({"no_unlearning": {}}, search={"defender": True}).studies
    (trial,) = study.trials({}, study.settings)
    assert (trial.deletion_size, trial.held_out) == (0, False)


# ------------------------------------------------------------------------------------------------------------------ keys


BASE = {"methods": {"scrub": {**SCRUB, "trials": 5}}, "seeds": [0, 1]}


def key_with(**changes) -> str:
    sections = {**BASE, **changes}
    return plan(sections.pop("methods"), **sections).studies[0].key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"runtime": {"workers": 3, "output": "elsewhere"}},
        {"methods": {"scrub": {**SCRUB, "trials": 50}}},
        {"methods": {"scrub": {**SCRUB, "trials": 5}, "ssd": {}}},
        {"search": {"trials": 9}},
        {"seeds": [0, 1, 2]},
        {"deletion_fractions": [0.5, 1.0]},
        {"methods": {"scrub": {**SCRUB, "alpha": {"low": 0.001, "high": 10, "log": True}, "trials": 5}}},
    ],
)
def test_the_study_key_does_not_depend_on(changes):
    assert key_with(**changes) == key_with()


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {"scrub": {**SCRUB, "sampler": "random"}}},
        {"methods": {"scrub": {**SCRUB, "alpha": {"low": 0.001, "high": 1, "log": True}}}},
        {"methods": {"scrub": {**SCRUB, "alpha": {"low": 0.001, "high": 10}}}},
        {"methods": {"scrub": {**SCRUB, "steps": 7}}},
        {"methods": {"scrub": {**SCRUB, "keep": "best_on_test"}}},
        {"search": {"objective": "published"}},
        {"search": {"scope": "across_fractions"}},
        {"search": {"lag": 2}},
        {"search": {"seeds": "all"}},
        {"search": {"defender": True}},
        {"seeds": [1, 0]},
        {"manipulation": {"name": "backdoor", "size": 90}},
        {"deletion_fractions": [1.0]},
        {"model": {"name": "resnet9", "width": 3}},
        {"train": {"steps": 21, "batch_size": 16}},
    ],
)
def test_the_study_key_depends_on(changes):
    assert key_with(**changes) != key_with()


def test_what_an_across_fractions_study_averages_over_is_part_of_its_key():
    across = {"scope": "across_fractions"}
    keys = [
        key_with(search=across, deletion_fractions=[0.5]),
        key_with(search=across, deletion_fractions=[0.5, 1.0]),
        key_with(search={**across, "aggregate": "min"}, deletion_fractions=[0.5, 1.0]),
    ]
    assert len(set(keys)) == 3


def test_a_trial_key_depends_on_its_own_values_and_not_on_how_it_was_found():
    first = plan({"scrub": {**SCRUB, "points": [{"alpha": 1}]}}).studies[0]
    other = plan({"scrub": {**GRID, "alpha": [1.0, 2.0]}}, name="another", search={"lag": 1, "seeds": "all"}).studies[0]
    assert keys_of(first, {"alpha": 1}) == keys_of(other, {"alpha": 1.0})
    assert keys_of(first, {"alpha": 1}) != keys_of(other, {"alpha": 2.0})
    assert keys_of(first, {"alpha": 1}) != keys_of(plan({"scrub": SCRUB}, seeds=[1]).studies[0], {"alpha": 1})


def keys_of(study, point) -> list[str]:
    return [trial.key for trial in study.trials({**SCRUB, **point}, study.settings[:1])]


# ------------------------------------------------------------------------------------------------------- costs and memos


def test_a_trial_costs_what_its_method_says_of_the_sets_it_is_given():
    (study,) = plan({"catastrophic_forgetting": {"steps": 1000}}, search={"defender": True}).studies
    whole, held_out = study.trials({"k": None, "steps": 1000, "lr": None}, study.settings)
    for trial, deletion in ((whole, 50), (held_out, 40)):
        assert trial_cost(trial, NUM_TRAIN) == trial.method.cost(Sizes(deletion, NUM_TRAIN - 50, 16, 20))


def test_trials_share_a_memo_when_all_that_it_depends_on_is_the_same():
    made = plan({"ssd": {}, "scrub": SCRUB}, seeds=[0, 1], deletion_fractions=[0.5, 1.0], search={"defender": True})
    half, whole, scrub, _ = made.studies
    point = {"selection_share": 0.01, "selection_weight": None, "relative_dampening": 1.0, "importance_batch_size": 512}
    first, second = half.settings
    group = memo_group(half.trial(point, first, 0.5))
    assert memo_group(half.trial({**point, "selection_share": 0.1, "relative_dampening": 0.5}, first, 0.5)) == group
    others = [
        half.trial({**point, "importance_batch_size": 64}, first, 0.5),
        half.trial(point, second, 0.5),
        half.trial(point, first, 0.5, held_out=True),
        whole.trial(point, first, 1.0),
    ]
    assert len({group, *map(memo_group, others)}) == 5
    assert memo_group(scrub.trial({**SCRUB, "alpha": 1.0}, first, 0.5)) is None


def test_a_typical_point_is_in_the_middle_of_its_ranges():
    ranges = {"alpha": {"low": 0.01, "high": 1, "log": True}, "msteps": {"low": 0, "high": 5}, "lr": [0.1, 0.2, 0.3], "steps": 6}
    point = typical_point(plan({"scrub": ranges}).studies[0])
    assert point["alpha"] == pytest.approx(0.1)
    assert (point["msteps"], type(point["msteps"]), point["lr"], point["steps"]) == (2, int, 0.2, 6)
    assert typical_point(plan({"scrub": {"points": [{"alpha": 7}, {"alpha": 8}]}}).studies[0])["alpha"] == 7


# --------------------------------------------------------------------------------------------------------------- counts


def passes(jobs: list[Job], ended: Sequence[Job] = ()) -> Cost:
    """What these jobs take after those: a memo once where none of those computed it."""
    cost, groups = Cost(), {memo_group(job.spec) for job in ended if isinstance(job.spec, TrialSpec)} - {None}
    for job in jobs:
        if isinstance(job.spec, OriginalSpec):
            recipe = job.spec.setting.train
            cost += Cost(recipe.steps * recipe.batch_size, recipe.steps * recipe.batch_size)
        else:
            group, memo = memo_group(job.spec), memo_cost(job.spec, NUM_TRAIN)
            cost += trial_cost(job.spec, NUM_TRAIN)
            cost = cost - memo if group in groups else cost
            groups |= {group} if group else set()
    return cost


def now(made, journal, agenda):
    return estimate(made, agenda, journal.known)


def test_counts_are_exact_before_while_and_after_a_sweep_runs():
    made, journal = counted(), ReadOnlyJournal(Known())
    all_jobs = run(made)[1].ended
    agenda, ended = agenda_of(made, journal), []
    while True:
        counts = now(made, journal, agenda)
        assert (counts.originals, counts.studies, counts.trials) == (2, 7, 2 + 3 * 4 + 4 + 4 * 4)
        assert counts.by_method == {"no_unlearning": 2, "scrub": 12, "exact_unlearning": 4, "ssd": 16}
        assert counts.originals_done == sum(job.kind == "original" for job in ended)
        assert counts.trials_done == sum(job.kind == "trial" for job in ended)
        left = [job for job in all_jobs if job.key not in {done.key for done in ended}]
        assert Cost(counts.images_forward, counts.images_backward) == passes(left, ended)
        if agenda.done:
            break
        ended.append(agenda.next())
        agenda.complete(record_of(ended[-1]))
    assert counts.trials == counts.trials_done == 34
    assert counts.images_forward == counts.images_backward == 0


@pytest.mark.parametrize(
    ("method", "memo", "rest"),
    [("salun", Cost(50, 50), (16 + 16 + 16 + 2) + 2 * 16), ("fine_pruning", Cost(NUM_TRAIN - 50), 6 * 16)],
    ids=["salun", "fine_pruning"],
)
def test_what_follows_a_memo_counts_for_each_trial_that_shares_it(method, memo, rest):
    made = plan({method: {"steps": 6, "lr": 0.01, "share": [0.2, 0.4, 0.6], "sampler": "grid"}}, seeds=[0])
    journal = ReadOnlyJournal(Known())
    agenda, by_hand = agenda_of(made, journal), 3 * rest
    for spent in (memo, memo, Cost()):  # before the original, before the first trial, after it
        counts = now(made, journal, agenda)
        original = 20 * 16 if counts.originals_done == 0 else 0
        assert (counts.images_forward, counts.images_backward) == (
            original + by_hand + spent.forward,
            original + by_hand + spent.backward,
        )
        job = agenda.next()
        agenda.complete(record_of(job))
        by_hand -= 0 if job.kind == "original" else rest
        assert job.images == (3 * 20 * 16 if job.kind == "original" else (spent + Cost(rest, rest)).passes)


def test_originals_that_the_store_has_from_another_sweep_are_looked_at_and_not_trained_and_the_store_is_asked_once():
    made, asked = counted(), []
    journal = ReadOnlyJournal(Known())
    there = made.originals()[0].key
    agenda = Agenda(made, journal, original_cached=lambda key: asked.append(key) or key == there)
    counts, without = now(made, journal, agenda), now(made, journal, agenda_of(made, journal))
    assert without.images_backward - counts.images_backward == made.originals()[0].images
    assert without.originals == counts.originals == counts.originals_done + 2
    assert [job.images for job in (agenda.next(), agenda.next())] == [3 * made.originals()[1].images, 0]
    assert sorted(asked) == sorted(spec.key for spec in made.originals())


def test_a_memo_of_a_trial_that_failed_is_still_to_be_paid_and_one_of_a_trial_that_did_not_is_not():
    made = plan({"ssd": SSD_GRID}, seeds=[0])
    memo = memo_cost(made.studies[0].trials(typical_point(made.studies[0]), made.studies[0].settings)[0], NUM_TRAIN)
    for outcome, expected in ((fails, memo.forward), (record_of, 0)):
        journal = ReadOnlyJournal(Known())
        agenda = agenda_of(made, journal)
        agenda.complete(record_of(agenda.next()))
        agenda.complete(outcome(agenda.next()))
        again = agenda_of(made, ReadOnlyJournal(journal.known))  # as another process sees it
        assert now(made, journal, agenda).images_forward == now(made, journal, again).images_forward == expected


@pytest.mark.parametrize(
    ("given", "memos"),
    [
        ({"trusted": {"low": 20, "high": 200}, "scaling": 100, "trials": 9, "sampler": "tpe"}, 9),
        ({"trusted": [20, 200], "scaling": {"low": 10, "high": 100}, "trials": 9, "sampler": "tpe"}, 2),
        ({"scaling": {"low": 10, "high": 100}, "trials": 9, "sampler": "tpe"}, 1),
        ({"trusted": [20, 200], "scaling": [10, 20, 30], "sampler": "grid"}, 2),
        ({"points": [{"trusted": 20}, {"trusted": 200}, {"trusted": 20, "scaling": 7}]}, 2),
    ],
)
def test_where_a_field_that_memos_depend_on_is_searched_each_value_has_one(given, memos):
    (study,) = plan({"sap": given}, seeds=[0]).studies
    assert num_memos(study.method) == memos


def test_all_memos_of_a_search_over_what_they_depend_on_are_counted():
    made = plan({"sap": {"trusted": {"low": 150, "high": 200}, "scaling": 100, "trials": 9, "sampler": "tpe"}}, seeds=[0])
    journal = ReadOnlyJournal(Known())
    before = now(made, journal, agenda_of(made, journal)).images_forward
    assert 20 * 16 + 9 * (NUM_TRAIN - 50 + 150) < before < 20 * 16 + 9 * (NUM_TRAIN - 50 + 200)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_counts_its_whole_budget_before_it_starts(sampler):
    made = plan({"scrub": {**SCRUB, "trials": 9, "sampler": sampler}, "ssd": {"trials": 5}}, deletion_fractions=[0.1, 0.5])
    journal = ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    before = now(made, journal, agenda)
    play(agenda, workers=3)
    after = now(made, journal, agenda)
    assert before.trials == after.trials == after.trials_done == 28
    assert before.by_method == after.by_method == {"scrub": 18, "ssd": 10}
    whole = passes(run(made)[1].ended)
    assert (before.images_forward, before.images_backward) == (whole.forward, whole.backward)


def test_a_search_with_confirmations_counts_two_chosen_points_before_and_those_chosen_after():
    made = plan({"scrub": {**SCRUB, "trials": 9}}, seeds=[0, 1, 2])
    journal = ReadOnlyJournal(Known())
    agenda = agenda_of(made, journal)
    assert now(made, journal, agenda).trials == 9 + 2 * 2
    play(agenda)
    after = now(made, journal, agenda)
    assert after.trials == after.trials_done == len(journal.known.trials) > 9 + 2
    assert after.originals == after.originals_done == 3


def test_images_never_grow_while_a_search_without_confirmations_runs():
    made = plan({"scrub": {**SCRUB, "trials": 6}, "ssd": {"trials": 4}}, deletion_fractions=[0.1, 0.5])
    journal = ReadOnlyJournal(Known())
    agenda, left = agenda_of(made, journal), []
    while not agenda.done:
        counts = now(made, journal, agenda)
        left.append(counts.images_forward + 2 * counts.images_backward)
        agenda.complete(record_of(agenda.next()))
    assert left == sorted(left, reverse=True)
    assert now(made, journal, agenda).images_forward == 0


def test_a_trial_that_two_studies_share_counts_once():
    again = {**SCRUB, "points": [{"alpha": 1}, {"alpha": 5}]}
    made = plan({"scrub": GRID, "cu_ray.methods.scrub:Scrub": again})
    journal = ReadOnlyJournal(Known())
    counts = now(made, journal, agenda_of(made, journal))
    assert (counts.trials, counts.by_method) == (4, {"scrub": 4})


def test_failed_trials_are_done_and_counted_apart():
    made = counted()
    known, _ = run(made, outcome=fails_sometimes(0.3))
    counts = estimate(made, agenda_of(made, ReadOnlyJournal(known)), known)
    assert counts.trials_failed == sum(not record.ok for record in known.trials.values()) > 0
    assert counts.trials_done == counts.trials == 34
    assert counts.images_forward == 0


def test_what_other_sweeps_left_in_the_ledger_is_not_counted():
    known, _ = run(counted())
    made = counted({"no_unlearning": {}, "scrub": {**GRID, "alpha": [0.1, 5]}}, seeds=[1])
    counts = estimate(made, agenda_of(made, ReadOnlyJournal(known)), known)
    assert (counts.originals, counts.originals_done, counts.trials, counts.trials_done) == (1, 1, 5, 3)


def test_a_preview_writes_nothing_into_what_it_is_given():
    known, _ = run(counted({"no_unlearning": {}}))
    before = (dict(known.trials), dict(known.points))
    agenda_of(counted(), ReadOnlyJournal(known))
    assert (known.trials, known.points) == before
