"""`from_file`: what a list of samples may look like, what it comes to, and one clear message for every list that is wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cu_ray import config
from cu_ray.cli import main
from cu_ray.detections.uniform import Uniform
from cu_ray.errors import Faults
from cu_ray.identity import key_of
from cu_ray.incident import Incident, packed, unpacked
from cu_ray.manipulations.from_file import FromFile
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.plugins import build, describe
from cu_ray.selection import RULES
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect, poison
from cu_ray.types import DatasetFacts, Images, TrialSpec
from tests.protocol.tiny import CLASS_NAMES, MemoryStore, original_spec, tiny_dataset

DATASET = tiny_dataset()
TRAIN, TEST = DATASET.train, DATASET.test
FACTS = DatasetFacts(len(TRAIN), len(TEST), DATASET.image_shape, CLASS_NAMES)
ROWS = [31, 4, 17, 58, 0, 22, 9, 40, 13, 51, 36, 2]
GIVEN = [(int(TRAIN.labels[row]) + 1 + place % 2) % 4 for place, row in enumerate(ROWS)]


def csv_of(path: Path, rows=ROWS, labels=None) -> str:
    """The path of a CSV file of these samples."""
    lines = ["index" if labels is None else "index,label"]
    lines += [str(row) if labels is None else f"{row},{label}" for row, label in zip(rows, labels or rows, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def parquet_of(path: Path, rows=ROWS, labels=None) -> str:
    """The path of a Parquet file of these samples."""
    pq.write_table(pa.table({"index": rows} | ({} if labels is None else {"label": labels})), path)
    return str(path)


def npz_of(path: Path, rows=ROWS, labels=None) -> str:
    """The path of an npz file of these samples."""
    np.savez(path, index=np.array(rows), **({} if labels is None else {"label": np.array(labels)}))
    return str(path)


FORMATS = {".csv": csv_of, ".parquet": parquet_of, ".npz": npz_of}


def settled(file: str, **settings) -> FromFile:
    """The manipulation, held against the tiny data set."""
    return FromFile(file=file, **settings).settle(FACTS)


def names(labels) -> list[str]:
    """The names of classes."""
    return [CLASS_NAMES[label] for label in labels]


# -------------------------------------------------------------------------------------------------------- what is read


def test_all_formats_and_names_and_numbers_of_classes_say_the_same(tmp_path):
    one = settled(csv_of(tmp_path / "first.csv", labels=GIVEN))
    for number, (ending, write) in enumerate(FORMATS.items()):
        for labels in (GIVEN, names(GIVEN)):
            other = settled(write(tmp_path / f"{number}{ending}", labels=labels))
            assert replace(other, file=one.file) == one
    incident = unpacked(one.samples)
    assert incident.indices.tolist() == sorted(ROWS)
    assert incident.labels.tolist() == [label for _, label in sorted(zip(ROWS, GIVEN, strict=True))]
    assert one.size == len(ROWS)


def test_all_formats_say_the_same_without_labels(tmp_path):
    read = [settled(write(tmp_path / f"x{ending}")) for ending, write in FORMATS.items()]
    assert len({each.samples for each in read}) == 1
    assert unpacked(read[0].samples).labels is None


def test_the_order_of_lines_further_columns_and_the_look_of_a_csv_do_not_matter(tmp_path):
    plain = settled(csv_of(tmp_path / "plain.csv", labels=names(GIVEN)))
    lines = [f' {label} , "note, {row}", {row} ' for row, label in sorted(zip(ROWS, names(GIVEN), strict=True))]
    path = tmp_path / "other.csv"
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(["label, note ,index", *lines]) + "\r\n\r\n").encode())
    assert settled(str(path)).samples == plain.samples


def test_packing_loses_nothing():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 500):
        for labels in (None, rng.integers(0, 10, count)):
            incident = Incident(np.sort(rng.choice(60_000, count, replace=False)), labels)
            again = unpacked(packed(incident))
            assert np.array_equal(again.indices, incident.indices)
            assert again.indices.dtype == np.int64
            assert (again.labels is None) if labels is None else np.array_equal(again.labels, labels)


# ------------------------------------------------------------------------------------------------- identity and places


def original_key(manipulation) -> str:
    """The key of the original that is trained on it."""
    return original_spec(DATASET, manipulation=manipulation).key


def test_what_the_file_says_is_in_the_key_and_its_place_is_not(tmp_path):
    first = settled(csv_of(tmp_path / "a.csv", labels=GIVEN))
    (tmp_path / "elsewhere").mkdir()
    moved = settled(parquet_of(tmp_path / "elsewhere" / "b.parquet", labels=names(GIVEN)))
    assert original_key(moved) == original_key(first)
    other_label = [(GIVEN[0] + 1) % 4, *GIVEN[1:]]
    others = [
        settled(csv_of(tmp_path / "c.csv", labels=other_label)),
        settled(csv_of(tmp_path / "d.csv", rows=[1, *ROWS[1:]], labels=GIVEN)),
        settled(csv_of(tmp_path / "e.csv")),
        settled(csv_of(tmp_path / "f.csv", labels=GIVEN), target="bee"),
        settled(csv_of(tmp_path / "f.csv", labels=GIVEN), affected_classes=("bee",)),
    ]
    keys = [original_key(each) for each in (first, *others)]
    assert len(set(keys)) == len(keys)


def test_once_it_is_read_the_file_is_not_needed(tmp_path):
    path = csv_of(tmp_path / "a.csv", labels=GIVEN)
    spec = TrialSpec(
        original_spec(DATASET, manipulation=settled(path)), Uniform(), 6, CatastrophicForgetting(steps=2), held_out=True
    )
    before = Workbench(DATASET, MemoryStore()).run_trial(spec)
    Path(path).unlink()
    manipulation = build("manipulations", describe(spec.original.setting.manipulation))
    assert manipulation == spec.original.setting.manipulation
    assert manipulation.settle(FACTS) == manipulation
    described = spec.original.describe()
    assert key_of(spec.original.build(described).setting.identity) == key_of(spec.original.setting.identity)
    again = Workbench(DATASET, MemoryStore()).run_trial(
        replace(spec, original=replace(spec.original, setting=replace(spec.original.setting, manipulation=manipulation)))
    )
    assert before.ok, before.error
    assert again.scores == before.scores


# ------------------------------------------------------------------------------------------------- with given labels


def test_with_labels_the_data_set_tells_the_truth_and_the_file_what_was_done(tmp_path):
    manipulation = settled(csv_of(tmp_path / "a.csv", labels=names(GIVEN)))
    poisoned = poison(DATASET, manipulation, seed=3)
    expected = TRAIN.labels.copy()
    for row, label in zip(ROWS, GIVEN, strict=True):
        expected[row] = label
    assert np.array_equal(poisoned.labels, expected)
    assert poisoned.effective_size == sum(label != TRAIN.labels[row] for row, label in zip(ROWS, GIVEN, strict=True))
    assert not poisoned.stamped.any()
    assert detect(poisoned, Uniform(), 6, None).recall == 0.5
    assert np.array_equal(poison(DATASET, manipulation, seed=4).corruption.indices, sorted(ROWS))


@pytest.mark.parametrize(("classes", "affected"), [(None, None), (("bee", 3), [1, 3]), ((0,), [0])])
def test_the_affected_domain_is_that_of_the_classes_or_everything(tmp_path, classes, affected):
    domains = settled(csv_of(tmp_path / "a.csv", labels=GIVEN), affected_classes=classes, target="dog").test_domains(TEST)
    inside = [row for row in range(len(TEST)) if affected is None or TEST.labels[row] in affected]
    outside = [row for row in range(len(TEST)) if affected is None or TEST.labels[row] not in affected]
    assert domains.affected.rows.tolist() == inside
    assert domains.retain.rows.tolist() == outside
    assert (domains.affected.stamped, domains.retain.stamped, domains.target, domains.confused) == (False, False, 3, None)


def test_validation_images_are_relabelled_from_class_to_class_at_the_training_rate(tmp_path):
    manipulation = settled(csv_of(tmp_path / "a.csv", labels=GIVEN))
    pairs = {(int(TRAIN.labels[row]), label) for row, label in zip(ROWS, GIVEN, strict=True)}
    unseen_true = TEST.labels[poison(DATASET, manipulation, seed=0).validation.rows]
    expected = round(len(ROWS) / len(TRAIN) * len(unseen_true))
    relabelled = []
    for seed in range(20):
        validation = poison(DATASET, manipulation, seed=seed).validation
        changed = [(int(true), int(given)) for true, given in zip(unseen_true, validation.labels, strict=True) if true != given]
        assert set(changed) <= pairs
        assert len(changed) == expected == 4  # 12 of 60 in training; no class is asked for more than it has
        assert not validation.stamped.any()
        relabelled.append(tuple(validation.labels.tolist()))
    assert len(set(relabelled)) > 10


def test_no_more_validation_images_are_relabelled_than_a_class_has(tmp_path):
    """All samples of one class were relabelled; the unseen images have one of that class."""
    rows = np.flatnonzero(TRAIN.labels == 2).tolist()
    manipulation = settled(csv_of(tmp_path / "a.csv", rows, [3] * len(rows)))
    unseen = Images(TEST.pixels[:30], np.array([2] + [0] * 29))
    corruption = manipulation.corrupt(TRAIN, DATASET.normalisation, np.random.default_rng(0))
    changed = manipulation.corrupt_unseen(unseen, DATASET, corruption, np.random.default_rng(0))
    assert (changed.indices.tolist(), changed.labels.tolist()) == ([0], [3])


# ----------------------------------------------------------------------------------------------- without given labels


def test_without_labels_what_needs_the_truth_is_null_and_the_defender_can_still_choose(tmp_path):
    manipulation = settled(csv_of(tmp_path / "a.csv", rows=list(range(30))))
    original = original_spec(DATASET, manipulation=manipulation)
    bench = Workbench(DATASET, MemoryStore())
    trial = TrialSpec(original, Uniform(), 25, CatastrophicForgetting(steps=2))
    records = [bench.run_trial(replace(trial, held_out=held)) for held in (True, False)]
    records.append(bench.run_original(original))
    assert {record.status for record in records} == {"ok"}, [record.error for record in records]
    for record in records:
        unknown = [name for name in record.scores if name.endswith("_true") or name.endswith("acc_corr") or name.endswith("asr")]
        assert len(unknown) == 4 + 3 + 3
        assert {record.scores[name] for name in unknown} == {None}
        assert record.facts["effective_size"] is None
        assert record.facts.get("detection_recall") is None
        for name in ("acc_retain", "val_acc_retain", "validation_given", "retain_given", "unidentified_given"):
            assert record.scores[name] is not None
    assert RULES["defender"].score(records[0].scores, 4) is not None
    assert RULES["oracle_validation"].score(records[0].scores, 4) is None


def test_without_labels_nothing_is_relabelled_anywhere(tmp_path):
    poisoned = poison(DATASET, settled(csv_of(tmp_path / "a.csv")), seed=0)
    assert np.array_equal(poisoned.labels, TRAIN.labels)
    assert np.array_equal(poisoned.validation.labels, TEST.labels[poisoned.validation.rows])
    assert poisoned.effective_size is None
    assert not poisoned.corruption.truth_known
    assert poisoned.domains.affected.rows.tolist() == []
    assert poisoned.domains.retain.rows.tolist() == list(range(len(TEST)))
    with_classes = settled(csv_of(tmp_path / "a.csv"), affected_classes=("bee",)).test_domains(TEST)
    assert with_classes.affected.rows.tolist() == np.flatnonzero(TEST.labels == 1).tolist()


# ------------------------------------------------------------------------------------------------------- wrong files

SWEEP = """
name: incident
dataset: fashion_mnist_small
model: {{name: resnet9, width: 2}}
manipulation: {{name: from_file, file: {file}{more}}}
train: {{steps: 2, batch_size: 64, precision: fp32}}
deletion_fractions: [1.0]
methods: {{no_unlearning: {{}}}}
"""


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file of that content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(folder: Path, file: Path, more: str = "") -> str:
    """What `cu-ray plan` says of a sweep with that list."""
    sweep = written(folder, "sweep.yaml", SWEEP.format(file=file, more=more))
    result = CliRunner().invoke(main, ["plan", str(sweep), "--output", str(folder / "results")])
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "1 fault" in result.output
    assert "(line 5)" in result.output
    assert not (folder / "results").exists()
    return result.output


WRONG = {
    "no index": ("a.csv", "sample,label\n3,2\n", ["no column 'index'", "It has: sample, label"]),
    "index misspelt": ("a.csv", "Index\n3\n", ["no column 'index'", "It has: Index"]),
    "not a number": ("a.csv", "index\n3\nfour\n", ["sample 2 (four)", "not a whole number"]),
    "a fraction": ("a.csv", "index\n3.5\n", ["sample 1 (3.5)", "not a whole number"]),
    "out of range": ("a.csv", "index\n3\n6000\n", ["sample 2 (6000)", "Allowed: 0 to 5999"]),
    "negative": ("a.csv", "index\n-1\n", ["sample 1 (-1)", "Allowed: 0 to 5999"]),
    "beyond any number": ("a.csv", f"index\n{10**30}\n", ["sample 1", "not a whole number"]),
    "twice": ("a.csv", "index\n7\n3\n7\n7\n", ["sample 3 (7), sample 4 (7)", "Each sample may be listed once"]),
    "unknown class": ("a.csv", "index,label\n3,sandle\n", ["sample 1 (sandle)", "Did you mean 'sandal'?", "index from 0"]),
    "class number": ("a.csv", "index,label\n3,10\n", ["sample 1 (10)", "no class of this data set"]),
    "no label": ("a.csv", "index,label\n3,\n", ["sample 1 ()", "no class of this data set"]),
    "empty": ("a.csv", "", ["no column 'index'"]),
    "header alone": ("a.csv", "index,label\n", ["lists no samples"]),
    "ragged": ("a.csv", "index,label\n3,2\n\n4\n", ["1 fields in line 4, 2 in its header"]),
    "wrong ending": ("a.txt", "index\n3\n", ["'.txt'", "Allowed: .csv, .parquet, .npz"]),
    "no ending": ("list", "index\n3\n", ["the ending ''"]),
    "not text": ("a.csv", b"\xff\xfe\x00index", ["cannot be read"]),
    "not an npz": ("a.npz", b"PK\x03\x04 not so", ["cannot be read"]),
    "an empty npz": ("a.npz", b"", ["cannot be read"]),
    "not a Parquet file": ("a.parquet", b"no", ["cannot be read"]),
    "many": ("a.csv", "index\n" + "x\n" * 9, ["sample 5 (x) and 4 more"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_list_is_one_message_before_anything_starts(wrong, tmp_path):
    name, content, expected = WRONG[wrong]
    said = complaint(tmp_path, written(tmp_path, name, content))
    assert "manipulation.file" in said
    for part in (*expected, name):
        assert part in said


def test_a_list_that_is_not_there_and_one_that_is_a_folder(tmp_path):
    assert "No such file" in complaint(tmp_path, tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read" in complaint(tmp_path, tmp_path / "folder.csv")


def test_a_size_that_is_not_that_of_the_list_is_refused(tmp_path):
    file = written(tmp_path, "a.csv", "index\n3\n4\n")
    said = complaint(tmp_path, file, ", size: 3")
    assert "manipulation.size" in said
    assert "lists 2 samples, not 3" in said
    assert config.parse(SWEEP.format(file=file, more=", size: 2")).manipulations[0][1].size == 2


@pytest.mark.parametrize(("setting", "near"), [("target: sandle", "sandal"), ("affected_classes: [shit, coat]", "shirt")])
def test_settings_that_name_no_class_are_refused(setting, near, tmp_path):
    said = complaint(tmp_path, written(tmp_path, "a.csv", "index\n3\n"), f", {setting}")
    assert f"manipulation.{setting.split(':')[0]}" in said
    assert f"Did you mean '{near}'?" in said


def test_all_classes_are_no_affected_ones(tmp_path):
    names = config.parse(SWEEP.format(file=written(tmp_path, "a.csv", "index\n3\n"), more="")).datasets[0].facts().class_names
    said = complaint(tmp_path, written(tmp_path, "a.csv", "index\n3\n"), f", affected_classes: [{', '.join(names)}]")
    assert "manipulation.affected_classes" in said
    assert "these are all classes: leave them out" in said


def test_columns_of_an_npz_must_be_of_one_length_and_hold_plain_numbers(tmp_path):
    for number, (index, label) in enumerate(itertools.pairwise([np.arange(3), np.arange(4) % 4, np.arange(2)])):
        np.savez(tmp_path / f"{number}.npz", index=index, label=label)
        assert f"{len(index)} values of 'index' but {len(label)} of 'label'" in complaint(tmp_path, tmp_path / f"{number}.npz")
    np.savez(tmp_path / "pickled.npz", index=np.array([object()]))
    assert "cannot be read" in complaint(tmp_path, tmp_path / "pickled.npz")
    np.savez(tmp_path / "floats.npz", index=np.array([1.5]))
    assert "not a whole number" in complaint(tmp_path, tmp_path / "floats.npz")
    np.savez(tmp_path / "other.npz", rows=np.arange(3))
    assert "It has: rows." in complaint(tmp_path, tmp_path / "other.npz")


def test_a_missing_value_in_a_parquet_file_is_named(tmp_path):
    file = parquet_of(tmp_path / "a.parquet", [3, None])
    assert "sample 2 (None): not a whole number" in complaint(tmp_path, Path(file))


def test_a_list_of_all_training_samples_is_refused_where_all_of_them_are_deleted(tmp_path):
    file = written(tmp_path, "a.csv", "index\n" + "\n".join(map(str, range(6000))))
    with pytest.raises(Faults, match="leaves no training samples"):
        config.parse(SWEEP.format(file=file, more=""))


def test_labels_that_are_the_true_ones_change_nothing_and_are_counted_so(tmp_path):
    file = csv_of(tmp_path / "a.csv", labels=[int(TRAIN.labels[row]) for row in ROWS])
    assert poison(DATASET, settled(file), seed=0).effective_size == 0


def test_a_class_whose_name_is_a_number_is_found_by_its_name(tmp_path):
    facts = DatasetFacts(60, 40, (12, 12, 1), ("7", "3", "1"))
    manipulation = FromFile(file=csv_of(tmp_path / "a.csv", [0, 1, 2], ["1", "3", "0"])).settle(facts)
    assert unpacked(manipulation.samples).labels.tolist() == [2, 1, 0]


def test_how_the_content_is_packed_is_no_part_of_keys(tmp_path):
    """Another zlib may pack the same samples into other bytes."""
    file = tmp_path / "bad.csv"
    file.write_text("index,label\n5,0\n3,1\n")
    settled = FromFile(file=str(file)).settle(FACTS)
    other = replace(settled, samples="packed otherwise", file="elsewhere.csv")
    assert describe(settled, locations=False) == describe(other, locations=False)
    assert describe(settled)["samples"] == settled.samples
    file.write_text("index,label\n5,0\n3,2\n")
    changed = FromFile(file=str(file)).settle(FACTS)
    assert describe(changed, locations=False) != describe(settled, locations=False)
