"""Evidence: what each model predicted is kept with its record or not at all, and is what its scores were read off."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cu_ray import config
from cu_ray.cli import main
from cu_ray.errors import Faults, UserError
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.places import Folder
from cu_ray.stages import evaluate
from cu_ray.stages.pipeline import Workbench
from cu_ray.sweep import ledger
from cu_ray.sweep.ledger import Ledger, evidence, folder
from cu_ray.sweep.plan import trial_cost
from cu_ray.sweep.preview import preview
from cu_ray.types import Predictions, Record
from tests import by_hand, sweeps
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

HASH = "a" * 64


def record(key="k", plain=(0, 1, 2), triggered=(1, 1, 1)):
    seen = None if triggered is None else np.array(triggered)
    return Record("trial", key, {}, "ok", predictions=Predictions(np.array(plain), seen))


def opened(content, num_test=3):
    return evidence.unpacked(content, "k.parquet", SimpleNamespace(content_hash=HASH, test=range(num_test)))


# --------------------------------------------------------------------------------------------------------------- one file


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 999)), min_size=1, max_size=50), st.booleans())
def test_what_is_packed_is_unpacked(pairs, has_trigger):
    plain, triggered = map(list, zip(*pairs, strict=True))
    file = evidence.packed(record("k", plain, triggered if has_trigger else None), HASH)
    found = opened(file.content, len(pairs))
    assert file.key == "k"
    assert found.plain.tolist() == plain
    assert found.triggered is None if not has_trigger else found.triggered.tolist() == triggered


def test_a_model_that_made_no_predictions_has_none():
    assert evidence.packed(Record("trial", "k", {}, "failed", "no"), HASH) is None


@pytest.mark.parametrize(("num_classes", "num_views"), [(10, 2), (100, 1), (2, 2), (1000, 2)])
def test_it_takes_about_as_many_bits_an_image_as_a_class_needs_and_no_more_than_is_said(num_classes, num_views):
    rng = np.random.default_rng(0)
    plain, triggered = rng.integers(0, num_classes, (2, 20_000))
    size = len(evidence.packed(record("f" * 64, plain, triggered if num_views == 2 else None), HASH).content)
    said = evidence.num_bytes(20_000, num_classes, num_views=num_views)
    assert 0.6 * said < size < 1.1 * said


def test_any_parquet_reader_reads_it(tmp_path):
    import duckdb

    for key in ("a", "b"):
        evidence.write(Folder(tmp_path), evidence.packed(record(key), HASH))
    evidence.write(Folder(tmp_path), evidence.packed(record("c", triggered=None), HASH))
    query = f"select key, avg((plain = 1)::int), count(triggered) from '{tmp_path}/evidence/*.parquet' group by key order by key"
    assert duckdb.sql(query).fetchall() == [("a", 1 / 3, 3), ("b", 1 / 3, 3), ("c", 1 / 3, 0)]


def parquet(columns, **metadata):
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), stream)
    return stream.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "k.parquet cannot be read: .*Delete it, and the same `cu-ray sweep` command makes it again"),
        (evidence.packed(record(), HASH).content[:-9], "cannot be read"),
        (parquet({"x": [1]}), "is no evidence"),
        (parquet({"x": [1]}, cu_ray_evidence="1", dataset=HASH), "is no evidence"),
        (evidence.packed(record(), "b" * 64).content, "is of another data set than the sweep's"),
        (evidence.packed(record(plain=[1], triggered=[1]), HASH).content, "is of another data set"),
    ],
)
def test_what_is_no_evidence_is_one_message(content, said):
    with pytest.raises(UserError, match=said):
        opened(content)


def test_evidence_of_a_newer_version_is_left_alone(monkeypatch):
    monkeypatch.setattr(evidence, "SCHEMA", 2)
    content = evidence.packed(record(), HASH).content
    monkeypatch.undo()
    with pytest.raises(UserError, match="has schema 2; this cu-ray knows up to 1: install the one that wrote it"):
        opened(content)


# ------------------------------------------------------------------------------------------------------------- the ledger


def test_a_record_that_is_there_has_its_evidence_whenever_the_driver_dies(tmp_path, monkeypatch):
    class Died(BaseException):
        pass

    def dies(*given):
        raise Died

    for number, (owner, name) in enumerate([(folder.evidence, "write"), (evidence, "sync"), (folder, "line")]):
        with Ledger(tmp_path / str(number)) as book, pytest.raises(Died), monkeypatch.context() as patched:
            patched.setattr(owner, name, dies)
            book.write(record(), evidence.packed(record(), HASH))
        place = Folder(tmp_path / str(number))
        assert not ledger.read(place).trials
        assert evidence.keys(place) == (set() if number == 0 else {"k"}), "what is left there is written over"
        with Ledger(place) as book:
            book.append(record(), evidence.packed(record(plain=[2, 2, 2]), HASH))
        assert opened(evidence.read(place, "k")).plain.tolist() == [2, 2, 2]


def test_what_a_killed_driver_left_half_written_is_taken_away(tmp_path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / ".k.parquet.0123.tmp").write_bytes(b"half")
    with Ledger(tmp_path):
        assert not list((tmp_path / "evidence").iterdir())
    assert evidence.keys(Folder(tmp_path)) == set()


def test_the_line_of_a_record_is_the_same_with_and_without_evidence(tmp_path):
    for name, file in (("with", evidence.packed(record(), HASH)), ("without", None)):
        with Ledger(tmp_path / name) as book:
            book.append(record(), file)
    assert (tmp_path / "with" / "000001.log").read_bytes() == (tmp_path / "without" / "000001.log").read_bytes()
    assert not (tmp_path / "without" / "evidence").exists()


def test_a_ledger_takes_over_evidence_with_its_records_and_what_it_lacks_of_it(tmp_path):
    with Ledger(tmp_path / "other") as other:
        for key in ("new", "lacks", "both"):
            other.append(record(key), evidence.packed(record(key), HASH))
        other.append(record("bare"))
    with Ledger(tmp_path / "mine") as mine:
        for key in ("lacks", "bare"):
            mine.append(record(key))
        mine.append(record("both"), evidence.packed(record("both", plain=[2, 2, 2]), HASH))
        assert mine.take_over(tmp_path / "other") == 2
        assert mine.take_over(tmp_path / "other") == 0
    place = Folder(tmp_path / "mine")
    assert evidence.keys(place) == {"new", "lacks", "both"}
    assert opened(evidence.read(place, "both")).plain.tolist() == [2, 2, 2], "its own stays"


# -------------------------------------------------------------------------------------------------------------- the sweep


def test_a_model_is_evaluated_once_whether_evidence_is_kept_or_not(monkeypatch):
    seen = []

    def counted(model, images, rows, precision, *, stamp_all=False):
        seen.append((images is data.test, len(rows), stamp_all))
        return predict(model, images, rows, precision, stamp_all=stamp_all)

    predict, dataset = evaluate.predict, tiny_dataset()
    bench, spec = Workbench(dataset, MemoryStore()), trial_spec(dataset, NoUnlearning())
    _, data = bench.poisoned(spec.original.setting)
    bench.original(spec.original)
    monkeypatch.setattr(evaluate, "predict", counted)
    made = bench.run_trial(spec)
    assert made.ok, made.error
    assert sorted(each for each in seen if each[0]) == [(True, 40, False), (True, 40, True)]
    assert sum(number for _, number, _ in seen) == made.facts["images_evaluated"]
    assert len(made.predictions.plain) == len(made.predictions.triggered) == 40
    assert "predictions" not in made.to_json()


def test_every_trial_and_original_has_evidence_and_nothing_else_differs(tmp_path):
    kept, plain = by_hand.sweep(tmp_path / "kept", evidence=True), by_hand.sweep(tmp_path / "plain")
    jobs = by_hand.run(kept)
    assert [job.key for job in jobs] == [job.key for job in by_hand.run(plain)]
    assert evidence.keys(kept.folder / "ledger") == {job.key for job in jobs}
    assert {job.kind for job in jobs} == {"original", "trial"}
    assert evidence.keys(plain.folder / "ledger") == set()
    assert not (plain.folder.path / "ledger" / "evidence").exists()
    sweeps.assert_same_tables(plain.folder.path, kept.folder.path)


def test_what_was_made_without_evidence_is_made_again_once_it_is_wanted_and_only_that(tmp_path):
    search = {"sampler": "random", "seeds": "each"}  # nothing to be confirmed, so that a plan knows all its trials
    plain, kept = (by_hand.sweep(tmp_path, search=search, evidence=wanted) for wanted in (False, True))
    jobs = by_hand.run(plain)
    before = preview(plain).estimate
    assert (before.trials_done, before.evidence_bytes) == (before.trials, 0)
    planned = preview(kept).estimate
    unlearning = sum(trial_cost(job.spec, 6000).backward for job in jobs if job.kind == "trial")
    assert (planned.trials, planned.trials_done) == (before.trials, 0)
    assert planned.images_backward == unlearning, "the originals are not trained again"
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "originals").iterdir()}
    again = by_hand.run(kept)
    assert {job.key for job in again} == {job.key for job in jobs}
    assert {path: path.stat().st_mtime_ns for path in models} == models
    sizes = sum(file.size for file in (kept.folder / "ledger" / "evidence").files())
    assert 0.5 * planned.evidence_bytes < sizes < planned.evidence_bytes
    assert by_hand.run(kept) == []
    known = ledger.read(kept.folder / "ledger")
    for lost in (next(iter(known.originals)), next(iter(known.trials))):
        (kept.folder / "ledger" / "evidence").delete(f"{lost}.parquet")
        assert [job.key for job in by_hand.run(kept)] == [lost]
    after = preview(kept).estimate
    assert (after.trials_done, after.evidence_bytes) == (after.trials, 0)


def test_a_bundle_has_the_evidence(tmp_path, monkeypatch):
    kept = by_hand.sweep(tmp_path, evidence=True)
    by_hand.run(kept)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["bundle", str(kept.folder)])
    assert done.exit_code == 0, done.output
    for key in evidence.keys(kept.folder / "ledger"):
        assert (tmp_path / "small-bundle" / "evidence" / f"{key}.parquet").read_bytes() == evidence.read(
            kept.folder / "ledger", key
        )
    assert "evidence/" in (tmp_path / "small-bundle" / "SHA256SUMS").read_text()


@pytest.mark.parametrize("given", ["1", "'yes'", "[true]", "{}", "null"])
def test_evidence_is_true_or_false(given):
    text = json.dumps({**by_hand.SWEEP, "evidence": "GIVEN"}).replace('"GIVEN"', given)
    with pytest.raises(Faults, match=r"evidence \(line 1\): .* is not allowed. Allowed: true or false."):
        config.parse(text)
    with pytest.raises(Faults, match=r"evidenc \(line 1\): unknown section. .*Did you mean 'evidence'?"):
        config.parse(json.dumps({**by_hand.SWEEP, "evidenc": True}))
