"""`extends`: what a sweep file has from another, in which order, and where its faults are said to be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from cu_ray import config
from cu_ray.cli import main
from cu_ray.errors import Faults, UserError
from cu_ray.plugins import name_of

BASE = """
name: base
dataset: fashion_mnist_small
model: {name: resnet9, width: 2}
manipulation: {name: backdoor, size: [100, 300], patch: 4}
train: {steps: 12, lr: 0.05, batch_size: 64, precision: fp32}
deletion_fractions: [0.1, 0.5]
seeds: [0, 1]
methods:
  scrub:
    steps: 6
    alpha: [0.1, 1]
  no_unlearning: {}
  ssd: {relative_dampening: 1, selection_share: [0.01, 0.1]}
search: {sampler: grid, lag: 2, objective: oracle}
controls: {never_manipulated: true, unlearning_seeds: 2}
runtime: {storage: store, workers: 3}
"""


def load(folder: Path, **files: str):
    """The sweep of the last of these files."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return config.load(path)


def faults_of(folder: Path, **files: str) -> list[str]:
    """What is wrong with the last of these files."""
    with pytest.raises(Faults) as caught:
        load(folder, **files)
    return caught.value.faults


def method(sweep, name: str):
    """The plan of a method."""
    return next(plan for plan in sweep.methods if name_of(plan.cls) == name)


def everything(sweep) -> dict:
    """All that a sweep is, but its name, its place, and how it was written."""
    return {name: repr(getattr(sweep, name)) for name in vars(sweep) if name not in ("name", "source", "text")}


def test_a_file_that_only_extends_another_and_has_a_name_is_the_same_sweep(tmp_path):
    child = load(tmp_path, base=BASE, child="extends: base.yaml\nname: child\n")
    assert child.name == "child"
    assert everything(child) == everything(config.load(tmp_path / "base.yaml"))
    assert "extends" not in child.text
    assert everything(load(tmp_path, whole=child.text)) == everything(child)  # the text needs no other file


@pytest.mark.parametrize(
    ("section", "given", "expected"),
    [
        ("train", "{steps: 20}", {"steps": 20, "lr": 0.05, "batch_size": 64, "precision": "fp32"}),
        ("search", "{lag: 3, seeds: all}", {"sampler": "grid", "lag": 3, "objective": "oracle", "seeds": "all"}),
        ("controls", "{trigger_only: true}", {"never_manipulated": True, "trigger_only": True, "unlearning_seeds": 2}),
        ("runtime", "{storage: other}", {"storage": "other", "workers": 3}),
    ],
)
def test_single_entries_of_some_sections_are_replaced(tmp_path, section, given, expected):
    child = load(tmp_path, base=BASE, child=f"extends: base.yaml\nname: child\n{section}: {given}\n")
    got = asdict(child.trains[0] if section == "train" else getattr(child, section))
    assert {name: got[name] for name in expected} == expected
    base = everything(config.load(tmp_path / "base.yaml"))
    changed = {name for name, value in everything(child).items() if base[name] != value}
    assert changed == ({"trains"} if section == "train" else {section, "methods"} & changed)
    assert changed


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("manipulation", "{name: backdoor, size: 200}"),
        ("model", "{name: resnet9}"),
        ("dataset", "fashion_mnist_small"),
        ("deletion_fractions", "[1.0]"),
        ("seeds", "[7]"),
        ("detection", "uniform"),
    ],
)
def test_other_sections_replace_the_whole(tmp_path, section, given):
    child = load(tmp_path, base=BASE, child=f"extends: base.yaml\nname: child\n{section}: {given}\n")
    lines = [line for line in BASE.splitlines() if not line.startswith(f"{section}:")]
    alone = load(tmp_path, alone="\n".join(lines) + f"\n{section}: {given}\n")
    assert everything(child) == everything(alone)
    if section == "manipulation":
        assert child.manipulations[0][1].patch == 3


def test_hyperparameters_replace_single_ones_and_methods_keep_the_order_of_the_base(tmp_path):
    child = load(
        tmp_path,
        base=BASE,
        child="""
extends: base.yaml
name: child
methods:
  bad_teaching: {steps: 3}
  ssd: {selection_share: 0.2}
  scrub: {alpha: {low: 1, high: 2, num: 3}}
""",
    )
    assert [name_of(plan.cls) for plan in child.methods] == ["scrub", "no_unlearning", "ssd", "bad_teaching"]
    scrub, ssd = method(child, "scrub"), method(child, "ssd")
    assert (scrub.fixed["steps"], scrub.space["alpha"].values) == (6, (1.0, 1.5, 2.0))  # a range replaces a list whole
    assert (ssd.fixed["relative_dampening"], ssd.fixed["selection_share"], ssd.budget) == (1, 0.2, 1)


def test_a_base_may_extend_another_in_another_folder(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "base.yaml").write_text(BASE)
    (tmp_path / "common" / "middle.yaml").write_text("extends: base.yaml\ntrain: {steps: 30}\nseeds: [4]\n")
    (tmp_path / "mine").mkdir()
    child = load(tmp_path / "mine", child="extends: ../common/middle.yaml\nname: c\ntrain: {lr: 0.1}\n")
    assert (child.trains[0].steps, child.trains[0].lr, child.trains[0].batch_size) == (30, 0.1, 64)
    assert (child.name, child.seeds) == ("c", (4,))
    assert len(child.methods) == 3


# --------------------------------------------------------------------------------------------------------------- faults


def test_a_fault_names_the_file_and_line_that_it_is_in(tmp_path):
    broken = BASE.replace("patch: 4", "patch: 40").replace("steps: 6", "steps: 0")
    faults = faults_of(
        tmp_path,
        base=broken,
        middle="extends: base.yaml\nsearch: {lag: 0}\n",
        child="extends: middle.yaml\n\nname: child\nmethods:\n  ssd: {relative_dampening: -1}\n",
    )
    base, middle = tmp_path / "base.yaml", tmp_path / "middle.yaml"
    assert len(faults) == 4, faults
    starts = [
        f"search.lag (line 2 of {middle}): 0 is not allowed",
        f"methods.scrub.steps (line 11 of {base}): 0 is not allowed",
        "methods.ssd.relative_dampening (line 5): -1 is not allowed",
        f"manipulation.patch (line 5 of {base}): a patch of 40 pixels",
    ]
    for start in starts:
        assert any(fault.startswith(start) for fault in faults), (start, faults)


def test_what_is_replaced_cannot_be_at_fault(tmp_path):
    broken = BASE.replace("patch: 4", "patch: 40").replace("lr: 0.05", "lr: -1").replace("alpha: [0.1, 1]", "alpha: nothing")
    child = (
        "extends: base.yaml\nname: child\nmanipulation: {name: backdoor, size: 5}\ntrain: {lr: 1}\nmethods: {scrub: {alpha: 1}}\n"
    )
    assert load(tmp_path, base=broken, child=child + "deletion_fractions: [1.0]\n").trains[0].lr == 1


def test_a_base_that_is_not_yaml_is_named(tmp_path):
    with pytest.raises(Faults, match="not YAML") as caught:
        load(tmp_path, base="a: [", child="extends: base.yaml\n")
    assert caught.value.source == str(tmp_path / "base.yaml")
    with pytest.raises(Faults, match="given more than once") as caught:
        load(tmp_path, base=BASE + "name: again\n", child="extends: base.yaml\n")
    assert caught.value.source == str(tmp_path / "base.yaml")


@pytest.mark.parametrize("text", ["", "[a, b]", "just a text"])
def test_a_base_that_is_no_mapping_is_refused(tmp_path, text):
    (fault,) = faults_of(tmp_path, base=text, child="extends: base.yaml\nname: x\n")
    assert fault.startswith("extends (line 1): ")
    assert "is not a mapping" in fault


def test_files_that_extend_one_another_in_a_circle_are_refused(tmp_path):
    (itself,) = faults_of(tmp_path, alone="name: x\nextends: alone.yaml\n")
    assert itself == "extends (line 2): 'alone.yaml' extends this file in turn"
    (tmp_path / "sub").mkdir()
    files = {"a": "extends: b.yaml\n", "b": "extends: sub/../c.yaml\n"}
    with pytest.raises(Faults, match=r"extends \(line 1\): 'a.yaml' extends this file in turn") as caught:
        load(tmp_path, **files, c="extends: a.yaml\n", start="extends: a.yaml\n")
    assert Path(caught.value.source).resolve() == (tmp_path / "c.yaml").resolve()


def test_a_missing_base_and_one_that_is_no_file_are_named(tmp_path):
    for given in ("nowhere.yaml", ".", "''"):
        (fault,) = faults_of(tmp_path, child=f"name: x\nextends: {given}\n")
        assert fault.startswith("extends (line 2): there is no file ")
        assert str(tmp_path / given.strip("'")) in fault


@pytest.mark.parametrize("given", ["[a.yaml, b.yaml]", "3", "{file: a.yaml}", "null", "true"])
def test_a_base_is_given_by_one_path(tmp_path, given):
    (fault,) = faults_of(tmp_path, child=f"extends: {given}\n")
    assert fault.startswith("extends (line 1): ")
    assert "is not allowed. Allowed: the path of one sweep file." in fault


def test_a_text_extends_a_file_by_its_path_from_the_current_folder(tmp_path, monkeypatch):
    load(tmp_path / "sub", base=BASE)
    text = "extends: sub/base.yaml\nname: child\nsearch: {lag: %s}\n"
    monkeypatch.chdir(tmp_path)
    sweep = config.parse(text % 3)
    assert (sweep.name, sweep.search.lag, sweep.search.objective) == ("child", 3, "oracle")
    with pytest.raises(Faults, match=r"search.lag \(line 3\): 0 is not allowed"):
        config.parse(text % 0)


def test_the_word_misspelt_is_told_the_nearest(tmp_path):
    faults = faults_of(tmp_path, base=BASE, child="extend: base.yaml\nname: x\n")
    assert "Did you mean 'extends'?" in faults[0]


@pytest.mark.parametrize("child", ["extends: nowhere.yaml\n", "extends: child.yaml\n", "extends: [1]\n"])
def test_the_command_says_it_in_one_message(tmp_path, child):
    (tmp_path / "child.yaml").write_text(child)
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "child.yaml")])
    assert result.exit_code == 2
    assert "1 fault" in result.output
    assert "Traceback" not in result.output


def test_a_base_that_cannot_be_read_is_one_message(tmp_path):
    (tmp_path / "base.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path, child="extends: base.yaml\n")


def test_a_name_is_not_inherited_or_two_sweeps_would_share_a_folder(tmp_path):
    assert faults_of(tmp_path, base=BASE, child="extends: base.yaml\nseeds: [7]\n") == ["the section 'name' is missing"]
