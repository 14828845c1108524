"""Tables on terminals of any width: names fold, numbers are never cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from cu_ray.report.printing import show

NAMES = ("my_plugins.unlearning:CautiousUnlearning", "my_plugins.unlearning:CautiousUnlearningTwice")
SCORES = ("0.119 (0.013)", "0.841 (0.000)")


def printed(width, columns=2):
    table = Table(title="The best")
    table.add_column("method")
    for number in range(columns):
        table.add_column(f"score {number}", justify="right")
    for name in NAMES:
        table.add_row(name, *(SCORES[number % 2] for number in range(columns)))
    text = io.StringIO()
    show(table, Console(file=text, width=width))
    return text.getvalue()


def first_column(text):
    return "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_nothing_is_cut_at_any_width(width, columns):
    text = printed(width, columns)
    assert "…" not in text
    assert first_column(text) == "".join(NAMES)
    for score in SCORES[:columns]:
        assert score in text


def test_names_fold_where_the_numbers_fit_and_else_the_table_is_as_wide_as_it_is():
    assert max(map(len, printed(60).splitlines())) <= 60
    assert printed(60) != printed(140)
    whole = printed(40).splitlines()
    assert max(map(len, whole)) > 40
    assert whole[1:] == printed(140).splitlines()[1:], "but for the title's place"
