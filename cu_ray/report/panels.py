"""A figure in plain values: what is drawn, not how. `svg` draws it for the page, `paper` for print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

Limits = tuple[float, float]
Points = tuple[tuple[float, float], ...]

# distinct for all eyes (Okabe and Ito, without the yellow), and in grey by their markers and dashes
COLOURS = ("ink", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6d46")
MARKERS = "osD^vPX*"
FILLS = ("full", "open", "half")
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2), (10, 3), (1, 3), (4, 4), (8, 2, 2, 2, 2, 2))


@dataclass(frozen=True)
class Line:
    """Points of one method, with their intervals where there are any."""

    name: str
    style: int  # which colour, marker and dashes
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()  # of each point
    joined: bool = True
    texts: tuple[str, ...] = ()  # below each point


@dataclass(frozen=True)
class Panel:
    """Two axes and what is drawn between them."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_limits: Limits
    y_limits: Limits
    log_x: bool = False
    fronts: tuple[tuple[str, Points], ...] = ()  # each with its text: points that no other beats in both, from left to right
    rows: tuple[str, ...] = ()  # names of 0, 1, ... on the y axis, above what is drawn there, in place of numbers
    columns: tuple[str, ...] = ()  # names of 0, 1, ... on the x axis, in place of numbers

    @property
    def broken_columns(self) -> list[str]:
        """The names on the x axis in lines, broken after each _."""
        return [name.replace("_", "_\n") for name in self.columns]


@dataclass(frozen=True)
class Figure:
    """Panels that belong together."""

    name: str  # of its files
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2


def line_of_means(
    name: str, style: int, means: pd.DataFrame, x: str, metric: str, at: Callable[[float], str] = "at {:g}".format
) -> Line:
    """The means of a metric with their intervals against the column x of the same rows, in their order.

    means: has the columns `<metric>_mean`, `_low`, `_high` and `_n`; rows without a mean are left out. at: says
    in a point's note where it is.
    """
    own = means.dropna(subset=[f"{metric}_mean"])
    low, high = (
        tuple(None if math.isnan(each) else each for each in own[f"{metric}_{end}"].astype(float)) for end in ("low", "high")
    )
    notes = tuple(f"{name} {at(place)}: {text}" for place, text in zip(own[x], told(own, metric), strict=True))
    return Line(name, style, tuple(own[x]), tuple(own[f"{metric}_mean"]), low, high, notes)


def told(means: pd.DataFrame, metric: str) -> list[str]:
    """Of each row the mean of a metric with its interval, where it has one, and of how many values it is."""
    parts = zip(*(means[f"{metric}_{part}"] for part in ("mean", "low", "high", "n")), strict=True)
    return [
        f"{mean:.3f}" + ("" if math.isnan(low) else f", {low:.3f} to {high:.3f}") + f", n = {n}" for mean, low, high, n in parts
    ]


def style_of(place: int) -> tuple[str, str, tuple[int, ...]]:
    """Colour, marker and dashes of the method in that place; beyond eight methods the combinations shift."""
    turn, number = divmod(place, len(COLOURS))
    return COLOURS[number], MARKERS[(number + turn) % len(MARKERS)], DASHES[(number + 3 * turn) % len(DASHES)]


def fill_of(place: int) -> str:
    """How the marker of the method in that place is filled: with its marker it is that of no other among the first 24."""
    return FILLS[place // len(MARKERS) % len(FILLS)]


def shift_of(line: Line, place: int, count: int, apart: float, most: float) -> float:
    """The horizontal offset of a line, the place-th of count, so that the intervals of several methods do not overlap.

    apart: from one to the next; most: from the first to the last, at most.
    """
    if not (line.joined and line.low) or count < 2:
        return 0.0
    return (place - (count - 1) / 2) * min(apart, most / (count - 1))


def fronts_apart(panel: Panel) -> list[tuple[str, Points, int]]:
    """The fronts with their texts and how far right of the frame these begin, in characters: beside others at their height."""
    reach = 0.06 * (panel.y_limits[1] - panel.y_limits[0])
    found: list[tuple[str, Points, int]] = []
    for text, points in panel.fronts:
        beside = [(other, left) for other, others, left in found if abs(others[0][1] - points[0][1]) < reach]
        found.append((text, points, max((left + len(other) + 1 for other, left in beside), default=0)))
    return found


def limits(values: Sequence[float], *, log: bool = False) -> Limits:
    """A little more than the values span; 0 to 1 where there are none."""
    found = [math.log10(value) if log else value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not found:
        return (0.1, 1) if log else (0, 1)
    low, high = min(found), max(found)
    reach = 0.07 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - reach, high + reach
    return (10**low, 10**high) if log else (low, high)


def ticks(span: Limits, log: bool = False, most: int = 6) -> list[float]:
    """Round numbers within the span: multiples of 1, 2 or 5 times a power of ten; on a log axis the powers of ten, or these."""
    low, high = span
    if log:
        powers = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        if len(powers) >= 2:
            return powers[:: math.ceil(len(powers) / most)]
        steps = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), 1 + math.ceil(math.log10(high)))
            for factor in (1, 2, 5)
        ]
        return [step for step in steps if low <= step <= high]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) <= most)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def as_text(number: float) -> str:
    """A tick's number, short."""
    return f"{number / 1e6:g}M" if abs(number) >= 1e6 else f"{number / 1e3:g}k" if abs(number) >= 1e4 else f"{number:g}"
