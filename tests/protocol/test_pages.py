"""The pages on the protocol say what the code has: defaults, ranges, costs, counts, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cu_ray import config, plugins
from cu_ray.sweep import plan as plans
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.estimate import ReadOnlyJournal, estimate
from cu_ray.sweep.hardware import Hardware
from cu_ray.sweep.ledger import Known
from cu_ray.types import Sizes

ROOT = Path(__file__).parent.parent.parent
PAGES = ("protocol", "methods", "parity")


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def rows(text, num_columns):
    """The cells of all table rows with so many columns."""
    found = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in found if len(cells) == num_columns]


def shown(value):
    return "null" if value is None else str(value)


def test_hyperparameters_have_the_defaults_and_ranges_that_the_page_says():
    said, method = {}, ""
    for name, hyperparameter, default, searched, *_ in rows(page("methods"), 6):
        method = name.strip("`") or method
        said[method, hyperparameter.strip("`")] = (default, searched)
    for method in plugins.names("methods"):
        for name, fact in plugins.facts(plugins.find("methods", method)).items():
            span = (
                "" if fact.search is None else f"{fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}"
            )
            assert said.pop((method, name)) == (shown(fact.default), span), (method, name)
    assert list(said) == [("method", "hyperparameter"), ("---", "---")]


def test_costs_are_those_of_the_example():
    sizes = Sizes(500, 49_500, 512, 4000)
    said = {name: cells[3] for cells in rows(page("methods"), 4) for name in re.findall(r"`(\w+)`", cells[0])}
    for method in plugins.names("methods"):
        cost = plugins.find("methods", method)().cost(sizes)
        assert re.match(rf"{cost.forward:,} / {cost.backward:,}\b", said[method]), method


@pytest.mark.parametrize("name", PAGES)
def test_tests_and_pages_that_are_named_exist(name):
    text = page(name)
    for file in re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py|reference\.py)`", text):
        assert (ROOT / file).is_file() or (ROOT / "tests" / "protocol" / file).is_file(), file
    for link in re.findall(r"\]\(([\w-]+\.md)\)", text):
        assert (ROOT / "docs" / link).is_file() or link == "fashion-paper.md", link


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "sweeps" / "paper").glob("*.yaml")))
def test_the_work_of_the_published_grid_is_what_the_plan_says(file):
    sweep = config.load(ROOT / "sweeps" / "paper" / file, seeds=(1, 2))
    sources = {dataset: plans.Source.expected(dataset) for dataset in sweep.datasets}
    made = plans.make(Hardware("cuda", frozenset()).settle(sweep), sources)
    journal = ReadOnlyJournal(Known())
    counts = estimate(made, Agenda(made, journal, original_cached=lambda key: False), journal.known)
    said = {re.match(r"`(.+?)`|", cells[0])[1]: cells[1:5] for cells in rows(page("parity"), 6)}
    counted = (counts.originals, counts.trials, counts.images_forward, counts.images_backward)
    assert said[file] == [f"{count:,}" for count in counted]
