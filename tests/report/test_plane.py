"""REM's plane: where each method is best, by how much, and that nobody peeks there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cu_ray.plugins import name_of
from cu_ray.report import plane, svg
from cu_ray.report.contents import gather, spot_rows
from cu_ray.report.page import rendered
from cu_ray.report.results import read
from tests.report.made import folder

REGULAR = {"random_label_swap": 0, "interclass_confusion": 1, "backdoor": 2}
MANIPULATIONS = [
    {"name": "backdoor", "size": 100},
    {"name": "interclass_confusion", "size": 100, "classes": [["coat", "shirt"]]},
    {"name": "random_label_swap", "size": 100},
]


def by_regularity(spec, seed):
    """SSD is the better the more regular, SCRUB the less; their difference over seeds is 0.1, 0.2, 0.3 at the ends."""
    method, regular = name_of(spec.method), REGULAR[name_of(spec.original.setting.manipulation)]
    corr = {"ssd": 0.5 + 0.1 * (seed + 1) * (regular - 1), "scrub": 0.5}.get(method, 0.2)
    return corr, 0.5


def rows_of(**scores_by_method):
    """Chosen trials of one cell and fraction; scores: of each seed."""
    return pd.DataFrame(
        {"cell": "backdoor 100", "fraction": 0.5, "method": method, "seed": seed, "acc_corr": score, "acc_retain": score}
        for method, scores in scores_by_method.items()
        for seed, score in enumerate(scores)
    )


def spot_of(**scores_by_method):
    (spot,) = plane.spots(rows_of(**scores_by_method), {"backdoor 100": 2})
    return spot


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    where = tmp_path_factory.mktemp("plane") / "three"
    return gather([read(folder(where, by_regularity, manipulation=MANIPULATIONS, seeds=[0, 1, 2]))], "oracle_validation")


def test_by_how_much_the_best_is_ahead_is_paired_by_seed():
    spot = spot_of(a=[0.9, 0.5, 0.7], b=[0.8, 0.4, 0.5], c=[0.1, 0.1, 0.1])
    assert (spot.best, spot.second) == ("a", "b")
    assert spot.score.mean == pytest.approx(0.7)
    differences = np.array([0.1, 0.1, 0.2])
    reach = 4.302652729911275 * differences.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
    assert (spot.ahead.mean, spot.ahead.low) == (pytest.approx(differences.mean()), pytest.approx(differences.mean() - reach))


def test_the_best_is_clear_where_it_is_above_every_other_beyond_the_noise():
    assert spot_of(a=[0.9, 0.91, 0.92], b=[0.5, 0.52, 0.51]).clear
    assert not spot_of(a=[0.9, 0.5, 0.7], b=[0.6, 0.6, 0.6]).clear
    assert not spot_of(a=[0.9], b=[0.1]).clear


def test_a_method_that_lacks_a_seed_is_not_compared_and_nobody_is_best_alone():
    assert spot_of(a=[0.9, 0.9], b=[0.5, 0.5, 0.5], c=[0.4, 0.4, 0.4]).best == "b"
    assert plane.spots(rows_of(a=[0.9, 0.9]), {"backdoor 100": 2}) == []
    assert plane.spots(rows_of(a=[0.9], b=[0.8]), {"another cell": 2}) == []


def test_the_plane_has_a_row_for_each_corruption_the_most_regular_on_top(contents):
    (figure,) = [figure for figure in contents.figures if figure.name == "plane"]
    (panel,) = figure.panels
    assert [name.split()[0] for name in panel.rows] == ["random_label_swap", "interclass_confusion", "backdoor"]
    best = {(x, y): line.name for line in panel.lines for x, y in zip(line.x, line.y, strict=True)}
    assert {best[fraction, 2.0] for fraction in (0.1, 0.5, 1.0)} == {"ssd"}
    assert {best[fraction, 0.0] for fraction in (0.1, 0.5, 1.0)} == {"scrub"}
    drawn = svg.drawn(panel, 0)
    assert all(name in drawn for name in panel.rows)
    assert ">10<" in drawn  # half of 0.2


def test_the_table_has_the_same_with_intervals(contents):
    rows = spot_rows(contents)
    assert [row["cell"].split()[0] for row in rows] == ["backdoor"] * 3 + ["interclass_confusion"] * 3 + ["random_label_swap"] * 3
    assert rows[0]["ahead by"].mean == pytest.approx(0.1)
    assert rows[0]["ahead by"].low < 0.1 < rows[0]["ahead by"].high
    assert rows[0]["of all others"] == "not beyond the noise of seeds"  # 0.05, 0.1, 0.15
    page = rendered(contents)
    assert 'id="plane"' in page
    assert "Which method is best where" in page


def test_where_the_report_is_under_a_rule_that_peeks_the_plane_is_not(tmp_path):
    made = [read(folder(tmp_path / "x", by_regularity, manipulation=MANIPULATIONS, seeds=[0, 1]))]
    for rule, shown in (("published", "oracle_validation"), ("oracle", "oracle_validation"), ("rem_proxy", "rem_proxy")):
        (figure,) = [each for each in gather(made, rule).figures if each.name == "plane"]
        assert figure.caption.endswith(f"chosen by {shown}.")


def test_one_kind_of_corruption_is_no_plane_and_one_of_somebody_else_has_no_place(tmp_path):
    alone = gather([read(folder(tmp_path / "x"))], "oracle_validation")
    assert "plane" not in [figure.name for figure in alone.figures]
    setting = ("d", "m", "their_lab:Theirs", 1, "{}", "{}", "uniform")
    assert plane.regularities({setting: "theirs 1", ("d", "m", "backdoor", *setting[3:]): "backdoor 1"}) == {"backdoor 1": 2}


@pytest.mark.parametrize(("ahead", "clear", "text"), [(0.123, False, "12"), (0.0123, True, "1.2*"), (0.0, False, "0.0")])
def test_the_numbers_of_the_plane_are_short(ahead, clear, text):
    same, two = plane.summarise([ahead]), plane.summarise([0.5])
    found = [plane.Spot("x", regularity, 0.5, "a", two, "b", same, clear) for regularity in (0, 2)]
    assert {each for panel in plane.figure(found, {"a": 0}, "defender").panels for each in panel.lines[0].texts} == {text}


def test_many_corruptions_are_several_panels():
    found = [
        plane.Spot(f"cell {n}", n % 3, 0.5, "a", plane.summarise([0.5, 0.6]), "b", plane.summarise([0.1, 0.2]), False)
        for n in range(12)
    ]
    panels = plane.figure(found, {"a": 0}, "defender").panels
    assert [len(panel.rows) for panel in panels] == [5, 5, 2]
