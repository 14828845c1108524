"""One of several disjoint parts of a plan, for machines that have no Ray between them. Pure.

A search stays whole, since its later trials depend on earlier ones; a method without a choice is split by seeds. The pieces stand
in line, those of the same originals side by side, and the line is cut where the largest part is as small as it can be. An
original that has studies in two parts is trained for both, and counts in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cu_ray.sweep.agenda import StudyState
from cu_ray.sweep.estimate import trials_to_come, unlearning_costs
from cu_ray.sweep.plan import Plan, StudySpec
from cu_ray.types import OriginalSpec


@dataclass(frozen=True)
class _Piece:
    """Studies that stay together, the originals that they need, and the work of their trials in images."""

    studies: tuple[StudySpec, ...]
    originals: tuple[OriginalSpec, ...]
    images: int


def part_of(plan: Plan, number: int, count: int) -> Plan:
    """The plan's part of that number, from 1, of so many: the same on every machine. Empty where there are fewer pieces."""
    if count == 1:
        return plan
    parts = _cut(_line(plan), count)
    studies = [study for piece in parts[number - 1] for study in piece.studies] if number <= len(parts) else []
    return replace(plan, studies=tuple(studies))


def _line(plan: Plan) -> list[_Piece]:
    """All pieces, those of the same originals side by side."""
    place = {spec.key: index for index, spec in enumerate(plan.originals())}
    pieces = [_piece(plan, studies) for studies in _together(plan)]
    return sorted(pieces, key=lambda piece: [place[spec.key] for spec in piece.originals])


def _together(plan: Plan) -> Iterator[tuple[StudySpec, ...]]:
    """The studies that cannot be parted: each begins where its neighbour ended, or is one of its own."""
    chains: dict[str, list[StudySpec]] = {}
    for study in plan.studies:
        first = study
        while first.neighbour is not None:
            first = first.neighbour
        chains.setdefault(first.key, []).append(study)
    for chain in chains.values():
        yield from [tuple(chain)] if chain[0].method.has_choice else [(study,) for study in _by_seed(*chain)]


def _by_seed(study: StudySpec) -> Iterator[StudySpec]:
    """A study without a choice, a part for each setting; its repetitions are on the first one."""
    for setting in study.settings:
        repeated = study.unlearning_seeds if setting == study.report_settings[0] else 1
        yield replace(study, settings=(setting,), unlearning_seeds=repeated)


def _piece(plan: Plan, studies: tuple[StudySpec, ...]) -> _Piece:
    trials = [each for study in studies for each in trials_to_come(StudyState(study))]
    num_test = plan.num_images[studies[0].settings[0].content_hash][1]
    evaluated = sum(2 * num_test * such.count for such in trials)  # each test image once as it is, once manipulated
    learned = sum(cost.passes for _, _, cost in unlearning_costs(plan, trials))
    originals = {spec.key: spec for study in studies for setting in study.settings for spec in [study.original(setting)]}
    return _Piece(studies, tuple(originals.values()), learned + evaluated)


def _cut(line: Sequence[_Piece], count: int) -> list[list[_Piece]]:
    """The line in at most so many parts, of which the largest is as small as it can be."""
    low, high = 0, sum(_images(piece, set()) for piece in line)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(line, middle)) <= count else (middle + 1, high)
    return _filled(line, low)


def _filled(line: Sequence[_Piece], most: int) -> list[list[_Piece]]:
    """The line in parts of at most so many images, as long as one piece has no more than that."""
    parts: list[list[_Piece]] = []
    images, trained = 0, set[str]()
    for piece in line:
        images += _images(piece, trained)
        if not parts or images > most:
            parts.append([])
            images, trained = _images(piece, set()), set()
        parts[-1].append(piece)
        trained |= {spec.key for spec in piece.originals}
    return parts


def _images(piece: _Piece, trained: set[str]) -> int:
    """The work of a piece where these originals are there already."""
    return piece.images + sum(3 * spec.images for spec in piece.originals if spec.key not in trained)
