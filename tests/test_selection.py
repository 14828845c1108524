"""Every selection rule against values worked out by hand."""

from __future__ import annotations

import pytest

from cu_ray.selection import RULES
from cu_ray.stages.poison import num_held_out_of

SCORES = {
    "acc_corr": 0.9,
    "acc_retain": 0.5,
    "val_acc_corr": 0.8,
    "val_acc_retain": 0.6,
    "report_acc_corr": 1.0,
    "report_acc_retain": 0.25,
    "validation_given": 0.8,
    "held_out_given": 0.25,
    "retain_given": 0.75,
    "deletion_given": 0.6,
    "deletion_given_before": 0.5,
}
NEEDS = {
    "published": ("acc_corr", "acc_retain"),
    "oracle": ("report_acc_corr", "report_acc_retain"),
    "oracle_validation": ("val_acc_corr", "val_acc_retain"),
    "defender": ("validation_given", "held_out_given"),
    "rem_proxy": ("retain_given", "deletion_given"),
    "potion_stop": ("deletion_given_before", "deletion_given", "retain_given"),
}


def score(rule, num_classes=10, **changes):
    return RULES[rule].score(SCORES | changes, num_classes)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("published", 0.7),  # (0.9 + 0.5) / 2
        ("oracle", 0.625),  # (1 + 0.25) / 2
        ("oracle_validation", 0.7),  # (0.8 + 0.6) / 2
        ("defender", 0.6),  # 0.8 x (1 - 0.25)
        ("rem_proxy", 0.3),  # 0.75 x (1 - 0.6)
        ("potion_stop", -0.5),  # 0.2 x 0.5 - 0.6
    ],
)
def test_a_rules_score_is_its_closed_form(rule, expected):
    assert score(rule) == pytest.approx(expected)


def test_these_are_all_the_rules_under_their_own_names():
    assert set(RULES) == set(NEEDS)
    assert all(rule.name == name and rule.summary for name, rule in RULES.items())


@pytest.mark.parametrize(
    ("num_classes", "held_out", "expected"),
    [
        (10, 0.0, 0.72),  # the floor is chance: 0.8 x (1 - 1 / 10)
        (10, 0.1, 0.72),
        (10, 0.11, 0.712),
        (2, 0.0, 0.4),  # 0.8 x (1 - 1 / 2)
        (2, 0.75, 0.2),
        (10, 1.0, 0.0),
    ],
)
def test_the_defender_gains_nothing_below_chance(num_classes, held_out, expected):
    assert score("defender", num_classes, held_out_given=held_out) == pytest.approx(expected)


@pytest.mark.parametrize(("deletion", "expected"), [(0.0, 0.6), (0.2, 0.6), (0.21, 0.5925), (1.0, 0.0)])
def test_the_proxy_gains_nothing_below_its_floor_of_a_fifth_whatever_the_number_of_classes(deletion, expected):
    for num_classes in (2, 10, 100):
        assert score("rem_proxy", num_classes, deletion_given=deletion) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "deletion", "expected"),
    [
        (0.9, 0.18, 0.75),  # forgotten: what is kept counts, and nothing else
        (0.9, 0.0, 0.75),
        (0.9, 0.19, -0.01),  # not yet: the nearest to it is the best, and none as good as any that has
        (0.9, 0.9, -0.72),
        (0.1, 0.1, -0.08),  # an original that never learned the labels is no reason to leave it as it is
        (0.0, 0.0, 0.75),
        (0.7, 0.14, 0.75),  # a fifth, to the bit or not
    ],
)
def test_potions_rule_asks_for_forgetting_first(before, deletion, expected):
    assert score("potion_stop", deletion_given_before=before, deletion_given=deletion) == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, names in NEEDS.items() for name in names])
def test_a_rule_has_no_score_where_what_it_needs_is_null_or_missing(rule, name):
    assert score(rule, **{name: None}) is None
    assert RULES[rule].score({other: value for other, value in SCORES.items() if other != name}, 10) is None


@pytest.mark.parametrize("rule", list(NEEDS))
def test_a_rule_looks_at_nothing_but_what_it_needs(rule):
    assert RULES[rule].score({name: SCORES[name] for name in NEEDS[rule]}, 10) == score(rule)
    others = {name: 0.0 for name in SCORES if name not in NEEDS[rule]}
    assert score(rule, **others) == score(rule)


@pytest.mark.parametrize("rule", list(NEEDS))
def test_zero_is_a_score_and_not_nothing(rule):
    assert score(rule, **dict.fromkeys(NEEDS[rule], 0.0)) == 0.0


def test_all_but_the_published_rule_report_on_the_report_half():
    assert {name: rule.reports for name, rule in RULES.items() if rule.reports != "report_"} == {"published": ""}


def test_only_the_defender_holds_samples_out():
    assert [name for name, rule in RULES.items() if rule.held_out] == ["defender"]


def test_rules_that_the_owner_could_use_look_at_no_test_labels():
    assert {name for name, rule in RULES.items() if not rule.uses_test_labels} == {"defender", "rem_proxy", "potion_stop"}


def test_what_a_rule_needs_of_the_data_is_declared():
    """Without true labels there is no acc_corr, on an empty deletion set no accuracy, on few samples no held-out part."""
    least = {"deletion_given": 1, "held_out_given": next(size for size in range(100) if num_held_out_of(size))}
    for name, needed in NEEDS.items():
        assert RULES[name].needs_truth == any("acc_corr" in score for score in needed)
        assert RULES[name].least_found == max(least.get(score, 0) for score in needed)


@pytest.mark.parametrize(
    ("rule", "num_found", "truth_known", "lack"),
    [
        ("oracle_validation", 0, True, None),
        ("oracle_validation", 100, False, "true labels"),
        ("defender", 23, False, None),
        ("defender", 22, True, "at least 23 samples found"),
        ("rem_proxy", 1, False, None),
        ("rem_proxy", 0, True, "at least 1 sample found"),
    ],
)
def test_what_a_rule_lacks_is_said(rule, num_found, truth_known, lack):
    assert RULES[rule].lacks(num_found, truth_known) == lack
