"""Whether the objective of a search can choose anything, by what its rule needs: known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cu_ray.config.sweep import MethodPlan, SearchSection
from cu_ray.plugins import name_of
from cu_ray.selection import RULES


@dataclass(frozen=True)
class Case:
    """A search for the best point: on what, at which deletion fraction (None: the method looks at none), and what is found."""

    manipulation: Any
    fraction: float | None
    num_found: int


def why_none(
    search: SearchSection,
    methods: Iterable[MethodPlan],
    manipulations: Sequence[Any],
    detections: Sequence[Any],
    fractions: Sequence[float],
) -> str | None:
    """Why the objective of a search chooses nothing in any case, and the rules that would; None where it can, or need not."""
    looking = {bool(method.cls.uses_deletion_set) for method in methods if method.has_choice}
    cases = [
        case
        for manipulation in manipulations
        for detection in detections
        for looks in looking
        for case in _cases(manipulation, detection, fractions if looks else (), search)
    ]
    if not cases:
        return None
    lacking = {
        name: [rule.lacks(case.num_found, case.manipulation.truth_known) for case in cases] for name, rule in RULES.items()
    }
    possible = ", ".join(name for name, lacks in lacking.items() if None in lacks)
    if None in lacking[search.objective]:
        return None
    best = max(cases, key=lambda case: (bool(case.manipulation.truth_known), case.num_found))
    lack = RULES[search.objective].lacks(best.num_found, best.manipulation.truth_known)
    if search.rules[0].needs_truth:
        there = f", which {name_of(best.manipulation)} does not know here"
    else:
        place = "" if best.fraction is None else f" at deletion fraction {best.fraction:g}"
        there = f";{place} there are {best.num_found}"
    return f"{search.objective} needs {lack}{there}. Possible here: {possible}"


def _cases(manipulation: Any, detection: Any, fractions: Sequence[float], search: SearchSection) -> Iterator[Case]:
    """One case for each fraction, or for all of them where points are scored over all: that in which least is found."""
    found = [Case(manipulation, each, detection.num_found(each, manipulation.size)) for each in fractions]
    if not found:
        yield Case(manipulation, None, 0)
    elif search.scope == "across_fractions":
        yield min(found, key=lambda case: case.num_found)
    else:
        yield from found
