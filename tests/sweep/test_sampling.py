"""The next point of a study: within its ranges, well spread or learned, a function of its arguments alone."""

from __future__ import annotations

import functools
import math

import numpy as np
import optuna
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from cu_ray.sweep import sampling
from tests.sweep.simulator import SCRUB, plan

SEARCHED = ("tpe", "random", "qmc", "gp", "nsga2")
RANGES = {
    "alpha": {"low": 0.001, "high": 10, "log": True},
    "lr": {"low": 0.01, "high": 0.02},
    "msteps": {"low": 0, "high": 3},
    "steps": {"low": 1, "high": 1000, "log": True},
    "temperature": [1, 2.5, 4],
}


@functools.cache
def ranged(sampler: str):
    """A study over floats, integers, logarithms and options."""
    return plan({"scrub": {**RANGES, "sampler": sampler, "trials": 200}}).studies[0]


def study_of(method: str, given: dict, **sections):
    return plan({method: given}, **sections).studies[0]


def drawn(study, count: int, score=lambda point: None) -> list[dict]:
    """The first points of a study whose results are those of a function."""
    points: list[dict] = []
    for index in range(count):
        results = [told(study, score(point)) for point in points[: sampling.results_needed(study, index)]]
        points.append(sampling.point(study, index, points, results))
    return points


def told(study, score):
    """The result of a point: the same number twice for a sampler of two objectives."""
    return (score, score) if score is not None and study.num_objectives == 2 else score


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
@pytest.mark.parametrize("lag", [1, 4])
def test_a_memory_changes_no_point_wherever_it_begins(sampler, lag):
    """Nor does a point that was not asked for here: of the ledger, or the best of a neighbour."""
    count = 24 if sampler == "gp" else 50
    study = study_of("scrub", {**RANGES, "sampler": sampler, "trials": count}, search={"lag": lag})
    memory, points = sampling.Memory(), []
    for index in range(count):
        scores = [None if number % 5 == 2 else told(study, points[number]["alpha"]) for number in range(len(points))]
        known = scores[: sampling.results_needed(study, index)]
        alone = sampling.point(study, index, points, known)
        if index in (0, 13):  # written before
            points.append({**alone, "alpha": 0.123})
            continue
        if index == count // 2:
            memory = sampling.Memory()  # the driver was killed here
        points.append(sampling.point(study, index, points, known, memory))
        assert points[-1] == alone


# --------------------------------------------------------------------------------------------------------------- ranges


@settings(max_examples=40, deadline=None, database=None)
@given(sampler=st.sampled_from(SEARCHED), index=st.integers(0, 199))
def test_every_value_is_in_its_range_and_of_its_type(sampler, index):
    point = sampling.point(ranged(sampler), index, [], [])
    assert 0.001 <= point["alpha"] <= 10
    assert 0.01 <= point["lr"] <= 0.02
    assert point["msteps"] in range(4)
    assert point["steps"] in range(1, 1001)
    assert point["temperature"] in (1.0, 2.5, 4.0)
    assert [type(point[name]) for name in RANGES] == [float, float, int, int, float]


@pytest.mark.parametrize("sampler", SEARCHED)
def test_both_ends_of_an_integer_range_and_every_option_occur(sampler):
    points = drawn(ranged(sampler), 64)
    assert {point["msteps"] for point in points} == {0, 1, 2, 3}
    assert {point["temperature"] for point in points} == {1.0, 2.5, 4.0}


@pytest.mark.parametrize("sampler", SEARCHED)
def test_a_logarithmic_range_is_covered_decade_by_decade(sampler):
    points = drawn(ranged(sampler), 64)
    for name, low, decades in (("alpha", -3, 4), ("steps", 0, 3)):
        shares = np.bincount([min(int(math.log10(point[name]) - low), decades - 1) for point in points]) / 64
        assert all(shares > 0.25 / decades)


@pytest.mark.parametrize("sampler", SEARCHED)
def test_null_is_an_option_like_any_other(sampler):
    study = study_of("catastrophic_forgetting", {"k": [None, 2, 4], "lr": [None, 0.1], "sampler": sampler, "trials": 40})
    points = drawn(study, 40, lambda point: 1.0)
    assert {point["k"] for point in points} == {None, 2, 4}
    assert {point["lr"] for point in points} == {None, 0.1}


def test_the_null_of_an_alternative_stays_fixed():
    study = study_of("ssd", {"selection_weight": {"low": 0.1, "high": 10, "log": True}, "sampler": "random"})
    assert all(point["selection_share"] is None and point["selection_weight"] > 0 for point in drawn(study, 5))


def test_a_grid_takes_all_combinations_the_last_hyperparameter_fastest():
    study = study_of("scrub", {**SCRUB, "alpha": [1, 2], "msteps": [0, 5, 9], "sampler": "grid"})
    assert study.method.budget == 6
    chosen = [(point["alpha"], point["msteps"]) for point in drawn(study, 6)]
    assert sorted(chosen) == chosen == [(alpha, msteps) for alpha in (1.0, 2.0) for msteps in (0, 5, 9)]


def test_explicit_points_come_as_given_with_what_is_fixed():
    study = study_of("scrub", {"steps": 6, "points": [{"alpha": 5}, {"alpha": 0.1, "steps": 9}]})
    assert study.method.budget == 2
    assert [(point["alpha"], point["steps"], point["msteps"]) for point in drawn(study, 2)] == [(5.0, 6, 100), (0.1, 9, 100)]


@pytest.mark.parametrize("sampler", SEARCHED)
def test_what_is_fixed_is_part_of_every_point(sampler):
    study = study_of("scrub", {**SCRUB, "sampler": sampler})
    assert all({**SCRUB, "temperature": 4.0}.items() <= point.items() for point in drawn(study, 3))


def test_without_anything_to_search_there_is_one_point():
    study = study_of("scrub", {**SCRUB, "alpha": 1})
    assert study.method.budget == 1
    assert drawn(study, 1) == [{**SCRUB, "alpha": 1.0, "temperature": 4.0}]


# -------------------------------------------------------------------------------------------- a function of its arguments


@pytest.mark.parametrize("sampler", SEARCHED)
def test_the_same_question_has_the_same_answer(sampler):
    study = ranged(sampler)
    points = drawn(study, 14, lambda point: point["lr"])
    again = sampling.point(study, 13, points[:13], [told(study, point["lr"]) for point in points[:10]])
    assert again == points[13]


@pytest.mark.parametrize("sampler", SEARCHED)
def test_points_differ_from_index_to_index_and_from_study_to_study(sampler):
    sizes = (50, 100)
    studies = [
        study_of("scrub", {**SCRUB, "sampler": sampler}, manipulation={"name": "backdoor", "size": size}) for size in sizes
    ]
    alphas = [point["alpha"] for study in studies for point in drawn(study, 6)]
    assert len(set(alphas)) == 12


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_independent_samplers_look_at_no_earlier_point(sampler):
    study = ranged(sampler)
    assert sampling.results_needed(study, 50) == 0
    assert sampling.point(study, 5, [], []) == sampling.point(study, 5, drawn(study, 5), [0.1, 0.9])


def test_the_budget_is_no_part_of_a_point():
    for sampler in SEARCHED:
        few, many = (study_of("scrub", {**SCRUB, "sampler": sampler, "trials": trials}) for trials in (5, 50))
        assert drawn(few, 5) == drawn(many, 5)


@pytest.mark.parametrize(("lag", "needed"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 0, 1, 2, 3, 4]), (4, [0, 0, 0, 0, 1, 2])])
def test_point_n_needs_the_results_of_points_0_to_n_minus_lag(lag, needed):
    study = study_of("scrub", SCRUB, search={"lag": lag})
    assert [sampling.results_needed(study, index) for index in range(6)] == needed


# ------------------------------------------------------------------------------------------------------ what tpe is told


class Spy(optuna.samplers.RandomSampler):
    """A sampler that notes what it was made with and what it is told."""

    def __init__(self, seen: list, **how) -> None:
        super().__init__(seed=how["seed"])
        self.seen, self.how = seen, how

    def sample_independent(self, study, trial, name, distribution):
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        self.seen.append((self.how, [(each.state, each.value, each.params[name]) for each in others]))
        return super().sample_independent(study, trial, name, distribution)


@pytest.fixture
def tpe_told(monkeypatch) -> list:
    seen: list = []
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **how: Spy(seen, **how))
    return seen


def test_tpe_is_told_results_in_order_failures_as_the_worst_and_the_rest_as_running(tpe_told):
    earlier = [{"alpha": 1.0 + index} for index in range(5)]
    sampling.point(study_of("scrub", SCRUB), 5, earlier, [0.25, None])
    ((how, trials),) = tpe_told
    assert trials == [
        (TrialState.COMPLETE, 0.25, 1.0),
        (TrialState.PRUNED, None, 2.0),  # below every score; a FAIL would be forgotten
        (TrialState.RUNNING, None, 3.0),
        (TrialState.RUNNING, None, 4.0),
        (TrialState.RUNNING, None, 5.0),
    ]
    assert how["constant_liar"] is True


def test_each_ask_has_a_seed_of_its_own(tpe_told):
    study = study_of("scrub", SCRUB)
    for index in (0, 1, 0):
        sampling.point(study, index, [{"alpha": 1.0}] * index, [])
    first, second, again = (how["seed"] for how, _ in tpe_told)
    assert first == again != second


def test_options_are_told_by_their_place(tpe_told):
    study = study_of("catastrophic_forgetting", {"k": [4, None, 2]})
    sampling.point(study, 2, [{"k": None}, {"k": 2}], [0.5])
    ((_, trials),) = tpe_told
    assert [place for _, _, place in trials] == [1, 2]


def test_points_that_still_run_change_what_tpe_asks_for():
    study = study_of("scrub", SCRUB)
    points = drawn(study, 14, closeness)
    results = [closeness(point) for point in points[:11]]
    elsewhere = [*points[:11], *({**point, "alpha": 0.1} for point in points[11:])]
    assert sampling.point(study, 14, points, results) != sampling.point(study, 14, elsewhere, results)


# --------------------------------------------------------------------------------------------------------------- quality


def closeness(point) -> float:
    """Best, 0, at alpha 0.1."""
    return -(math.log10(point["alpha"] / 0.1) ** 2)


def distance(points) -> float:
    return float(np.mean([abs(math.log10(point["alpha"] / 0.1)) for point in points]))


def test_tpe_concentrates_near_the_optimum_and_random_does_not():
    far: dict[str, list[float]] = {"tpe": [], "random": []}
    for fraction in (0.1, 0.5, 1.0):
        for sampler, distances in far.items():
            points = drawn(study_of("scrub", {**SCRUB, "sampler": sampler}, deletion_fractions=[fraction]), 40, closeness)
            distances.append(distance(points[20:]))
            assert sampler == "random" or max(map(closeness, points)) > -0.01
    assert np.mean(far["tpe"]) < 0.7 * np.mean(far["random"])


def test_tpe_keeps_away_from_where_points_fail():
    failing = {"tpe": 0, "random": 0}
    for sampler in failing:
        for fraction in (0.1, 0.5, 1.0):
            study = study_of("scrub", {**SCRUB, "sampler": sampler}, deletion_fractions=[fraction])
            points = drawn(study, 40, lambda point: None if point["alpha"] > 1 else math.log10(point["alpha"]))
            failing[sampler] += sum(point["alpha"] > 1 for point in points[10:])
    assert (
        failing["tpe"] < 2 * failing["random"]
    )  # the best is at the edge; were failures forgotten, most points would fall beyond


def test_gp_finds_the_optimum_with_few_points():
    points = drawn(study_of("scrub", {**SCRUB, "sampler": "gp"}), 18, closeness)
    assert max(map(closeness, points)) > -1e-3
    assert distance(points[13:]) < 0.5 * distance(points[:10])


def test_nsga2_spreads_over_the_front_of_two_objectives():
    """Correction rises with alpha and utility falls with it: a front. Both fall with the distance of the temperature from 3."""

    def objectives(point) -> tuple[float, float]:
        exponent, off = math.log10(point["alpha"]), abs(point["temperature"] - 3)
        return exponent - 5 * off, -exponent - 5 * off

    ranges = {"alpha": RANGES["alpha"], "temperature": {"low": 1.0, "high": 5.0}}
    study = study_of("scrub", {**SCRUB, **ranges, "sampler": "nsga2"})
    points: list[dict] = []
    for index in range(112):
        results = [objectives(point) for point in points[: sampling.results_needed(study, index)]]
        points.append(sampling.point(study, index, points, results))
    off = [abs(point["temperature"] - 3) for point in points]
    assert np.mean(off[80:]) < 0.7  # 1 for random ones
    late = [math.log10(point["alpha"]) for point in points[80:]]
    assert min(late) < -2 < 0 < max(late)


def test_generations_of_nsga2_begin_when_enough_of_the_last_are_known_to_have_succeeded():
    population, lag = sampling.POPULATION, 4
    assert sampling._generations([(0.5, 0.5)] * 40, lag) == [0] * (population + lag - 1) + [1] * (population + lag - 1) + [2] * 2
    failing = [None if number % 2 else (0.5, 0.5) for number in range(40)]
    assert sampling._generations(failing, lag).index(1) == 2 * (population - 1) + lag


def test_tpe_goes_where_the_score_is_high_not_low():
    study = study_of("scrub", SCRUB)
    up, down = (drawn(study, 30, lambda point, sign=sign: sign * math.log10(point["alpha"])) for sign in (1, -1))
    assert np.mean([math.log10(point["alpha"]) for point in up[15:]]) > 0
    assert np.mean([math.log10(point["alpha"]) for point in down[15:]]) < -2


@pytest.mark.parametrize("dimensions", [1, 2])
def test_qmc_points_are_spread_better_than_random_ones(dimensions):
    ranges = {"alpha": {"low": 0.0, "high": 1.0}, "temperature": {"low": 1.0, "high": 2.0}}
    names = list(ranges)[:dimensions]
    spread = {}
    for sampler in ("qmc", "random"):
        study = study_of("scrub", {**SCRUB, **{name: ranges[name] for name in names}, "sampler": sampler})
        points = drawn(study, 32)
        unit = np.array([[point[name] - ranges[name]["low"] for name in names] for point in points])
        spread[sampler] = scipy.stats.qmc.discrepancy(unit)
    assert spread["qmc"] < 0.5 * spread["random"]


def test_qmc_points_are_one_sobol_sequence():
    study = study_of("scrub", {**SCRUB, "alpha": {"low": 0.0, "high": 1.0}, "sampler": "qmc"})
    cells = sorted(int(16 * point["alpha"]) for point in drawn(study, 16))
    assert cells == list(range(16))
