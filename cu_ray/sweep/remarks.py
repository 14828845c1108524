"""What a reader of a sweep's results should know before trusting them: badly placed ranges, trials that are left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cu_ray.config import MOST_SEED, Options, Space
from cu_ray.plugins import name_of
from cu_ray.selection import Rule
from cu_ray.sweep.judging import best_point
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import Hyperparameters, Plan, StudySpec
from cu_ray.types import Record

NEAR = 0.02  # of a range: closer to its end is at its edge


def remarks(plan: Plan, known: Known) -> list[str]:
    """A line for methods that changed nothing or of which no point was chosen, and for best values that lie at an edge."""
    searched, unchanged, unchosen = Counter[str](), Counter[str](), Counter[str]()
    edges = Counter[tuple[str, str, str]]()
    for study in plan.studies:
        points = known.points_of(study.key, study.method.budget)
        trials = [trial.key for point in points for trial in study.trials(point, study.search_settings)]
        if not study.method.has_choice or len(points) < study.method.budget or not known.trials.keys() >= set(trials):
            continue
        method = name_of(study.method.cls)
        searched[method] += 1
        records = [known.trials[key] for key in trials]
        unchanged[method] += _changed_nothing(records)
        best = best_point(study, points, known.trials, study.search.objective)
        for name, edge in edges_of(study, points[best]).items() if best is not None else ():
            edges[method, name, edge] += 1
        told = any(not record.ok for record in records) or any(_lacks(study, study.search.rules[0]))
        unchosen[method] += best is None and not told
    lines = [
        f"{method}: no point changed the model in {count} of {searched[method]} studies: its ranges do not fit"
        for method, count in unchanged.items()
        if count
    ]
    lines += [
        f"{method}: no point has a score under the rule of the search in {count} of {searched[method]} studies: none is chosen"
        for method, count in unchosen.items()
        if count
    ]
    return lines + [
        f"{method}: the best {name} lies at the {edge} end of its range in {count} of {searched[method]} studies"
        for (method, name, edge), count in edges.items()
    ]


def without_choice(plan: Plan) -> list[str]:
    """A line for each rule that is asked for and has no choice somewhere, as it lacks there what it needs: known before a run."""
    places: dict[str, dict[str, None]] = {}
    for study in plan.studies:
        for rule in study.search.rules if study.method.has_choice else ():
            for lack, place in _lacks(study, rule):
                places.setdefault(f"the rule {rule.name} needs {lack}", {})[place] = None
    return [f"{need} {', '.join(those)}" for need, those in places.items()]


def _lacks(study: StudySpec, rule: Rule) -> Iterator[tuple[str, str]]:
    """What a rule lacks in a study so that it has no choice, and where."""
    manipulation = study.settings[0].manipulation
    for fraction in study.fractions or (None,):
        found = 0 if fraction is None else study.size(fraction)
        lack = rule.lacks(found, manipulation.truth_known)
        if lack is None:
            continue
        if rule.needs_truth:
            yield f"{lack}: no choice with", name_of(manipulation)
        elif fraction is None:
            yield f"{lack}: no choice for methods that do not look at them, like", name_of(study.method.cls)
        else:
            where = "over deletion fractions that include" if len(study.fractions) > 1 else "at deletion fraction"
            yield f"{lack}: no choice {where}", f"{fraction:g} ({found} found)"


def others(num_others: int) -> list[str]:
    """A line where the ledger has finished trials of another sweep file, or of this one before it was changed."""
    if not num_others:
        return []
    return [
        f"trials kept here but not asked for now, so in trials.parquet only (another or changed file, --only): {num_others:,}"
    ]


def left_out(known: Known) -> list[str]:
    """A line where the ledger has records that are in no table."""
    number = sum(not has_a_place(record) for record in (*known.trials.values(), *known.originals.values()))
    return [f"trials and originals of seeds of 2^63 or more, which no table holds, so left out: {number:,}"] if number else []


def has_a_place(record: Record) -> bool:
    """Whether tables can hold the seed of a trial or an original: earlier versions allowed larger ones."""
    return bool(record.spec.get("original", record.spec)["setting"]["seed"] <= MOST_SEED)


def edges_of(study: StudySpec, hyperparameters: Hyperparameters) -> dict[str, str]:
    """The searched hyperparameters that lie at an end of their range: 'lower' or 'upper' by name.

    Of listed values only numbers have ends, and only three or more are a range.
    """
    found = {}
    for name, space in study.method.space.items() if study.method.points is None else ():
        place = _place(space, hyperparameters[name])
        if place is not None and (place <= NEAR or place >= 1 - NEAR):
            found[name] = "lower" if place <= NEAR else "upper"
    return found


def _place(space: Space, value: Any) -> float | None:
    """Where in its space a value lies, from 0 to 1; None where that has no meaning."""
    if isinstance(space, Options):
        numbers = [each for each in space.values if isinstance(each, (int, float)) and not isinstance(each, bool)]
        few = len(numbers) < 3 or len(numbers) < len(space.values)
        return None if few else sorted(numbers).index(value) / (len(numbers) - 1)
    if space.log:
        return math.log(value / space.low) / math.log(space.high / space.low)
    return float((value - space.low) / (space.high - space.low))


def _changed_nothing(trials: Sequence[Record]) -> bool:
    """Whether trials succeeded and none of them changed a parameter."""
    shares = [record.facts.get("changed_share") for record in trials if record.ok]
    return bool(shares) and not any(shares)
