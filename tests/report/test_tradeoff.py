"""acc_corr against acc_retain: fronts by deletion fraction, and what a point says."""

from __future__ import annotations

import re

import matplotlib as mpl
import pytest

from cu_ray.plugins import name_of
from cu_ray.report import paper, svg
from cu_ray.report.contents import gather
from cu_ray.report.panels import Panel, fronts_apart
from cu_ray.report.results import read
from tests.report.made import folder

SCORES = {
    ("no_unlearning", 0): (0.1, 0.83),
    ("ssd", 0.1): (0.5, 0.9),
    ("ssd", 0.5): (0.6, 0.7),
    ("ssd", 1): (0.7, 0.75),
    ("scrub", 1): (0.8, 0.6),
}
FRONTS = {"0.5": ((0.7, 0.61), (0.83, 0.11)), "1": ((0.6, 0.81), (0.75, 0.71), (0.83, 0.11))}  # at 0.1 ssd beats all


def by_fraction(spec, seed):
    corr, retain = SCORES.get((name_of(spec.method), spec.deletion_size / 100), (0.05, 0.5))
    return corr + 0.01 * seed, retain


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    contents = gather([read(folder(tmp_path_factory.mktemp("tradeoff") / "one", by_fraction))], "oracle_validation")
    return next(figure for figure in contents.figures if figure.name == "tradeoff")


def test_each_fraction_has_the_front_of_its_own_points(figure):
    (panel,) = figure.panels
    assert [text for text, _ in panel.fronts] == list(FRONTS)
    for text, points in panel.fronts:
        drawn = [each for line in panel.lines for each in zip(line.x, line.y, line.notes, strict=True)]
        assert set(points) <= {(x, y) for x, y, note in drawn if f" at {text}: " in note}
        assert [tuple(round(value, 6) for value in point) for point in points] == list(FRONTS[text])


def test_a_point_tells_both_accuracies_with_intervals_and_their_number(figure):
    notes = [note for line in figure.panels[0].lines for note in line.notes]
    assert len(notes) == 4 * 3
    assert "ssd at 0.5: acc_corr 0.610, 0.585 to 0.635, n = 3; acc_retain 0.700, 0.700 to 0.700, n = 3" in notes


def test_on_the_page_and_in_print_a_front_has_its_fraction_and_holds_what_it_beats(figure):
    drawn = svg.drawn(figure.panels[0], 0)
    assert drawn.count('class="front"') == 2
    assert re.findall(r'<text class="small"[^>]*>([^<]*)<', drawn) == list(FRONTS)
    with mpl.rc_context(paper.LOOK):
        (axes,) = paper.drawn(figure).axes
    assert [text.get_text() for text in axes.texts] == list(FRONTS)
    corners = {(round(x, 6), round(y, 6)) for x, y in axes.lines[1].get_path().vertices}
    assert {(0.6, 0.81), (0.6, 0.71), (0.75, 0.71), (0.75, 0.11), (0.83, 0.11)} <= corners


def test_fractions_of_fronts_that_begin_as_high_stand_side_by_side():
    fronts = tuple(
        (text, ((0.2, height), (0.5, 0.1))) for text, height in (("0.1", 0.9), ("0.25", 0.9), ("0.5", 0.87), ("1", 0.4))
    )
    found = fronts_apart(Panel("", "", "", (), (0, 1), (0, 1), fronts=fronts))
    assert [(text, left) for text, _, left in found] == [("0.1", 0), ("0.25", 4), ("0.5", 9), ("1", 0)]
