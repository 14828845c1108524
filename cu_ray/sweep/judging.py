"""What the points of a study are worth under a selection rule, from the scores of their trials. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cu_ray.selection import RULES, Parts
from cu_ray.sweep.plan import Hyperparameters, StudySpec
from cu_ray.types import Record, Scores


def point_score(spec: StudySpec, hyperparameters: Hyperparameters, trials: Mapping[str, Record], rule_name: str) -> float | None:
    """A point's score under a rule; None where one of its trials failed or the rule has no score.

    Over the search seeds the mean, over the fractions the mean or the least.
    """
    rule = RULES[rule_name]
    return _over_trials(spec, hyperparameters, trials, rule.held_out, rule.score)


def point_parts(spec: StudySpec, hyperparameters: Hyperparameters, trials: Mapping[str, Record], rule_name: str) -> Parts | None:
    """The two parts of a rule's score, each taken over the point's trials as `point_score` takes the whole."""
    rule = RULES[rule_name]

    def part(place: int) -> float | None:
        def judge(scores: Scores, num_classes: int) -> float | None:
            parts = rule.parts(scores, num_classes)
            return None if parts is None else parts[place]

        return _over_trials(spec, hyperparameters, trials, rule.held_out, judge)

    correction, utility = part(0), part(1)
    return None if correction is None or utility is None else (correction, utility)


def _over_trials(
    spec: StudySpec,
    hyperparameters: Hyperparameters,
    trials: Mapping[str, Record],
    held_out: bool,
    judge: Callable[[Scores, int], float | None],
) -> float | None:
    by_seed = []
    for setting in spec.search_settings:
        by_fraction = []
        for fraction in spec.fractions or (None,):
            if held_out and not spec.holds_out_at(fraction):
                return None
            record = trials.get(spec.trial(hyperparameters, setting, fraction, held_out=held_out).key)
            score = judge(record.scores, record.facts["num_classes"]) if record is not None and record.ok else None
            if score is None:
                return None
            by_fraction.append(score)
        whole = min(by_fraction) if spec.search.aggregate == "min" else sum(by_fraction) / len(by_fraction)
        by_seed.append(whole)
    return sum(by_seed) / len(by_seed)


def best_point(spec: StudySpec, points: Sequence[Hyperparameters], trials: Mapping[str, Record], rule_name: str) -> int | None:
    """The index of the best point under a rule, the first of equals (to 1e-12); None where no point has a score.

    The only point of a study needs no score to be the best.
    """
    if not spec.method.has_choice:
        return 0 if points else None
    scores = [point_score(spec, point, trials, rule_name) for point in points]
    ranked = [(round(score, 12), -index) for index, score in enumerate(scores) if score is not None]
    return -max(ranked)[1] if ranked else None
