"""The page as a browser draws it: at three widths, in light and dark, by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from cu_ray.report.write import write
from tests.report.browser import PROGRAM, Browser
from tests.report.made import folder
from tests.report.test_report import MALICE, failing

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here (apt-get install chromium)")

WIDTHS = (360, 768, 1280)
OVERLAPS = """
[...document.querySelectorAll("figure svg, .legend")].flatMap((owner) => {
  const boxes = [...owner.querySelectorAll("text, li")].map((each) => [each.textContent, each.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], place) => boxes.slice(place + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
    .map(([other]) => `${one} / ${other} in ${owner.getAttribute("aria-label") ?? "a legend"}`));
})
"""
OUTSIDE = """
[...document.querySelectorAll("figure svg")].flatMap((owner) => {
  const frame = owner.getBoundingClientRect();
  return [...owner.querySelectorAll("text")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map((each) => `${each.textContent} of ${owner.getAttribute("aria-label")}`);
})
"""
EMPTY = """
[...document.querySelectorAll("figure svg")].filter((owner) => {
  const frame = owner.querySelector(".frame").getBoundingClientRect();
  return ![...owner.querySelectorAll(".point")].some((each) => {
    const box = each.getBoundingClientRect();
    return box.width > 0 && box.left < frame.right && box.right > frame.left && box.top < frame.bottom && box.bottom > frame.top;
  });
}).map((owner) => owner.getAttribute("aria-label"))
"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Pages of a sweep of several cells, of one in which a method failed, of one seed, of two results."""
    where = tmp_path_factory.mktemp("pages")
    cells = [{"name": "backdoor", "size": [50, 100]}, {"name": "interclass_confusion", "size": 100}]
    made = {
        "cells": [folder(where / "cells", manipulation=cells)],
        "failed": [folder(where / "failed", outcome=failing("ssd"))],
        "one_seed": [folder(where / "one_seed", seeds=[0])],
    }
    made["both"] = [*made["cells"], *made["one_seed"]]
    return {name: write(folders, where / "pages" / name, None)[0] for name, folders in made.items()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["cells", "failed", "one_seed", "both"])
def test_it_is_drawn_whole(browser, pages, name, width):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(pages[name], width)
    assert browser.ask("document.querySelectorAll('figure svg').length") >= 6
    assert browser.ask(WIDER) <= 0
    assert browser.ask(OVERLAPS) == []
    assert browser.ask(OUTSIDE) == []
    assert browser.ask(EMPTY) == []
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("file:")] == []


def test_dark_is_dark_and_can_be_read(browser, pages):
    shades = {}
    for scheme in ("light", "dark"):
        browser.open(pages["cells"], 1280, scheme)
        shades[scheme] = browser.ask(
            "[document.body, document.querySelector('figure text')].map((e) => getComputedStyle(e))"
            ".map((s, i) => i ? s.fill : s.backgroundColor)"
        )
    for scheme, (paper, text) in shades.items():
        assert contrast(paper, text) > 4.5, (scheme, paper, text)
    assert luminance(shades["dark"][0]) < 0.1 < luminance(shades["light"][0])


def test_the_table_sorts_and_filters_by_keyboard(browser, pages):
    browser.open(pages["cells"], 1280)
    total = 3 * 4 * 3
    assert browser.ask("document.getElementById('shown').textContent") == f"{total} of {total} rows"
    column = browser.ask("[...document.querySelectorAll('.sortable th')].findIndex((each) => each.textContent === 'acc_corr')")
    browser.ask(f"document.querySelectorAll('.sortable th button')[{column}].focus()")
    orders = []
    for _ in range(2):
        browser.press("Enter")
        orders.append(
            browser.ask(f"[...document.querySelectorAll('.sortable tbody tr')].map((row) => +row.cells[{column}].dataset.order)")
        )
    assert orders[0] == sorted(orders[0])
    assert orders[1] == sorted(orders[0], reverse=True)
    assert browser.ask(f"document.querySelectorAll('.sortable th')[{column}].getAttribute('aria-sort')") == "descending"
    for wish, expected in (("ssd", 9), ("ssd 0.1", 3), ("ssd 0.1 interclass", 1), ("nothing like it", 0), ("", total)):
        browser.ask(f"(filter.value = {wish!r}, filter.dispatchEvent(new Event('input')))")
        visible = browser.ask("[...document.querySelectorAll('.sortable tbody tr')].filter((row) => row.offsetHeight).length")
        assert visible == expected, wish


def test_the_first_key_leads_past_the_navigation(browser, pages):
    browser.open(pages["cells"], 360)
    browser.press("Tab")
    assert browser.ask("document.activeElement.textContent") == "To the results"


def test_a_reason_that_is_a_script_does_nothing(browser, pages):
    browser.errors.clear()
    browser.open(pages["failed"], 768)
    assert browser.ask("[...document.querySelectorAll('td')].map((each) => each.textContent)").count(MALICE) == 1
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert browser.errors == []


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, by the definition of the WCAG."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
