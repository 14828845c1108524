"""The pages as a site: every link leads somewhere, the search finds, nothing is asked of the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.report.browser import PROGRAM, Browser

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples", "benchmarks")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What CONTRIBUTING.md says, in this folder and into that one."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(site)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    where = tmp_path_factory.mktemp("site")
    done = build(ROOT, where)
    assert done.returncode == 0, done.stderr
    return where


@pytest.fixture
def pages(tmp_path):
    """A copy of what the site is made of."""
    source = tmp_path / "source"
    source.mkdir()
    for name in PAGES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    return source


def test_the_front_page_is_readme_and_leads_to_every_page(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "Which unlearning method still corrects" in front
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    made -= {"index.html", "genindex.html", "search.html", "docs/gallery/report.html", "docs/map/report.html"}
    assert {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= made
    assert [page for page in made - {"README.html"} if f'href="{page}"' not in front] == []


def test_every_file_that_a_page_names_is_there(site):
    for page in site.rglob("*.html"):
        named = re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8"))
        local = {link for link in named if not re.match(r"[a-z]+:", link)}
        assert len(local) > 5 or page.name == "report.html"
        assert [link for link in local if not (page.parent / unquote(link)).exists()] == [], page


@pytest.mark.parametrize(
    ("added", "complaint"),
    [
        ("[see](nowhere.md)", "nowhere.md"),
        ("[see](tables.md#no-such-heading)", "no-such-heading"),
        ("[see](../README.md#run-it)", None),
        ("![picture](nothing.png)", "nothing.png"),
    ],
)
def test_a_link_that_leads_nowhere_fails(pages, tmp_path, added, complaint):
    with open(pages / "docs" / "report.md", "a", encoding="utf-8") as page:
        page.write(f"\n{added}\n")
    done = build(pages, tmp_path / "site")
    assert (done.returncode == 0) == (complaint is None), done.stderr
    assert complaint is None or (complaint in done.stderr and "report.md" in done.stderr)


def test_a_page_that_no_menu_names_fails(pages, tmp_path):
    (pages / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    done = build(pages, tmp_path / "site")
    assert done.returncode != 0
    assert "forgotten.md" in done.stderr


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here (apt-get install chromium)")
def test_in_a_browser_it_fits_and_asks_for_nothing_beyond_itself(site, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        for page in ("index.html", "docs/methods.html", "docs/gallery.html", "docs/gallery/report.html"):
            for width in (360, 1280):
                browser.open(site / page, width)
                assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth"), (page, width)
                assert browser.ask("[...document.images].every((image) => image.naturalWidth > 0)"), page
                if "SITE_PICTURES" in os.environ:
                    browser.picture(Path(os.environ["SITE_PICTURES"]) / f"{Path(page).stem}-{width}.png")
        assert browser.errors == []
        with served(site) as address:
            assert f"{address}/docs/methods.html" in {link.partition("#")[0] for link in found_by(browser, address, "dampening")}
            assert found_by(browser, address, "xylophone") == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:", address))] == []
    finally:
        browser.close()


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a web server with these files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found_by(browser: Browser, address: str, words: str) -> list[str]:
    """The pages that the search shows for these words."""
    browser.call("Page.navigate", url=f"{address}/search.html?q={words}")
    return browser.ask("""new Promise((done) => {
        const look = () => {
            const links = [...document.querySelectorAll("#search-results li a")].map((link) => link.href);
            const said = document.querySelector("#search-results p.search-summary")?.textContent ?? "";
            /finished|match|found/.test(said) ? done(links) : setTimeout(look, 100);
        };
        look();
    })""")
