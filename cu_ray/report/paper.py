"""Figures for print, as PDF and PNG: column widths, embedded TrueType fonts, told apart in grey by markers and dashes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_ray.report.panels import Figure, Line, Panel, as_text, fill_of, fronts_apart, shift_of, style_of, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.transforms import Bbox

ONE_COLUMN, TWO_COLUMNS, PANEL_HEIGHT = 3.4, 7.0, 1.9  # inches
DOTS = 300  # an inch, of PNG
APART, MOST_APART = 0.9, 9  # points between the intervals of two methods, and of the first and the last
CHARACTERS = 20  # an inch of a note
MOST_CHARACTERS = {4: 23, 3: 34, 2: 55}  # above or below a panel, where so many are side by side
LOOK: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "cu-ray",
}


def save(figure: Figure, folder: Path, note: str | None = None) -> list[Path]:
    """The files `<name>.pdf` and `<name>.png` of a figure, written. Raises ImportError where matplotlib is not there.

    note: to be written small below the figure.
    """
    import matplotlib as mpl

    with mpl.rc_context(LOOK):
        drawing = drawn(figure)
        box = None if note is None else _footed(drawing, note)
        files = [folder / f"{figure.name}.{kind}" for kind in ("pdf", "png")]
        for file in files:
            metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
            drawing.savefig(file, dpi=DOTS, metadata=metadata, bbox_inches=box)
    return files


def drawn(figure: Figure) -> Drawing:
    """The figure as matplotlib has it, laid out once for all files. To be called under LOOK."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    columns = _num_columns(figure.panels)
    rows = math.ceil(len(figure.panels) / columns)
    drawing = Drawing(figsize=(ONE_COLUMN if columns == 1 else TWO_COLUMNS, PANEL_HEIGHT * rows + 0.2), layout="constrained")
    FigureCanvasAgg(drawing)
    places = drawing.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for place, panel in zip(places, figure.panels, strict=False):
        handles |= _draw(place, panel)
    for place in places[len(figure.panels) :]:
        place.set_axis_off()
    if len(handles) > 1:
        drawing.set_figheight(drawing.get_figheight() + _legend(drawing, handles) / drawing.dpi)
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    return drawing


def _footed(drawing: Drawing, note: str) -> Bbox:
    """The box of the figure with the note, which is written below what is laid out."""
    from matplotlib.transforms import Bbox

    width, height = drawing.get_size_inches()
    lines = textwrap.wrap(note, round(CHARACTERS * width))
    looks: Any = {"fontsize": 5, "color": "0.4", "va": "top", "parse_math": False}
    drawing.text(0.05 / width, 0, "\n".join(lines), **looks)
    return Bbox.from_extents(0, -0.1 * len(lines), width, height)


def _legend(drawing: Drawing, handles: dict[str, Any]) -> float:
    """The height of the legend below all panels, drawn in as many columns as have room, at most six."""
    for columns in range(min(len(handles), 6), 0, -1):
        legend = drawing.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if box.width <= drawing.bbox.width or columns == 1:
            break
        legend.remove()
    return float(box.height)


def _num_columns(panels: Sequence[Panel]) -> int:
    """Two panels side by side; where there are many, as many as have room for what stands above and below them."""
    widest = max(len(text) for panel in panels for text in (panel.title, panel.x_label))
    fit = next((columns for columns, most in MOST_CHARACTERS.items() if widest <= most), 2)
    return min(len(panels), fit if len(panels) > 4 else 2)


def _draw(place: Any, panel: Panel) -> dict[str, Any]:
    """The panel, drawn; a handle of each line by its name."""
    place.set(
        title=textwrap.fill(panel.title, MOST_CHARACTERS[2]),
        xlabel=panel.x_label,
        ylabel=panel.y_label,
        xscale="log" if panel.log_x else "linear",
    )
    place.set(xlim=panel.x_limits, ylim=panel.y_limits)
    for row, name in enumerate(panel.rows):
        place.annotate(name, (0.01, row), xycoords=place.get_yaxis_transform(), xytext=(0, 4), textcoords="offset points")
    names = {place.xaxis: panel.broken_columns, place.yaxis: [""] * len(panel.rows)}
    for axis, span, log in ((place.xaxis, panel.x_limits, panel.log_x), (place.yaxis, panel.y_limits, False)):
        marks = [*range(len(names[axis]))] or ticks(span, log)
        axis.set_ticks(marks, names[axis] or [as_text(mark) for mark in marks])
        axis.set_ticks([], minor=True)
    place.grid(linewidth=0.3, alpha=0.5)
    for text, points, left in fronts_apart(panel):
        x, y = zip(*points, strict=True)
        stairs = (panel.x_limits[0], *x, x[-1]), (y[0], *y, panel.y_limits[0])
        place.step(*stairs, where="pre", color="0.4", linewidth=0.8, linestyle=":")
        beside = {"xytext": (2 + 3.2 * left, 1.5), "textcoords": "offset points", "fontsize": 5, "color": "0.4"}
        place.annotate(text, (0, y[0]), xycoords=place.get_yaxis_transform(), **beside)
    return {line.name: _line(place, line, number, len(panel.lines)) for number, line in enumerate(panel.lines)}


def _line(place: Any, line: Line, number: int, count: int) -> Any:
    from matplotlib.transforms import ScaledTranslation

    shift = shift_of(line, number, count, APART, MOST_APART)
    beside = place.transData + ScaledTranslation(shift / 72, 0, place.figure.dpi_scale_trans)
    (colour, marker, dashes), fill = style_of(line.style), fill_of(line.style)
    colour = "black" if colour == "ink" else colour
    dashed = (0, tuple(each / 2 for each in dashes)) if dashes else "-"
    looks = {
        "color": colour,
        "marker": marker,
        "linestyle": dashed if line.joined else "none",
        "label": line.name,
        "fillstyle": "left" if fill == "half" else "full",
        "markerfacecolor": "white" if fill == "open" else colour,
        "markerfacecoloralt": "white",
        **({} if fill == "full" else {"markersize": 4, "markeredgewidth": 0.5}),
        "transform": beside,
    }
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        if low is not None and high is not None:
            place.plot([x, x], [low, high], color=colour, linewidth=0.6, alpha=0.6, transform=beside)
    for x, y, text in zip(line.x, line.y, line.texts, strict=False):
        place.annotate(text, (x, y), xytext=(0, -8), textcoords="offset points", ha="center", fontsize=5)
    return place.plot(line.x, line.y, **looks)[0]
