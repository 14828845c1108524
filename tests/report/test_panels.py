"""What is drawn has one name and one sign, and each sign is in the legend."""

from __future__ import annotations

import re
from collections import defaultdict

import matplotlib as mpl
import pytest

from cu_ray.report import paper, svg
from cu_ray.report.contents import gather
from cu_ray.report.page import legend
from cu_ray.report.panels import Figure, Line, Panel, fill_of, style_of
from cu_ray.report.results import read_all
from tests.report.made import METHODS, folder
from tests.sweep.simulator import SCRUB


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A report on two folders whose methods come in another order."""
    where = tmp_path_factory.mktemp("compared")
    others = {name: METHODS[name] for name in reversed(METHODS)} | {"scrub": {**SCRUB, "trials": 4, "sampler": "tpe"}}
    cells = [{"name": name, "size": 100} for name in ("backdoor", "interclass_confusion")]
    folders = [folder(where / "a", manipulation=cells), folder(where / "b", methods=others)]
    return gather(read_all(folders), "oracle_validation")


def test_every_sign_that_is_drawn_is_in_the_legend_under_one_name(compared):
    assert {figure.name for figure in compared.figures} >= {"plane", "curves", "tradeoff", "cost", "best_of_n", "landscapes"}
    for figure in compared.figures:
        styles = defaultdict(set)
        for line in (line for panel in figure.panels for line in panel.lines):
            styles[line.name].add(line.style)
        shown = {
            (name, style)
            for name, key in legend(figure)
            for style in range(len(compared.styles))
            if key in (svg.legend_key(style), svg.legend_key(style, joined=False))
        }
        assert shown == {(name, style) for name, own in styles.items() for style in own}, figure.name
        assert {name: {compared.styles[name]} for name in styles} == styles, figure.name


def test_the_caption_of_best_of_n_names_the_folder_of_an_adaptive_search(compared):
    (caption,) = [figure.caption for figure in compared.figures if figure.name == "best_of_n"]
    assert caption.endswith(" One path: scrub (b).")


def test_24_methods_are_told_apart_by_their_markers_alone():
    assert len({(style_of(place)[1], fill_of(place)) for place in range(24)}) == 24
    assert [fill_of(place) for place in (0, 7, 8, 15, 16, 23)] == ["full", "full", "open", "open", "half", "half"]
    on_page = {re.sub(r'"key c\d"', "", svg.legend_key(place, joined=False)) for place in range(24)}
    assert len(on_page) == 24
    points = tuple(Line(str(place), place, (0.5,), (0.5,), joined=False) for place in range(24))
    with mpl.rc_context(paper.LOOK):
        (axes,) = paper.drawn(Figure("points", "", "", (Panel("", "", "", points, (0, 1), (0, 1)),))).axes
    in_print = {(line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor() == "white") for line in axes.lines}
    assert len(in_print) == 24
