"""Tables printed on terminals of any width, with nothing of them cut."""

from __future__ import annotations

from rich.console import Console
from rich.segment import Segment
from rich.table import Table

UNFOLDED = 16  # characters of a text that stay in one line
MOST_COLUMNS = 10_000  # of a terminal


def show(table: Table, out: Console) -> None:
    """Print a table. Where it is wider than the terminal its texts fold; where numbers would be cut, it is as wide as it is."""
    wide = out.options.update(max_width=MOST_COLUMNS)
    longest = [max(out.measure(each, options=wide).maximum for each in (it.header, *it.cells)) for it in table.columns]
    for column, width in zip(table.columns, longest, strict=True):
        column.overflow, column.min_width = "fold", width if column.justify == "right" else min(width, UNFOLDED)
    if any(Segment.get_line_length(line) > out.width for line in Segment.split_lines(out.render(table))):
        for column, width in zip(table.columns, longest, strict=True):
            column.min_width = width
    out.print(table, crop=False)
