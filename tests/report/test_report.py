"""`cu-ray report`: what it writes, and what it makes of results that lack something."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from cu_ray.cli import main
from cu_ray.plugins import name_of
from cu_ray.report import latex, paper, write
from cu_ray.report.contents import gather
from cu_ray.report.figures import _front, _importance
from cu_ray.report.page import short
from cu_ray.report.panels import Figure, Line, Panel, as_text, limits, shift_of, style_of, ticks
from cu_ray.report.results import read
from cu_ray.sweep import tables
from cu_ray.sweep.ledger import Known, Ledger
from tests.report.made import METHODS, folder
from tests.sweep.simulator import fails, plan, record_of

MALICE = 'RuntimeError: <script>alert(1)</script><img src=x onerror=alert(2)>&amp; "quoted" {{ 7 * 7 }} ' + "x" * 300

FIGURES = ("curves", "tradeoff", "cost", "survival", "best_of_n", "landscapes")


def report(*arguments: str):
    return CliRunner().invoke(main, ["report", *arguments])


def page_of(where: Path) -> str:
    done = report(str(where))
    assert done.exit_code == 0, done.output
    return (where / "report" / "report.html").read_text()


def failing(*methods: str, error: str = MALICE):
    def outcome(job):
        method = getattr(job.spec, "method", None)
        return fails(job, error=error) if method is not None and name_of(method) in methods else record_of(job)

    return outcome


class Elements(HTMLParser):
    """The elements of a page by tag, with their attributes, and all of its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep of two cells and its report."""
    where = folder(tmp_path_factory.mktemp("report") / "whole", manipulation={"name": "backdoor", "size": [50, 100]})
    return where, page_of(where)


def test_it_writes_the_page_figures_and_tables(whole):
    files = {path.name for path in (whole[0] / "report").iterdir()}
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")}
    tables = {"results.csv", "by_seed.csv", "acc_corr.tex", "acc_retain.tex", "recovered.tex"}
    assert files == {"report.html", write.WRITTEN} | tables | figures


def test_a_folder_whose_name_no_text_can_hold_has_a_page(whole, tmp_path):
    where = tmp_path / "results-\udcff"
    shutil.copytree(whole[0], where, ignore=shutil.ignore_patterns("report"))
    page, _ = write.write([where], None, None)
    assert page == where / "report" / "report.html"
    assert "results-\\udcff" in page.read_text()


def test_what_an_earlier_report_wrote_is_deleted_and_nothing_else(tmp_path):
    where = folder(tmp_path / "one")
    (where / "report").mkdir()
    for name in ("mine.tex", "asr.tex", "plane.pdf"):  # as a report might call them
        (where / "report" / name).write_text("mine")
    page_of(where)
    assert (where / "report" / "recovered.tex").exists()
    (where / "report" / "cost.pdf").write_text("mine, in the place of a figure")
    folder(where, outcome=failing("no_unlearning", "exact_unlearning", "scrub", "ssd"))
    page_of(where)
    files = {path.name for path in (where / "report").iterdir()} - {"report.html", "results.csv", "by_seed.csv", write.WRITTEN}
    assert files == {"mine.tex", "asr.tex", "plane.pdf", "cost.pdf"}


def test_figures_stay_where_none_can_be_drawn(tmp_path, monkeypatch):
    where = folder(tmp_path / "one")
    page_of(where)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    page_of(where)
    assert (where / "report" / "curves.pdf").exists()
    monkeypatch.undo()
    folder(where, outcome=failing("no_unlearning", "exact_unlearning", "scrub", "ssd"))
    page_of(where)
    assert not (where / "report" / "curves.pdf").exists()


def test_all_figures_that_a_report_can_have_are_documented():
    root = Path(__file__).parent.parent.parent
    made = {
        name for file in (root / "cu_ray" / "report").glob("*.py") for name in re.findall(r'Figure\("(\w+)"', file.read_text())
    }
    assert made == set(FIGURES) | {"plane", "false_positives"}
    (documented,) = re.findall(r"^\| `(plane curves [\w ]+)`, each `.pdf`", (root / "docs" / "report.md").read_text(), re.M)
    assert set(documented.split()) == made


def test_the_page_asks_for_nothing_beyond_itself(whole):
    page = Elements(whole[1])
    for tag, attributes in page.found:
        assert tag not in ("link", "img", "iframe", "object", "embed"), tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith("#"), attributes
    assert "url(" not in whole[1].replace("url(#clip", "")
    policy = next(attributes["content"] for tag, attributes in page.found if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_has_a_panel_for_each_cell_and_a_row_for_each_result(whole):
    labels = [
        attributes["aria-label"] for tag, attributes in Elements(whole[1]).found if tag == "svg" and "aria-label" in attributes
    ]
    curves = [
        f"backdoor {size}: {metric}: {metric} against share of the manipulated set found"
        for size in (50, 100)
        for metric in ("acc_corr", "acc_retain")
    ]
    assert labels[:4] == curves
    table = whole[1].split('class="sortable"')[1].split("</table>")[0]
    assert table.count("<tr>") == 1 + 2 * 4 * 3
    assert "unfinished" not in whole[1].lower().split("<main")[0]


def test_only_a_sweep_that_is_there_itself_can_be_replayed(tmp_path):
    where = folder(tmp_path / "tables-alone")
    assert "cu-ray replay" not in page_of(where)
    (where / "ledger").mkdir()
    (where / "ledger" / "000001.log").write_bytes(b"")
    assert f"cu-ray replay {where} TRIAL_KEY" in page_of(where)


def test_the_page_names_the_sweep_file_where_it_is_there(tmp_path):
    where = folder(tmp_path / "one")
    again = page_of(where).split('id="again"')[1]
    assert "cu-ray sweep" not in again
    assert f"cu-ray report {where} --rule oracle_validation" in again
    (where / "sweep.yaml").write_text("name: one\n")
    (where / "ledger").mkdir()
    (where / "ledger" / "000001.log").write_bytes(b"")
    commands = page_of(where).split("<pre><code>")[1].split("</code></pre>")[0].splitlines()
    assert [line.split()[:3] for line in commands[1:]] == [
        ["cu-ray", "sweep", str(where / "sweep.yaml")],
        ["cu-ray", "report", str(where)],
        ["cu-ray", "replay", str(where)],
    ]


def test_the_csv_tables_say_the_same_as_the_contents(whole):
    contents = gather([read(whole[0])], "oracle_validation")
    written = pd.read_csv(whole[0] / "report" / "results.csv")
    assert written["acc_corr_mean"].tolist() == pytest.approx(contents.means["acc_corr_mean"].tolist())
    assert len(pd.read_csv(whole[0] / "report" / "by_seed.csv")) == 2 * 4 * 3 * 3


def test_figures_for_print_have_their_fonts_inside_as_truetype(whole):
    for name in FIGURES:
        content = (whole[0] / "report" / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in content, name
        assert b"/Type3" not in content, name


def many(num_methods, num_panels, *, title, x_label="share of the manipulated set found"):
    """A figure of curves at three fractions, all with intervals."""
    x, names = (0.1, 0.5, 1.0), [f"catastrophic_forgetting_{number}" for number in range(num_methods)]
    lines = tuple(
        Line(name, style, x, (0.2 + 0.02 * style,) * 3, (0.1,) * 3, (0.7,) * 3, joined=True) for style, name in enumerate(names)
    )
    return Figure("many", "", "", (Panel(title, x_label, "acc_corr", lines, limits(x), (0, 1)),) * num_panels)


@pytest.mark.parametrize(
    ("figure", "columns"),
    [
        (many(20, 6, title="interclass_confusion 600: acc_retain"), 2),
        (many(20, 7, title="lfssd: relative_dampening (5%)", x_label="relative_dampening"), 3),
        (many(2, 5, title="scrub: alpha (17%)", x_label="alpha"), 4),
        (many(20, 1, title="interclass_confusion 600: acc_retain"), 1),
        (many(9, 3, title="interclass_confusion 600 train.steps=600 detection=spectral_signatures resnet9(width=8): acc"), 2),
        (many(1, 2, title="backdoor 300"), 2),
        (many(0, 1, title="backdoor 300"), 1),
    ],
)
def test_in_figures_for_print_nothing_lies_on_another_or_is_cut_off(figure, columns):
    with mpl.rc_context(paper.LOOK):
        drawing = paper.drawn(figure)
        renderer = drawing.canvas.get_renderer()
        places = [place for place in drawing.axes if place.axison]
        across = [place.get_window_extent(renderer) for place in places]
        assert len({round(box.x0) for box in across}) == columns
        texts = [text for place in places for text in (place.title, place.xaxis.label, place.yaxis.label)]
        texts += [text for place in places for axis in (place.xaxis, place.yaxis) for text in axis.get_ticklabels()]
        boxes = [each.get_window_extent(renderer) for each in (*texts, *drawing.legends)]
        named = [text.get_text() for legend in drawing.legends for text in legend.get_texts()]
        lines = [line.name for line in figure.panels[0].lines]
        assert named == (lines if len(lines) > 1 else [])
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= drawing.bbox.width
            assert 0 <= box.y0 < box.y1 <= drawing.bbox.height
        overlaps = [(a, b) for a, b in itertools.combinations([*boxes, *across], 2) if a.overlaps(b)]
        assert not overlaps
        for place, frame in zip(places, across, strict=True):
            for line in place.lines:
                for point in line.get_transform().transform(line.get_xydata()):
                    assert frame.contains(*point)


def test_intervals_of_many_methods_stay_near_their_fraction():
    lines = many(20, 1, title="").panels[0].lines
    shifts = [shift_of(line, place, 20, 0.9, 9) for place, line in enumerate(lines)]
    assert shifts == pytest.approx([9 * (number / 19 - 0.5) for number in range(20)])
    assert [shift_of(lines[7], place, 3, 0.9, 9) for place in range(3)] == pytest.approx([-0.9, 0, 0.9])
    assert shift_of(lines[0], 0, 1, 0.9, 9) == 0
    assert shift_of(replace(lines[0], low=(), high=()), 0, 20, 0.9, 9) == 0


def test_two_results_are_compared_in_the_cells_that_they_share(whole, tmp_path):
    other = folder(tmp_path / "other")
    done = report(str(whole[0]), str(other), "--to", str(tmp_path / "both"), "--rule", "oracle")
    assert done.exit_code == 0, done.output
    text = Elements((tmp_path / "both" / "report.html").read_text()).text
    assert all(said in text for said in ("whole and other", "ssd (whole)", "ssd (other)", "backdoor 50", "backdoor 100"))


def test_what_comes_from_the_tables_is_text_and_nothing_else(tmp_path):
    page = page_of(folder(tmp_path / "one", outcome=failing("ssd")))
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert MALICE in page.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&amp;", "&")
    assert "<img" not in page


def test_names_from_the_tables_are_text_too(tmp_path):
    where = folder(tmp_path / "<i>'one")
    for name in ("trials", "best"):
        path = where / "tables" / f"{name}.parquet"
        schema, frame = pq.read_schema(path), pd.read_parquet(path)
        frame["method"] = frame["method"].replace("ssd", "<b onclick='x'>\"ssd")
        frame["manipulation_settings"] = frame["manipulation_settings"].str.replace("bottom_right", "</svg><u>")
        pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), path)
    elements = Elements(page_of(where))
    assert not {"i", "b", "u"} & {tag for tag, _ in elements.found}
    assert "<b onclick='x'>\"ssd" in elements.text


def test_a_method_all_of_whose_trials_failed_is_named_with_its_reason(tmp_path):
    text = Elements(page_of(folder(tmp_path / "one", outcome=failing("ssd", error="OSError: gone")))).text
    assert re.search(r"ssd has no result: all \d+ trials failed", text)
    assert "OSError: gone" in text


def test_where_all_failed_the_page_says_so_and_has_no_figure(tmp_path):
    where = folder(tmp_path / "one", outcome=failing("no_unlearning", "exact_unlearning", "scrub", "ssd"))
    done = report(str(where))
    assert done.exit_code == 0
    assert "No trial has a score yet" in done.output
    assert "<figure" not in (where / "report" / "report.html").read_text()


def test_an_unfinished_sweep_is_marked(tmp_path):
    where = folder(tmp_path / "one")
    (where / "status.json").write_text(json.dumps({"trials": 90, "trials_done": 12}))
    head = page_of(where).split("<main")[0]
    assert "<strong>Unfinished:</strong> 12 of 90 trials are done" in head


def test_so_are_its_figures_and_tables(tmp_path):
    def drawn(where, *more):
        done = report(str(where), *more)
        place = where.parent / "both" if more else where / "report"
        with Image.open(place / "curves.png") as picture:
            height = picture.size[1]
            darkest = picture.convert("L").crop((0, height - 30, 400, height)).getextrema()[0]
        return done.output, height, darkest, (place / "acc_corr.tex").read_text().splitlines()[0]

    where, said = folder(tmp_path / "one"), "12 of 90 trials are done"
    output, height, darkest, first = drawn(where)
    assert darkest == 255
    assert "nfinished" not in output and first.startswith("% needs")
    (where / "status.json").write_text(json.dumps({"trials": 90, "trials_done": 12}))
    output, taller, darkest, first = drawn(where)
    assert f"Note: unfinished: {said}\n" in output
    assert first == f"% UNFINISHED: {said}"
    assert (taller, darkest < 150) == (height + 0.1 * paper.DOTS, True)
    shown = [CliRunner().invoke(main, ["table", str(where), *more]).output for more in ((), ("--latex", "acc_corr"))]
    assert f"Note: unfinished: {said}.\n" in shown[0] and shown[1].startswith(f"% UNFINISHED: {said}\n")
    output, *_, first = drawn(where, str(folder(tmp_path / "whole")), "--to", str(tmp_path / "both"))
    assert f"Note: unfinished: one: {said}\n" in output and first == f"% UNFINISHED: one: {said}"


def test_a_note_stands_below_a_figure_on_nothing_else():
    figure = many(20, 1, title="interclass_confusion 600: acc_retain")
    with mpl.rc_context(paper.LOOK):
        drawing = paper.drawn(figure)
        box = paper._footed(drawing, "UNFINISHED: " + " ".join(["some_$folder: 1 of 2 trials are done;"] * 5))
        (note,) = drawing.texts
        place = note.get_window_extent().transformed(drawing.dpi_scale_trans.inverted())
    assert box.x0 <= place.x0 < place.x1 <= box.x1 and box.y0 <= place.y0 < place.y1 <= 0
    assert (box.width, box.y1) == tuple(drawing.get_size_inches())


def say(where, *, running):
    facts = {"process": os.getpid(), "host": platform.node(), "storage": "store", "device": "cpu", "trials_failed": 0}
    facts |= {"trials": 9, "trials_done": 3, "originals": 1, "originals_done": 1, "studies": 1}
    (where / "status.json").write_text(json.dumps({**facts, "running": running}))


def test_a_running_sweep_is_watched_to_its_end(tmp_path, monkeypatch):
    where, looks = folder(tmp_path / "small"), []

    def sleep(seconds):
        looks.append((where / "report" / "report.html").read_text())
        say(where, running=len(looks) < 2)

    say(where, running=True)
    monkeypatch.setattr("cu_ray.cli.look.time.sleep", sleep)
    with Ledger(where / "ledger"):
        done = report(str(where), "--watch")
    assert done.exit_code == 0, done.output
    assert len(looks) == 2
    assert all('<meta http-equiv="refresh" content="30">' in page for page in looks)
    assert "refresh" not in (where / "report" / "report.html").read_text()


def test_the_first_tables_of_a_sweep_that_runs_are_waited_for(tmp_path, monkeypatch):
    where = folder(tmp_path / "small")
    (where / "tables").rename(tmp_path / "tables")
    say(where, running=True)

    def sleep(seconds):
        if (tmp_path / "tables").exists():
            assert not (where / "report").exists()
            (tmp_path / "tables").rename(where / "tables")
        else:
            say(where, running=False)

    monkeypatch.setattr("cu_ray.cli.look.time.sleep", sleep)
    with Ledger(where / "ledger"):
        done = report(str(where), "--watch")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Waiting for the first tables ...\n{where / 'report' / 'report.html'} as of ")
    (where / "tables" / "best.parquet").unlink()
    ended = report(str(where), "--watch")  # nothing more is to come
    assert ended.exit_code == 2
    assert f"there is no {where / 'tables' / 'best.parquet'}" in ended.output
    shutil.rmtree(where / "tables")
    ended = report(str(where), "--watch")
    assert ended.exit_code == 2
    assert "there are no tables in" in ended.output


def test_tables_from_before_the_first_trial_are_a_page(tmp_path):
    made = plan(METHODS, seeds=[0, 1])
    tables.write(tmp_path / "one" / "tables", made, Known())
    done = report(str(tmp_path / "one"))
    assert done.exit_code == 0, repr(done.exception)
    assert "No trial has a score yet" in done.output


def test_one_seed_has_no_interval_anywhere(tmp_path):
    where = folder(tmp_path / "one", seeds=[0])
    page = page_of(where)
    assert 'class="interval"' not in page
    assert "one seed: nothing says how much is chance" in page
    assert "pm" not in (where / "report" / "acc_corr.tex").read_text()
    assert pd.read_csv(where / "report" / "results.csv")["acc_corr_low"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "the folder of a sweep"),
        (["one", "--rule", "oracel"], "Did you mean 'oracle'?"),
        (["one", "one"], "given twice"),
    ],
)
def test_wrong_use_is_one_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "one")
    done = report(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_folder_that_cannot_be_written_is_named_with_what_was_to_be_there(tmp_path):
    refused = report(str(folder(tmp_path / "one")), "--to", "/proc/zz")
    assert refused.exit_code == 2
    assert "cu-ray: the report cannot be written to /proc/zz: No such file or directory. Give another" in refused.output


def test_without_matplotlib_there_is_a_page_and_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    where = folder(tmp_path / "one")
    done = report(str(where))
    assert "pip install 'cu-ray[figures]'" in done.output
    assert not list((where / "report").glob("*.pdf"))
    assert "<figure" in (where / "report" / "report.html").read_text()


# ---------------------------------------------------------------------------------------------------------------- LaTeX


def clear(spec, seed):
    """SSD is far better than the others in acc_corr, by differences that vary; in acc_retain all are alike."""
    wobble = {0: 0.0, 1: 0.011, 2: -0.007}[seed]
    return (0.9 + wobble if name_of(spec.method) == "ssd" else 0.2 + 0.001 * len(name_of(spec.method))), 0.8 - wobble


def test_bold_is_what_is_best_beyond_chance(tmp_path):
    contents = gather([read(folder(tmp_path / "one", clear))], "oracle_validation")
    corr = latex.table(contents, "acc_corr")
    assert corr.count("\\textbf") == 3
    assert all("ssd" in line for line in corr.splitlines() if "\\textbf" in line)
    assert "\\textbf" not in latex.table(contents, "acc_retain")
    assert "0.901} {\\scriptsize $\\pm$ 0.009}" in corr
    assert [corr.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 1, 1]
    assert {line.count("&") for line in corr.splitlines() if line.endswith("\\\\")} == {4}


def test_latex_takes_names_for_text():
    assert latex.escaped(r"a_b 5% \x {y} ~^") == r"a\_b 5\% \textbackslash{}x \{y\} \textasciitilde{}\textasciicircum{}"


# -------------------------------------------------------------------------------------------------------------- figures


def test_ticks_are_round_and_within():
    assert ticks((0, 1)) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks((0.745, 0.862)) == [0.76, 0.78, 0.8, 0.82, 0.84, 0.86]
    assert ticks((-13, 290)) == [0, 100, 200]
    assert ticks((0.002, 30), log=True) == [0.01, 0.1, 1, 10]
    assert ticks((0.15, 0.9), log=True) == [0.2, 0.5]
    assert [as_text(number) for number in (0.5, 2000, 20000, 3e6)] == ["0.5", "2000", "20k", "3M"]


def test_limits_hold_all_values_and_something_where_there_are_none():
    assert limits([]) == (0, 1)
    low, high = limits([0.5])
    assert low < 0.5 < high
    low, high = limits([0.0, math.nan, 1.0])
    assert (low, high) == pytest.approx((-0.07, 1.07))
    low, high = limits([0.01, 100], log=True)
    assert 0 < low < 0.01 < 100 < high


def test_methods_are_told_apart_without_colour():
    first = [style_of(place)[1:] for place in range(8)]
    assert len(set(first)) == 8
    assert len({style_of(place) for place in range(24)}) == 24


def test_the_front_is_what_none_beats_in_both():
    assert _front([(0.1, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.3)]) == ((0.1, 0.9), (0.5, 0.5), (0.9, 0.1))


def test_importance_is_the_share_of_the_variance():
    alone = pd.DataFrame({"hp_a": [1.0, 2, 3] * 10, "behind": [-0.1, 0, -0.3] * 10})
    assert _importance(alone, "hp_a") == pytest.approx(1)
    nothing = pd.DataFrame({"hp_a": [1.0] * 15 + [2.0] * 15, "behind": [-0.1, 0, -0.3] * 10})
    assert _importance(nothing, "hp_a") == 0
    assert _importance(nothing.assign(behind=0.0), "hp_a") == 0


def test_numbers_are_short():
    shown = [short(number) for number in (0.1, 0.12345, 3, 12345.6, 0.00001, 55.25)]
    assert shown == ["0.1", "0.123", "3", "12,346", "1e-05", "55.25"]
