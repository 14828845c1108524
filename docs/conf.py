"""The pages of the repository as a site that asks for nothing beyond itself: `sphinx-build -W -c docs . build/site`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CONTENTS = {
    "Use": [
        "docs/sweep-file",
        "docs/reference",
        "docs/python",
        "docs/tables",
        "docs/evidence",
        "docs/report",
        "docs/gallery",
        "docs/trackers",
        "examples/incident/README",
        "docs/clusters",
        "docs/storage",
    ],
    "Plug-ins": [
        "docs/methods",
        "docs/manipulations",
        "docs/detections",
        "docs/datasets",
        "docs/models",
        "docs/adding-a-method",
        "docs/adding-a-plugin",
    ],
    "The benchmark": ["docs/protocol", "docs/parity", "docs/published", "docs/fashion-paper", "docs/map", "docs/glossary"],
    "How it is built": [
        "docs/engine",
        "benchmarks/results/engine",
        "docs/speed",
        "docs/reliability",
        "CONTRIBUTING",
        "CHANGELOG",
    ],
}

REPORTS = ("docs/gallery/report.html", "docs/map/report.html")

project = "cu-ray"
html_title = "cu-ray"
root_doc = "README"
include_patterns = ["README.md", *(f"{page}.md" for pages in CONTENTS.values() for page in pages), "docs/*.md"]
exclude_patterns = [".*", "build", "results", "**/__pycache__"]  # folders not to look through
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def with_contents(_app: Any, page: str, text: list[str]) -> None:
    """Give the front page, README, the order of the others, of which GitHub's view of it knows nothing."""
    if page == root_doc:
        text[0] += "".join(
            "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
            for caption, pages in CONTENTS.items()
        )


def add_files(app: Any, problem: Exception | None) -> None:
    """Let a web server find the front page by itself, and a browser show the reports instead of keeping them."""
    site = Path(app.outdir)
    if problem is None:
        shutil.copy(site / f"{root_doc}.html", site / "index.html")
        for report in REPORTS:
            (site / report).parent.mkdir(exist_ok=True)
            shutil.copy(Path(app.srcdir) / report, site / report)


def setup(app: Any) -> None:
    """Tell Sphinx of the two."""
    app.connect("source-read", with_contents)
    app.connect("build-finished", add_files)
