"""What the documentation shows works as printed."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt  # of rich

import cu_ray
from cu_ray import config, methods, metrics, plugins, types
from cu_ray.cli import main
from cu_ray.selection import RULES
from cu_ray.sweep import tables
from cu_ray.types import TrainRecipe
from tests import sweeps
from tests.report.made import folder

ROOT = Path(__file__).parent.parent


def block(page: str, language: str, number: int = 0) -> str:
    """A fenced block of that language on a page, the first by default."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)[number]


def test_the_example_sweep_file_is_one():
    sweep = config.parse(block("docs/sweep-file.md", "yaml"), "docs/sweep-file.md")
    assert [plugins.name_of(plan.cls) for plan in sweep.methods] == ["no_unlearning", "exact_unlearning", "scrub", "ssd"]
    assert len(sweep.manipulations) == 3


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").rglob("*.yaml"), key=str), ids=str)
def test_every_sweep_file_of_the_repository_is_sound(file):
    assert config.load(file).name == "_".join(file.relative_to(ROOT / "sweeps").with_suffix("").parts)


ADDING, PLUGINS = "docs/adding-a-method.md", "docs/adding-a-plugin.md"


def write_files(page: str, where: Path) -> Path:
    """The folder with the files that a page shows: the blocks whose first line is a comment with the file's name."""
    for text in re.findall(r"^```(?:python|yaml)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S):
        if named := re.match(r"# (\w+\.\w+)", text):
            (where / named[1]).write_text(text, encoding="utf-8")
    return where


def edit(file: Path, *changes: tuple[str, str]) -> None:
    """Put the second in place of the first in a file, which must have it."""
    text = file.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text, encoding="utf-8")


def run(where: Path, *lines: str) -> list[str]:
    """What these `cu-ray` commands print."""
    printed = []
    for line in lines:
        done = sweeps.command(where, *line.split()[1:])
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return printed


def test_the_first_example_method_is_short():
    assert len(block(ADDING, "python").splitlines()) < 40


@pytest.mark.parametrize("page", [ADDING, PLUGINS])
def test_the_example_plugins_meet_their_contracts(page, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", str(write_files(page, tmp_path))]
    tested = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout


def test_there_is_an_example_with_its_test_of_each_kind():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in (ADDING, PLUGINS))
    tested = re.findall(r"^class Test\w+\((\w+)\):\n    plugin = ", text, re.M)
    assert set(tested) == {f"{plugins.contract(kind).__name__}Conformance" for kind in plugins.KINDS}


CONTRACTS = {
    ADDING: [types.UnlearningTask, types.Stream, types.Batch, types.Optimisation, types.Sizes, types.Cost],
    PLUGINS: [types.DatasetFacts, types.Dataset, types.Images, types.Normalisation, types.Augmentation, types.Evidence],
}
CONTRACTS[ADDING] += [plugins.Bound, plugins.Search, methods.Method]
CONTRACTS[PLUGINS] += [types.Corruption, types.Stamp, types.Domains, types.View, metrics.Outcome]
CONTRACTS[PLUGINS] += [plugins.contract(kind) for kind in plugins.KINDS if kind != "methods"]
OF_USE_TO_STAGES = {"admits", "passes", "apply", "maximum", "class_index", "num_classes", "image_shape", "content_hash", "rate"}


@pytest.mark.parametrize("page", CONTRACTS)
def test_the_pages_on_plugins_name_all_that_a_plugin_is_given_and_gives(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for cls in CONTRACTS[page]:
        own = {name for name in vars(cls) if name[0] != "_"} | set(vars(cls).get("__annotations__", ()))
        missing = [name for name in sorted(own - OF_USE_TO_STAGES) if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)]
        assert missing == [], f"{page} does not say what {cls.__name__} has"


def test_the_example_methods_come_from_their_file_to_their_line_in_the_figure(tmp_path):
    """The page's own sweep file and commands; the model narrower, fewer steps and points."""
    mine = write_files(ADDING, tmp_path)
    fewer = [("width: 8", "width: 2"), ("steps: 300", "steps: 12"), ("trials: 8", "trials: 2")]
    edit(mine / "mine.yaml", *fewer)
    tries, (sweeping, reporting) = (block(ADDING, "bash", number).splitlines() for number in range(2))
    run(mine, *(f"{line} --set steps=2 --sweep mine.yaml" for line in tries), sweeping, reporting)
    page = (mine / "results" / "mine" / "report" / "report.html").read_text(encoding="utf-8")
    curves = page.split('<section id="curves">')[1].split("</section>")[0]
    for name in ("fancy:Fancy", "random_labels:RandomLabels"):
        assert len(re.findall(rf"<title>{name} at (0.1|1): ", curves)) == 2 * 2, "two fractions, two metrics"


@pytest.mark.parametrize(("seeds", "searched", "fixed"), [("first", 1, 2), ("each", 2, 2), ("all", 2, 2)])
def test_methods_are_reported_on_as_many_seeds_as_the_page_says(seeds, searched, fixed, tmp_path):
    assert f"`search: {{seeds: {seeds}}}`" in (ROOT / ADDING).read_text(encoding="utf-8")
    made = folder(tmp_path / "made", methods={"no_unlearning": {}, "scrub": {"trials": 2}}, seeds=[0, 1], search={"seeds": seeds})
    best = pd.read_parquet(made / "tables" / "best.parquet").query("rule == 'oracle_validation'")
    assert {method: set(n) for method, n in best.groupby("method")["n"]} == {"no_unlearning": {fixed}, "scrub": {searched}}


def test_the_example_plugins_run_in_one_sweep(tmp_path):
    """The page's own sweep file and commands; fewer steps and points."""
    own = write_files(PLUGINS, tmp_path)
    edit(own / "own.yaml", ("steps: 200", "steps: 20"), ("steps: 100", "steps: 5"), ("trials: 4", "trials: 2"))
    *_, shown = run(own, *block(PLUGINS, "bash").splitlines())
    assert "FalseAlarms" in shown
    trials = sweeps.table(own / "results" / "own", "trials")
    assert set(trials["status"]) == {"ok"}
    for kind, name in (("dataset", "bars:Bars"), ("model", "small_cnn:SmallCnn"), ("manipulation", "corners:Corners")):
        assert trials[kind].str.startswith(name).all()
    assert trials["detection"].str.startswith("far_out:FarOut").all()


@pytest.mark.parametrize("kind", ["methods", "manipulations", "detections", "datasets", "models"])
def test_every_plugin_is_documented(kind):
    page = (ROOT / "docs" / f"{kind}.md").read_text(encoding="utf-8")
    assert [name for name in plugins.names(kind) if f"`{name}`" not in page] == []


def test_every_rule_is_documented():
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert [rule for rule in RULES if f"`{rule}`" not in page] == []


def test_every_column_is_documented(tmp_path):
    from cu_ray.sweep.ledger import Known
    from cu_ray.sweep.plan import Plan

    tables.write(tmp_path, Plan("empty", (), {}, ()), Known())
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    for name in ("trials", "originals", "best", "curves"):
        for column in pq.read_schema(tmp_path / f"{name}.parquet").names:
            stem = re.sub(r"^(val|report|hp)_|_(mean|std|low|high|given|true)$", "", column)
            assert re.search(rf"\b{stem}", page), f"docs/tables.md does not say what {name}.{column} is"


def test_the_reference_is_what_the_code_says():
    made = "\n\n".join(printed("reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").rstrip("\n") == made, "scripts/reference.py makes it anew"


def test_every_section_and_setting_of_a_sweep_file_is_documented():
    page = (ROOT / "docs" / "sweep-file.md").read_text(encoding="utf-8")
    missing = [name for name in (*config.SECTIONS, "extends") if not re.search(rf"^## {name}\b|^{name}:", page, re.M)]
    sections = {
        "search": config.SearchSection,
        "controls": config.ControlsSection,
        "original": config.OriginalSection,
        "runtime": config.RuntimeSection,
    }
    for section, cls in sections.items():
        text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        missing += [f"{section}.{name}" for name in plugins.facts(cls) if not re.search(rf"`{name}\b|\b{name}:", text)]
    train = re.search(r"^train: .*", page, re.M)[0]
    missing += [f"train.{name}" for name in plugins.facts(TrainRecipe) if f"{name}:" not in train]
    under = page.partition("\n## Under a method\n")[2].partition("\n## ")[0]
    missing += [name for name in (*config.RESERVED, "low", "high", "log", "num") if f"{name}:" not in under]
    assert missing == []


def test_the_page_on_python_runs_as_printed(tmp_path):
    (tmp_path / "sweeps").mkdir()
    file = sweeps.small(tmp_path / "sweeps", fractions="[1.0]", seeds="[0]", name="quickstart.yaml")
    file.write_text(file.read_text().replace("name: small", "name: quickstart"))
    code = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.M | re.S)
    code.append("assert len(earlier.trials) == results.outcome.estimate.trials_done == 4")
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Starting Ray on this machine")


def test_the_page_on_python_names_every_option_and_outcome():
    from cu_ray.sweep.runner import Outcome

    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    options = {name for each in (cu_ray.Sweep.load, cu_ray.Sweep.run) for name in inspect.signature(each).parameters}
    missing = [name for name in options - {"self", "path"} if f"{name}=" not in page]
    missing += [name for name in cu_ray.__all__ if f"cu_ray.{name}" not in page]
    missing += [field.name for field in dataclasses.fields(Outcome) if field.name not in page]
    assert missing == []


def test_the_page_on_the_report_runs_as_printed_and_names_every_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "results" / "quickstart")
    folder(tmp_path / "results" / "other", seeds=[2, 3])
    for line in block("docs/report.md", "bash").splitlines():
        done = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert done.exit_code == 0, done.output
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    written = {path.stem for path in (tmp_path / "results" / "quickstart" / "report").iterdir()}
    assert [name for name in written if name not in page] == []
    assert {path.name for path in tmp_path.iterdir()} >= {"oracle-report", "compared"}


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/incident/README.md",
]


def commands(page: Path) -> list[list[str]]:
    """The words of each `cu-ray` command on a page, in a block or in a line; `a|b` is two commands.

    With what is in brackets, without where the shell is to write.
    """
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^(?:\S*/)?cu-ray (.+)$", text, re.M) + re.findall(r"`cu-ray ([^`\n]+)`", text)
    split = [shlex.split(re.sub(r" > \S+|[\[\]]|\.\.\.", "", line), comments=True) for line in found]
    return [[name, *more] for names, *more in split for name in names.replace("\\", "").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_paragraph_of_a_page_is_a_table_or_a_list_that_lost_its_lines(page):
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    texts = [token.content for token in tokens if token.type == "inline"]
    assert len(texts) > 3
    assert [text for text in texts if "|--" in text or re.search(r"[.)] \d\. (\*\*|[A-Z])", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists_with_its_options(page):
    for name, *words in commands(page):
        assert name in main.commands, f"{page.name}: cu-ray {name}"
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"{page.name}: cu-ray {name} {shlex.join(words)}"


def test_a_command_that_is_shown_whole_is_one_by_click():
    shown = [command for page in PAGES for command in commands(page) if len(command) > 1]
    assert len(shown) > 40
    for name, *words in shown:
        try:
            main.commands[name].make_context(name, list(words))
        except click.MissingParameter:
            assert name in ("sweep", "list"), (name, words)  # `cu-ray sweep --local`: less its file
        except click.UsageError as problem:
            pytest.fail(f"cu-ray {name} {shlex.join(words)}: {problem.message}")


READING = ["diff", "explain", "list", "plan", "report", "table"]


@pytest.mark.parametrize("name", READING)
def test_readmes_table_of_commands_runs_as_printed(name, tmp_path, monkeypatch):
    trials = pd.read_parquet(folder(tmp_path / "results" / "quickstart") / "tables" / "trials.parquet")
    folder(tmp_path / "results" / "other", seeds=[2, 3])
    monkeypatch.chdir(tmp_path)
    given = {
        "results/NAME": "results/quickstart",
        "TRIAL_KEY": trials["trial_key"][0],
        "FILE": str(ROOT / "sweeps/quickstart.yaml"),
    }
    given |= {"OTHER": "results/other", "OTHERS": "results/other", "NAME": "ssd"}
    (shown,) = [words for words in commands(ROOT / "README.md") if words[0] == name]
    done = CliRunner().invoke(main, [given.get(word, word) for word in shown])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert done.output


def test_readme_has_its_two_commands_on_one_line_each():
    script = ROOT / "scripts" / "readme_command.py"
    for heading in ("Run it", "Test it"):
        done = subprocess.run([sys.executable, str(script), heading], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1


def printed(script: str, *arguments: Path) -> list[str]:
    """What a script of the repository prints, its tables apart."""
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split("\n\n")


def test_the_tables_of_the_map_are_those_of_its_results():
    parts = printed("map_page.py", ROOT / "docs" / "map", ROOT / "docs" / "without_peeking")
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    assert len(parts) == 4
    assert all(part in page for part in parts)


def test_the_tables_of_the_published_grid_in_miniature_are_those_of_its_results(tmp_path):
    results = (ROOT / "docs" / "fashion_paper", ROOT / "docs" / "fashion_noise")
    parts = printed("paper_checklist.py", *results, tmp_path / "fashion-paper")
    page = (ROOT / "docs" / "fashion-paper.md").read_text(encoding="utf-8")
    assert len(parts) == 4
    assert all(part in page for part in parts)
    assert (tmp_path / "fashion-paper.csv").read_bytes() == (ROOT / "docs" / "fashion-paper.csv").read_bytes()


@pytest.mark.parametrize(("report", "results"), [("map", "map"), ("gallery", "fashion_paper")])
def test_a_report_on_the_site_is_of_the_tables_beside_it(report, results):
    page = (ROOT / "docs" / report / "report.html").read_text(encoding="utf-8")
    for table in (ROOT / "docs" / results / "tables").iterdir():
        assert hashlib.sha256(table.read_bytes()).hexdigest() in page, f"the report is not of this {table.name}"
