"""The report as one HTML page that needs nothing but itself: no network, no framework, read from disk."""

from __future__ import annotations

import base64
import hashlib
import itertools
from importlib.resources import files

import jinja2
from markupsafe import Markup

from cu_ray import __version__
from cu_ray.report import contents as content
from cu_ray.report import svg
from cu_ray.report.panels import Figure, Panel
from cu_ray.selection import RULES


def rendered(contents: content.Contents, refresh: int | None = None) -> str:
    """The whole page, which reads itself anew after `refresh` seconds.

    Whatever comes from the tables is escaped; what runs on it is one script, named by its checksum.
    """
    parts = {
        name: files("cu_ray.report").joinpath("_page", f"report.{name}").read_text(encoding="utf-8")
        for name in ("html", "css", "js")
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"short": short, "fixed": "{:.3f}".format}
    numbers = itertools.count()

    def drawn(panel: Panel) -> Markup:
        return Markup(svg.drawn(panel, next(numbers)))  # noqa: S704 (escaped there)

    return environment.from_string(parts["html"]).render(
        contents=contents,
        refresh=refresh,
        rule=RULES[contents.rule],
        style=Markup(parts["css"]),  # noqa: S704 (our own file)
        script=Markup(parts["js"]),  # noqa: S704 (our own file)
        script_hash=base64.b64encode(hashlib.sha256(parts["js"].encode()).digest()).decode(),
        version=__version__,
        drawn=drawn,
        legend=legend,
        recovery=content.recovery_rows(contents),
        ranks=content.rank_rows(contents),
        pairs=content.pair_rows(contents),
        few_cells=content.few_cells(contents),
        gap_rows=content.gap_rows(contents),
        spots=content.spot_rows(contents),
        survivors=content.survival_rows(contents),
        all_rows=content.result_rows(contents),
        version_of=lambda results: ", ".join(results.trials["cu_ray_version"].dropna().unique()) or __version__,
        **{name: getattr(content, name) for name in ("runs", "missing", "cost_rows", "failure_rows", "checksums", "trainings")},
    )


def legend(figure: Figure) -> list[tuple[str, Markup]]:
    """Each method of a figure with its sign, in the order of the sweep file."""
    found = {line.name: (line.style, line.joined) for panel in figure.panels for line in panel.lines}
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    return [(name, Markup(svg.legend_key(style, joined=joined))) for name, (style, joined) in ordered]  # noqa: S704


def short(number: float) -> str:
    """A number as a table shows it: three digits behind the point, fewer where it is round or large."""
    if abs(number) >= 1000 or isinstance(number, int):
        return f"{number:,.0f}"
    if 0 < abs(number) < 0.0005:
        return f"{number:.0e}"
    if number == round(number, 2):
        return f"{number:g}"
    return f"{number:.3f}" if abs(number) < 10 else f"{number:.1f}"
