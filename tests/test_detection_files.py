"""The detection `from_file`: what it finds at each fraction, what it was worth, what is identity, and wrong lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cu_ray import config
from cu_ray.cli import main
from cu_ray.detections.from_file import FromFile
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.methods.gradient_ascent import GradientAscent
from cu_ray.plugins import build, describe
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect, poison
from cu_ray.sweep import plan
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec
from tests.test_incident_files import FACTS, FORMATS, csv_of

DATASET = tiny_dataset()
POISONED = poison(DATASET, Backdoor(size=15, target=1), seed=0)
MANIPULATED = POISONED.corruption.indices.tolist()
CLEAN = sorted(set(range(60)) - set(MANIPULATED))
FOUND = [MANIPULATED[3], CLEAN[7], MANIPULATED[0], MANIPULATED[9], CLEAN[2], MANIPULATED[5], MANIPULATED[1], CLEAN[30]]


def npy_of(path: Path, rows) -> str:
    """The path of an npy file of these samples."""
    np.save(path, np.array(rows))
    return str(path)


def listed(folder: Path, rows=FOUND) -> FromFile:
    """The detection of these samples, held against the tiny data set."""
    return FromFile(file=csv_of(folder / "found.csv", rows)).settle(FACTS)


def test_every_format_says_the_same(tmp_path):
    read = [FromFile(file=write(tmp_path / f"x{end}", FOUND)).settle(FACTS) for end, write in {**FORMATS, ".npy": npy_of}.items()]
    assert len(read) == 4
    assert len({(each.content, each.samples) for each in read}) == 1


@pytest.mark.parametrize(("fraction", "size"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.7, 6), (1.0, 8)])
def test_a_fraction_is_the_first_share_of_the_list_whatever_was_manipulated(tmp_path, fraction, size):
    detection = listed(tmp_path)
    assert detection.num_found(fraction, 15) == detection.num_found(fraction, 10_000) == size
    split = detect(POISONED, detection, size, None)
    assert split.deletion.tolist() == sorted(FOUND[:size])
    hits = len(set(FOUND[:size]) & set(MANIPULATED))
    assert split.precision == pytest.approx(hits / size)
    assert split.recall == pytest.approx(hits / 15)


def test_the_rows_in_their_order_are_in_the_trial_key_and_the_place_of_the_file_is_not(tmp_path):
    def key(rows, name):
        detection = FromFile(file=csv_of(tmp_path / name, rows)).settle(FACTS)
        return replace(trial_spec(DATASET, GradientAscent(), deletion_size=4), detection=detection).key

    assert key(FOUND, "a.csv") == key(FOUND, "b.csv")
    assert len({key(rows, "c.csv") for rows in (FOUND, FOUND[::-1], FOUND[:-1], [*FOUND, CLEAN[0]])}) == 4


def test_once_it_is_read_the_file_is_not_needed_and_the_row_says_what_it_was_worth(tmp_path):
    detection = listed(tmp_path)
    Path(detection.file).unlink()
    again = build("detections", describe(detection))
    assert again == detection
    spec = replace(trial_spec(DATASET, GradientAscent(steps=2), deletion_size=4), detection=again)
    record = Workbench(DATASET, MemoryStore()).run_trial(spec)
    assert record.ok, record.error
    assert record.facts["detection_precision"] == 3 / 4
    assert record.facts["detection_recall"] == 3 / 15


SWEEP = """
name: found
dataset: fashion_mnist_small
model: {{name: resnet9, width: 2}}
manipulation: {{name: backdoor, size: 100}}
detection: [uniform, {{name: from_file, file: {file}}}]
train: {{steps: 2, batch_size: 64, precision: fp32}}
deletion_fractions: [0.5, 1.0]
methods: {{gradient_ascent: {{points: [{{}}]}}}}
"""


def test_a_sweep_reads_the_file_when_it_is_planned(tmp_path):
    sweep = config.parse(SWEEP.format(file=csv_of(tmp_path / "a.csv", list(range(7)))))
    made = plan.make(sweep, dict.fromkeys(sweep.datasets, plan.Source("0" * 64, 6000, 2000)))
    assert [[study.size(fraction) for fraction in study.fractions] for study in made.studies] == [[50], [100], [4], [7]]
    csv_of(tmp_path / "a.csv", list(range(8)))
    assert sweep.detections[1].num_found(1.0, 100) == 7


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("index\n6000\n", "sample 1 (6000): not a row of the training set. Allowed: 0 to 5999."),
        ("row\n1\n", "has no column 'index'. It has: row."),
        ("index\n1\n1\n", "sample 2 (1): listed before"),
        ("index\n" + "\n".join(map(str, range(6000))), "lists all 6000 training samples: none is left to retain"),
        (None, "No such file"),
    ],
)
def test_a_wrong_list_is_one_message_before_anything_starts(tmp_path, content, expected):
    file, sweep = tmp_path / "a.csv", tmp_path / "sweep.yaml"
    if content is not None:
        file.write_text(content)
    sweep.write_text(SWEEP.format(file=file))
    result = CliRunner().invoke(main, ["plan", str(sweep), "--output", str(tmp_path / "results")])
    assert result.exit_code == 2
    assert "detection[1].file (line 6)" in result.output
    assert expected in result.output
    assert "1 fault" in result.output
    assert not (tmp_path / "results").exists()


def test_an_array_of_rows_of_rows_is_no_list(tmp_path):
    file = npy_of(tmp_path / "a.npy", [[1, 2], [3, 4]])
    with pytest.raises(Exception, match="not a whole number"):
        FromFile(file=file).settle(FACTS)
