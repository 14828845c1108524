"""A panel as SVG for the page: colours come from the page's style sheet, so that it follows light and dark."""

from __future__ import annotations

import math
from html import escape

from cu_ray.report.panels import COLOURS, Line, Panel, Points, as_text, fill_of, fronts_apart, shift_of, style_of, ticks

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 38  # margins
SIZE = 3.6  # half a marker's
APART, MOST_APART = 1.4, 16  # between the intervals of two methods, and of the first and the last


def drawn(panel: Panel, number: int) -> str:
    """The SVG element of a panel; `number` tells it from others on the page."""
    axes = _Axes(panel)
    parts = [*_grid(panel, axes), f'<g clip-path="url(#clip{number})">']
    for text, points, left in fronts_apart(panel):
        parts.append(f'<path class="front" d="{_steps(points, axes)}"/>')
        beside = f'x="{LEFT + 3 + 5.7 * left:.1f}" y="{axes.y(points[0][1]) - 3:.1f}"'
        parts.append(f'<text class="small" {beside}>{escape(text)}</text>')
    parts += [part for place, line in enumerate(panel.lines) for part in _line(line, axes, place, len(panel.lines))]
    parts.append("</g>")
    frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    label = escape(f"{panel.title}: {panel.y_label} against {panel.x_label}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<clipPath id="clip{number}"><rect {frame}/></clipPath>{"".join(parts)}<rect class="frame" {frame}/></svg>'
    )


def legend_key(style: int, *, joined: bool = True) -> str:
    """The SVG element of a legend's sign."""
    width = 34 if joined else 14
    line = f'<path class="line {_dash(style)}" d="M0 7H34"/>' if joined else ""
    colour, mark = f"c{style % len(COLOURS)}", _marker(style, width / 2, 7)
    return f'<svg class="key {colour}" width="{width}" viewBox="0 0 {width} 14" aria-hidden="true">{line}{mark}</svg>'


class _Axes:
    """Places on the drawing of values in a panel."""

    def __init__(self, panel: Panel) -> None:
        self._log, self._x, self._y = panel.log_x, panel.x_limits, panel.y_limits

    def x(self, value: float) -> float:
        low, high = map(math.log10, self._x) if self._log else self._x
        place = ((math.log10(value) if self._log else value) - low) / (high - low)
        return round(LEFT + place * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self._y
        place = min(max((value - low) / (high - low), -1), 2)  # an interval may end far outside
        return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM), 1)


def _grid(panel: Panel, axes: _Axes) -> list[str]:
    parts = []
    names = panel.broken_columns
    for number, tick in enumerate(range(len(names)) if names else ticks(panel.x_limits, panel.log_x)):
        x = axes.x(tick)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
        for line, text in enumerate((names[number] if names else as_text(tick)).split("\n")):
            below = HEIGHT - BOTTOM + 14 + 12 * line
            parts.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{below}">{escape(text)}</text>')
    for row, name in enumerate(panel.rows):
        parts.append(f'<path class="grid" d="M{LEFT} {axes.y(row)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="label" x="{LEFT + 4}" y="{axes.y(row) - 9}">{escape(name)}</text>')
    for tick in () if panel.rows else ticks(panel.y_limits):
        y = axes.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{y + 3.5}">{as_text(tick)}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    if not names:  # which say it, and need the room
        parts.append(f'<text class="label" text-anchor="middle" x="{middle_x}" y="{HEIGHT - 6}">{escape(panel.x_label)}</text>')
    turned = f'transform="translate(12 {middle_y}) rotate(-90)"'
    return [*parts, f'<text class="label" text-anchor="middle" {turned}>{escape(panel.y_label)}</text>']


def _line(line: Line, axes: _Axes, place: int, count: int) -> list[str]:
    shift = shift_of(line, place, count, APART, MOST_APART)
    places = [(round(axes.x(x) + shift, 1), axes.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    parts = [f'<g class="c{line.style % len(COLOURS)}">']
    if line.joined and len(places) > 1:
        parts.append(f'<path class="line {_dash(line.style)}" d="M{" ".join(f"{x} {y}" for x, y in places)}"/>')
    for (x, _), low, high in zip(places, line.low, line.high, strict=False):
        if low is not None and high is not None:
            parts.append(f'<path class="interval" d="M{x} {axes.y(low)}V{axes.y(high)}"/>')
    notes = line.notes or tuple(f"{line.name}: {x:.3g}, {y:.3g}" for x, y in zip(line.x, line.y, strict=True))
    size = SIZE if len(places) <= 40 else 1.8
    parts += [_marker(line.style, *place, size, note) for place, note in zip(places, notes, strict=True)]
    for (x, y), text in zip(places, line.texts, strict=False):
        parts.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{round(y + 14, 1)}">{escape(text)}</text>')
    return [*parts, "</g>"]


def _steps(points: Points, axes: _Axes) -> str:
    """The front as stairs: what is left of and below it is beaten."""
    places = [(axes.x(x), axes.y(y)) for x, y in points]
    path = f"M{LEFT} {places[0][1]}H{places[0][0]}"
    for x, y in places[1:]:
        path += f"V{y}H{x}"
    return f"{path}V{HEIGHT - BOTTOM}"


def _dash(style: int) -> str:
    return "d" + "-".join(map(str, style_of(style)[2])) if style_of(style)[2] else "solid"


def _marker(style: int, x: float, y: float, size: float = SIZE, note: str = "") -> str:
    shape, fill = style_of(style)[1], fill_of(style)
    r = size * {"o": 1, "s": 0.9, "D": 1.25, "^": 1.2, "v": 1.2, "P": 1.2, "X": 1.1, "*": 1.4}[shape]
    corners = {
        "s": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "D": [(0, -r), (r, 0), (0, r), (-r, 0)],
        "^": [(0, -r), (r, 0.8 * r), (-r, 0.8 * r)],
        "v": [(0, r), (r, -0.8 * r), (-r, -0.8 * r)],
        "P": _cross(r, 0),
        "X": _cross(r, math.pi / 4),
        "*": [
            (
                r * (1 if k % 2 == 0 else 0.42) * math.sin(k * math.pi / 5),
                -r * (1 if k % 2 == 0 else 0.42) * math.cos(k * math.pi / 5),
            )
            for k in range(10)
        ],
    }
    title = f"<title>{escape(note)}</title>" if note else ""
    looks = "point" if fill == "full" else "point open"
    if shape == "o":
        whole = f'<circle class="{looks}" cx="{x}" cy="{y}" r="{r:.1f}">{title}</circle>'
        left = f"M{x} {y - r:.1f}A{r:.1f} {r:.1f} 0 0 0 {x} {y + r:.1f}Z"
    else:
        whole = f'<path class="{looks}" d="{_outline(x, y, corners[shape])}">{title}</path>'
        left = _outline(x, y, [(min(dx, 0), dy) for dx, dy in corners[shape]])  # no side crosses the middle aslant
    return whole + (f'<path class="half" d="{left}"/>' if fill == "half" else "")


def _outline(x: float, y: float, corners: list[tuple[float, float]]) -> str:
    return f"M{'L'.join(f'{x + dx:.1f} {y + dy:.1f}' for dx, dy in corners)}Z"


def _cross(r: float, angle: float) -> list[tuple[float, float]]:
    thin = 0.36 * r
    arm = [(-thin, -r), (thin, -r), (thin, -thin)]
    points = [turned for quarter in range(4) for turned in (_turned(point, quarter * math.pi / 2) for point in arm)]
    return [_turned(point, angle) for point in points]


def _turned(point: tuple[float, float], angle: float) -> tuple[float, float]:
    x, y = point
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
