"""The ledger loses nothing that was appended, whatever happens to the process or to the end of its file."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cu_ray.errors import LedgerDamaged, UserError
from cu_ray.places import Folder
from cu_ray.sweep import ledger
from cu_ray.sweep.ledger import Ledger, PointRecord
from cu_ray.sweep.ledger import folder as folder_module
from cu_ray.sweep.ledger import lines as lines_module
from cu_ray.sweep.ledger import records as records_module
from cu_ray.sweep.ledger.lines import scan
from cu_ray.types import Record
from tests import sweeps

THOROUGH = settings(derandomize=True, database=None, deadline=None, max_examples=40)

numbers = st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(min_size=1, max_size=4)
names = st.text(max_size=4)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
results = st.builds(
    Record,
    kind=st.sampled_from(["original", "trial"]),
    key=keys,
    spec=st.dictionaries(names, plain, max_size=3),
    status=st.sampled_from(["ok", "failed", "diverged"]),
    error=st.none() | st.text(),
    scores=st.dictionaries(names, st.none() | numbers, max_size=3),
    facts=st.dictionaries(names, plain, max_size=3),
    notes=st.dictionaries(names, numbers, max_size=3),
)
points = st.builds(
    PointRecord,
    study_key=keys,
    index=st.integers(0, 5),
    hyperparameters=st.dictionaries(names, plain, max_size=3),
    trial_keys=st.lists(keys, max_size=3).map(tuple),
)


def trial(key: str, **more) -> Record:
    return Record("trial", key, {"method": "scrub"}, "ok", scores={"acc_corr": 0.5, "asr": None}, **more)


def known_of(records) -> ledger.Known:
    """What a ledger with these records in this order holds."""
    known = ledger.Known()
    for record in records:
        known.add(record)
    return known


def written(folder: Path, *records) -> Path:
    """The only segment of a ledger with these records."""
    with Ledger(folder) as book:
        for record in records:
            book.append(record)
    (segment,) = folder.glob("*.log")
    return segment


def line(values: object) -> bytes:
    text = json.dumps(values).encode()
    return b"%d %08x %s\n" % (len(text), zlib.crc32(text), text)


@contextlib.contextmanager
def counted_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


# --------------------------------------------------------------------------------------------------------- round trip


@THOROUGH
@given(st.lists(results | points, max_size=6))
def test_what_is_appended_is_read_back(records):
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder)) as book:
            for record in records:
                book.append(record)
            assert book.known == known_of(records)
        assert ledger.read(Path(folder)) == known_of(records)
        with Ledger(Path(folder)) as again:
            assert again.known == known_of(records)


def test_records_are_read_in_the_order_in_which_they_were_appended(tmp_path):
    written(tmp_path, trial("b"), trial("a"), PointRecord("s", 1, {}, ()), PointRecord("s", 0, {}, ()))
    known = ledger.read(tmp_path)
    assert list(known.trials) == ["b", "a"]
    assert list(known.points["s"]) == [1, 0]


def test_a_later_record_of_a_key_replaces_the_earlier_one(tmp_path):
    failed = Record("trial", "a", {}, "failed", "ValueError: no")
    written(tmp_path, failed, trial("a"))
    assert ledger.read(tmp_path).trials == {"a": trial("a")}


def test_originals_and_trials_of_one_key_are_two_records(tmp_path):
    original = Record("original", "a", {}, "ok")
    written(tmp_path, original, trial("a"))
    known = ledger.read(tmp_path)
    assert (known.originals, known.trials) == ({"a": original}, {"a": trial("a")})


def test_there_is_nothing_where_there_is_no_ledger(tmp_path):
    assert ledger.read(tmp_path / "nowhere") == ledger.Known()
    assert not (tmp_path / "nowhere").exists()


def test_opening_a_ledger_again_and_again_keeps_all_records(tmp_path):
    for key in "abc":
        written(tmp_path, trial(key))
    assert list(ledger.read(tmp_path).trials) == ["a", "b", "c"]


def test_a_copy_that_a_synchronised_folder_left_beside_a_ledger_file_costs_no_record(tmp_path, monkeypatch):
    """Two laptops with one folder: the records of both are there, and stay when the ledger begins its next file."""
    first = written(tmp_path, trial("a"))
    theirs = written(tmp_path / "elsewhere", trial("theirs")).read_bytes()
    first.with_name("000001.sync-conflict-20261127-052413-ABCDEFG.log").write_bytes(theirs)
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", len(theirs) + 1)  # so that the copy would be gone on with
    for keys in ("bcd", "e"):
        with Ledger(tmp_path) as book:
            for key in keys:
                book.append(trial(key))
        assert set(ledger.read(tmp_path).trials) >= {"a", "theirs", *keys}
    assert set(ledger.read(tmp_path).trials) == {*"abcde", "theirs"}


def test_a_record_is_on_the_disk_when_append_returns(tmp_path):
    with Ledger(tmp_path) as book:
        book.append(trial("a"))
        assert list(ledger.read(tmp_path).trials) == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(tmp_path, value):
    with Ledger(tmp_path) as book:
        book.append(trial("a"))
        with pytest.raises(ValueError, match="not JSON compliant"):
            book.append(trial("b", facts={"seconds": value}))
        assert list(book.known.trials) == ["a"]
        book.append(trial("c"))
    assert list(ledger.read(tmp_path).trials) == ["a", "c"]


def test_the_code_of_plugins_is_noted_once_until_it_changes(tmp_path):
    with Ledger(tmp_path) as book:
        book.note_code({"scrub": {"version": 1}})
        size = (tmp_path / "000001.log").stat().st_size
        book.note_code({"scrub": {"version": 1}})
        assert (tmp_path / "000001.log").stat().st_size == size
        book.note_code({"scrub": {"version": 2}, "ssd": {"version": 1}})
    assert ledger.read(tmp_path).code == {"scrub": {"version": 2}, "ssd": {"version": 1}}


def test_it_is_known_by_what_code_each_record_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 200)  # so that most of it is in batches
    book_of = {"a": "old", "b": "new", "c": "old"}
    for key, fingerprint in book_of.items():
        with Ledger(tmp_path) as book:
            book.note_code({"scrub": {"version": 1, "fingerprint": fingerprint}})
            book.append(trial(key))
            assert book.known.made_by[key]["scrub"]["fingerprint"] == fingerprint
    made_by = ledger.read(tmp_path).made_by
    assert {key: code["scrub"]["fingerprint"] for key, code in made_by.items()} == book_of


# -------------------------------------------------------------------------------------------------------------- crashes

EARLIER = (  # as schema 1 wrote it
    b'185 48c5b7e5 {"error": null, "facts": {}, "is": "trial", "key": "a", "kind": "trial", "notes": {}, "schema": 1, '
    b'"scores": {"acc_corr": 0.5, "asr": null}, "spec": {"method": "scrub"}, "status": "ok"}\n'
    b'114 6945ea50 {"hyperparameters": {"alpha": 0.5}, "index": 0, "is": "point", "schema": 1, '
    b'"study_key": "s", "trial_keys": ["a"]}\n'
)
THREE = (trial("a"), PointRecord("s", 0, {"alpha": 0.5}, ("a",)), trial("c"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a segment with three records."""
    return written(tmp_path_factory.mktemp("whole"), *THREE).read_bytes()


def whole_records(content: bytes, length: int):
    return THREE[: content[:length].count(b"\n")]


def test_a_file_cut_at_any_byte_loses_only_the_records_that_were_cut(tmp_path, whole):
    segment = tmp_path / "000001.log"
    for length in range(len(whole) + 1):
        segment.write_bytes(whole[:length])
        assert ledger.read(tmp_path) == known_of(whole_records(whole, length))


def test_a_ledger_cut_at_any_byte_goes_on_after_its_last_whole_record(tmp_path, whole):
    segment = tmp_path / "000001.log"
    for length in range(0, len(whole) + 1, 3):
        segment.write_bytes(whole[:length])
        kept = whole_records(whole, length)
        at_a_border = length == 0 or whole[length - 1 : length] == b"\n"
        with counted_warnings() as caught, Ledger(tmp_path) as book:
            assert book.known == known_of(kept)
            book.append(trial("new"))
        assert len(caught) == (0 if at_a_border else 1)
        assert ledger.read(tmp_path) == known_of([*kept, trial("new")])


@THOROUGH
@given(st.binary(min_size=1, max_size=60))
@example(b"\n")
@example(b"12 ")
@example(b"2 00000000 {}\n")
def test_garbage_at_the_end_is_set_aside_with_one_warning(garbage):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        segment = written(folder, trial("a"))
        with segment.open("ab") as file:
            file.write(garbage)
        with counted_warnings():
            assert list(ledger.read(folder).trials) == ["a"]
        with counted_warnings() as caught, Ledger(folder) as book:
            book.append(trial("b"))
        assert [f"{len(garbage)} bytes" in str(each.message) for each in caught] == [True]
        assert (folder / "000001.broken").read_bytes() == garbage
        assert list(ledger.read(folder).trials) == ["a", "b"]


def test_a_length_of_thousands_of_digits_is_garbage(tmp_path):
    segment = written(tmp_path, trial("a"))
    segment.write_bytes(segment.read_bytes() + b"9" * 5000 + b" 00000000 {}\n")
    with pytest.warns(LedgerDamaged, match="5013 bytes are no whole record and are passed over"):
        assert list(ledger.read(tmp_path).trials) == ["a"]


def test_what_was_set_aside_before_is_kept(tmp_path):
    for garbage in (b"first", b"second"):
        segment = written(tmp_path, trial("a")) if garbage == b"first" else tmp_path / "000001.log"
        segment.write_bytes(segment.read_bytes() + garbage)
        with counted_warnings(), Ledger(tmp_path):
            pass
    aside = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.broken*")))
    assert b"first" in aside
    assert b"second" in aside


def test_a_flipped_byte_is_never_taken_for_a_record(tmp_path, whole):
    segment, first = tmp_path / "000001.log", whole.index(b"\n")
    for place in range(first + 1):
        segment.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.warns(LedgerDamaged):
            assert "a" not in ledger.read(tmp_path).trials


@pytest.mark.parametrize("place", ["line feed", "length", "checksum", "middle", "record"])
def test_what_follows_damage_in_the_middle_is_kept_and_the_damage_set_aside(tmp_path, whole, place):
    first, second, _ = whole.splitlines(keepends=True)
    start = len(first)
    at = {"line feed": start - 1, "length": start, "checksum": start + 6, "middle": start + len(second) // 2, "record": start}[
        place
    ]
    garbage = b"x" * (len(second) if place == "record" else 1)
    (tmp_path / "000001.log").write_bytes(whole[:at] + garbage + whole[at + len(garbage) :])
    kept = [THREE[1], THREE[2]] if place == "line feed" else [THREE[0], THREE[2]]
    with counted_warnings() as caught:
        assert ledger.read(tmp_path) == known_of(kept)
    assert [str(each.message).endswith("bytes are no whole record and are passed over") for each in caught] == [True]
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        book.append(trial("new"))
    assert [str(each.message).count("\n") for each in caught] == [0]
    assert b"x" in (tmp_path / "000001.broken").read_bytes()
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert book.known == known_of([*kept, trial("new")])
    assert caught == []


def test_damage_in_one_segment_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 1)
    with Ledger(tmp_path) as book:
        for key in "abc":
            book.append(trial(key))
    damaged = tmp_path / "000002.log"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.warns(LedgerDamaged, match=rf"^{damaged}: \d+ bytes are no whole record and are passed over$") as caught:
        assert list(ledger.read(tmp_path).trials) == ["a", "c"]
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_a_damaged_ledger_is_free_for_others_afterwards(tmp_path):
    segment = written(tmp_path, trial("a"))
    for _ in range(2):
        segment.write_bytes(segment.read_bytes() + b"garbage")
        with pytest.raises(LedgerDamaged, match="7 bytes are no whole record and were set aside in") as caught:
            Ledger(tmp_path)
    assert caught  # it holds what the failed attempt left open
    Ledger(tmp_path).close()


def test_a_merge_warns_of_the_damage_in_what_it_takes(tmp_path):
    with Ledger(tmp_path / "other") as other:
        for key in "abc":
            other.append(trial(key))
    segment = tmp_path / "other" / "000001.log"
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b'"key": "b"', b'"key": "x"'))
    with Ledger(tmp_path / "mine") as book, pytest.warns(LedgerDamaged, match=f"^{segment}: "):
        assert book.take_over(tmp_path / "other") == 2


@pytest.mark.parametrize("variables", [{}, {"PYTHONWARNINGS": "ignore"}], ids=["here", "on a head"])
def test_the_commands_say_it_in_one_line(tmp_path, variables):
    for name in ("mine", "other"):
        segment = written(tmp_path / name / "ledger", trial(name))
        segment.write_bytes(segment.read_bytes() + b"garbage")
    done = sweeps.command(tmp_path, "merge", "mine", "other", env={**os.environ, **variables})
    assert done.returncode == 0
    assert done.stdout.startswith("1 records came in.")
    assert done.stderr.splitlines() == [
        "cu-ray: mine/ledger/000001.log: 7 bytes are no whole record and were set aside in 000001.broken",
        "cu-ray: other/ledger/000001.log: 7 bytes are no whole record and are passed over",
    ]


# ------------------------------------------------------------------------------------------------------------- segments


def test_segments_roll_over_and_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 400)
    keys = [f"{number:02d}" for number in range(25)]
    for start in range(0, 25, 5):
        with Ledger(tmp_path) as book:
            for key in keys[start : start + 5]:
                book.append(trial(key))
    segments = sorted(tmp_path.glob("*.log"))
    assert [segment.name for segment in segments] == [f"{number:06d}.log" for number in range(1, len(segments) + 1)]
    assert len(segments) > 5
    lines = [scan(segment.read_bytes()) for segment in segments]
    assert all(each.has_batches and 400 < len(each.lines) < 1000 for each in lines[:-1])
    assert list(ledger.read(tmp_path).trials) == keys


def test_one_segment_is_enough_for_little(tmp_path):
    written(tmp_path, *(trial(str(number)) for number in range(25)))
    assert [path.name for path in tmp_path.glob("*.log")] == ["000001.log"]


def many(folder: Path, count: int, **more) -> list[Record]:
    """A ledger with so many records, its segments but the last in batches."""
    records = [trial(f"{number:04d}", **more) for number in range(count)]
    with Ledger(folder) as book:
        for record in records:
            book.append(record)
    return records


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of 4,000 bytes, batches of 1,000; nothing waits for the disk."""
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(lines_module, "BATCH_BYTES", 1000)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def test_a_full_segment_takes_a_fraction_of_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    records = many(tmp_path, 600, facts={"note": "x" * 2000})
    full, _ = sorted(tmp_path.glob("*.log"))
    assert scan(full.read_bytes()).has_batches
    assert full.stat().st_size < 100_000
    assert ledger.read(tmp_path) == known_of(records)


@pytest.mark.parametrize("crash", ["write", "rename"])
def test_a_crash_while_a_segment_is_rewritten_loses_nothing(tmp_path, small_segments, monkeypatch, crash):
    class Crash(BaseException):
        pass

    def fails(*arguments):
        raise Crash

    records, book = [], Ledger(tmp_path)
    with pytest.raises(Crash):
        for number in range(100):
            if len(book._writer._lines) > 4000:
                monkeypatch.setattr(*((Folder, "write", fails) if crash == "write" else (os, "replace", fails)))
            book.append(trial(f"{number:04d}"))
            records.append(trial(f"{number:04d}"))
    assert len(records) > 10
    assert ledger.read(tmp_path) == known_of(records)
    monkeypatch.undo()
    book.close()
    with counted_warnings() as caught, Ledger(tmp_path) as again:
        again.append(trial("new"))
    assert caught == []
    assert ledger.read(tmp_path) == known_of([*records, trial("new")])


def test_a_damaged_byte_in_a_batch_costs_that_batch_alone(tmp_path, small_segments):
    records = many(tmp_path, 60)
    first = tmp_path / "000001.log"
    content = first.read_bytes()
    middle = len(content) // 2
    first.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.warns(LedgerDamaged):
        lost = known_of(records).trials.keys() - ledger.read(tmp_path).trials.keys()
    assert 0 < len(lost) < 10
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert len(book.known.trials) == 60 - len(lost)
    assert len(caught) == 1
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert len(book.known.trials) == 60 - len(lost)
    assert caught == []


def test_a_ledger_of_an_earlier_version_is_read_and_goes_on(tmp_path):
    (tmp_path / "000001.log").write_bytes(EARLIER)
    records = [trial("a"), PointRecord("s", 0, {"alpha": 0.5}, ("a",))]
    assert ledger.read(tmp_path) == known_of(records)
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        book.append(trial("b"))
    assert caught == []
    assert ledger.read(tmp_path) == known_of([*records, trial("b")])


def test_full_segments_of_an_earlier_version_are_rewritten_in_batches(tmp_path, small_segments, monkeypatch):
    records = [trial(f"{number:04d}") for number in range(60)]
    payloads = [{"schema": 1, "is": "trial", **record.to_json()} for record in records]
    (tmp_path / "000001.log").write_bytes(b"".join(map(line, payloads)))
    with Ledger(tmp_path) as book:
        assert book.known == known_of(records)
    assert scan((tmp_path / "000001.log").read_bytes()).has_batches
    assert ledger.read(tmp_path) == known_of(records)


def test_an_empty_segment_is_nothing(tmp_path):
    written(tmp_path, trial("a"))
    (tmp_path / "000002.log").touch()
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert list(book.known.trials) == ["a"]
        book.append(trial("b"))
    assert caught == []
    assert list(ledger.read(tmp_path).trials) == ["a", "b"]


def test_a_half_written_file_under_a_temporary_name_is_nothing_and_goes(tmp_path):
    segment = written(tmp_path, trial("a"))
    half = tmp_path / ".000001.log.0123.tmp"
    half.write_bytes(segment.read_bytes()[:20])
    with counted_warnings() as caught:
        assert list(ledger.read(tmp_path).trials) == ["a"]
        assert half.exists()
        Ledger(tmp_path).close()
    assert caught == []
    assert not half.exists()


UNKNOWN = [
    {"schema": 1, "is": "trial", "key": "a"},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "colour": "red"},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "spec": []},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "key": None},
    {"schema": 1, "is": "point", "study_key": "s", "index": "0", "hyperparameters": {}, "trial_keys": []},
    {"schema": 1, "is": "point", "study_key": "s", "index": True, "hyperparameters": {}, "trial_keys": []},
    {"schema": 1, "is": "point", "study_key": "s", "index": 0, "hyperparameters": {}, "trial_keys": [["a"]]},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "kind": "original"},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "scores": {"asr": "high"}},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "notes": {"steps": None}},
    {"schema": 1, "is": "trial", **trial("x").to_json(), "error": 5},
    {"schema": 1, "is": "weather"},
    {"schema": 1, "is": ["trial"]},
    {"schema": "1"},
    {"is": "code", "code": {"scrub": 1}},
    {},
    [],
    1,
    None,
]


@pytest.mark.parametrize("values", UNKNOWN)
def test_an_intact_line_that_is_no_known_record_is_passed_over_with_one_warning(tmp_path, values):
    segment = written(tmp_path, trial("a"))
    segment.write_bytes(segment.read_bytes() + line(values) + line({"schema": 1, "is": "trial", **trial("b").to_json()}))
    with counted_warnings() as caught:
        assert list(ledger.read(tmp_path).trials) == ["a", "b"]
    assert ["1 lines are no records" in str(each.message) for each in caught] == [True]
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert list(book.known.trials) == ["a", "b"]
    assert ["1 lines are no records" in str(each.message) for each in caught] == [True]


@pytest.mark.parametrize("payload", [b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 100_000, b"x\x9c nothing that was compressed"])
def test_an_intact_line_of_any_bytes_is_passed_over(tmp_path, payload):
    segment = written(tmp_path, trial("a"))
    segment.write_bytes(segment.read_bytes() + lines_module.line(payload))
    with counted_warnings() as caught, Ledger(tmp_path) as book:
        assert list(book.known.trials) == ["a"]
    assert len(caught) == 1


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes after some accidents."""
    for _ in range(rng.randint(1, 4)):
        start, length = rng.randrange(len(content) + 1), rng.choice([1, 1, 2, 10, 300])
        kind = rng.choice(["flip", "cut out", "cut off", "insert", "repeat", "swap", "zeros"])
        piece, rest = content[start : start + length], content[start + length :]
        if kind == "flip":
            piece = bytes(byte ^ (1 << rng.randrange(8)) for byte in piece)
        elif kind == "cut out":
            piece = b""
        elif kind == "cut off":
            piece = rest = b""
        elif kind == "insert":
            piece = rng.randbytes(length) + piece
        elif kind == "repeat":
            piece *= 2
        elif kind == "swap":
            piece, rest = rest[:length], piece + rest[length:]
        else:
            piece = b"\0" * len(piece)
        content = content[:start] + piece + rest
    return content


@pytest.mark.parametrize("cases", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_bytes_end_in_an_error_and_no_whole_record_is_lost(tmp_path, small_segments, cases):
    rng, folder = random.Random(0), tmp_path / "ledger"
    records = {record.key: record for record in many(tmp_path / "source", 30)}
    (tmp_path / "ledger").mkdir()
    original = {path.name: path.read_bytes() for path in sorted((tmp_path / "source").glob("*.log"))}
    assert len(original) >= 2
    for case in range(cases):
        for path in folder.iterdir():
            path.unlink()
        damaged = rng.choice(sorted(original))
        for name, content in original.items():
            (folder / name).write_bytes(mutated(content, rng) if name == damaged else content)
        untouched = {key for key, record in records.items() if whole_line(record) in (folder / "000002.log").read_bytes()}
        with counted_warnings() as caught:
            known = ledger.read(folder)
        assert len(caught) <= 1
        assert all(records[key] == record for key, record in known.trials.items())
        assert untouched <= known.trials.keys(), case
        with counted_warnings() as caught, Ledger(folder) as book:
            assert book.known == known
            book.append(trial("new"))
        assert len(caught) <= 1
        assert ledger.read(folder).trials == {**known.trials, "new": trial("new")}


LINES = [
    {"schema": 1, "is": "trial", **trial("b", error="x", facts={"a": 1}, notes={"n": 1}).to_json()},
    {"schema": 1, "is": "original", **trial("o").to_json(), "kind": "original"},
    {"schema": 1, "is": "point", "study_key": "s", "index": 0, "hyperparameters": {"a": [1]}, "trial_keys": ["b"]},
    {"schema": 1, "is": "code", "code": {"scrub": {"version": 1, "fingerprint": "f"}}},
]


@pytest.mark.parametrize("cases", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_intact_lines_of_nearly_a_record_are_passed_over_or_usable(tmp_path, cases):
    segment, rng = written(tmp_path, trial("a")), random.Random(0)
    whole = segment.read_bytes()
    for case in range(cases):
        values = rng.choice(LINES)
        for _ in range(rng.randint(1, 2)):
            values = nearly(values, rng)
        segment.write_bytes(whole + line(values) + line(LINES[0] | {"key": "z"}))
        try:
            with counted_warnings():
                known = ledger.read(tmp_path)
        except UserError as error:
            assert values["schema"] > ledger.SCHEMA
            assert str(error).startswith(f"{segment} was written by a newer version")
            continue
        assert {"a", "z"} <= known.trials.keys(), case
        with counted_warnings() as caught, Ledger(tmp_path) as book:
            assert book.known == known
        assert len(caught) <= 1
        again = ledger.Known(code=known.code)
        for record in everything(known):
            assert again.take_in(records_module.to_json(record), "")
            pa.array([*record.scores.values(), *record.notes.values()] if isinstance(record, Record) else [record.index])
        assert again == known


def everything(known: ledger.Known) -> list[Record | PointRecord]:
    points = [point for study in known.points.values() for point in study.values()]
    return [*known.trials.values(), *known.originals.values(), *points]


def nearly(values, rng: random.Random):
    """The values with another one, or without one, somewhere in them."""
    odd = [
        None,
        True,
        0,
        -1,
        2.5,
        float("nan"),
        float("inf"),
        10**400,
        "",
        "x",
        "\ud800",
        [],
        [[]],
        {},
        {"a": {}},
        [None],
        "b" * 999,
    ]
    if not values or not isinstance(values, (dict, list)) or rng.random() < 0.2:
        return rng.choice(odd)
    place = rng.choice(list(values) if isinstance(values, dict) else range(len(values)))
    made = copy.copy(values)
    if rng.random() < 0.2:
        del made[place]
    elif isinstance(values, dict) and rng.random() < 0.1:
        made[rng.choice(["further", "", "\0", "\ud800"])] = rng.choice(odd)
    else:
        made[place] = nearly(values[place], rng)
    return made


def whole_line(record: Record) -> bytes:
    return lines_module.line(records_module.to_json(record))


# --------------------------------------------------------------------------------------------------- schema and writers


@pytest.fixture
def newer(tmp_path):
    """A segment whose last record is of a newer schema."""
    segment = written(tmp_path, trial("a"))
    segment.write_bytes(segment.read_bytes() + line({"schema": ledger.SCHEMA + 1, "is": "trial", "something": "new"}))
    return segment


def test_a_newer_schema_is_refused_with_the_file_that_has_it(newer):
    with pytest.raises(UserError, match="written by a newer version of cu-ray") as caught:
        ledger.read(newer.parent)
    assert str(newer) in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ledger_of_a_newer_schema_is_not_opened_stays_as_it_was_and_free_for_others(newer):
    before = newer.read_bytes()
    with pytest.raises(UserError, match="written by a newer version of cu-ray") as caught:
        Ledger(newer.parent)
    assert newer.read_bytes() == before
    newer.write_bytes(b"")
    try:
        Ledger(newer.parent).close()
        free = True
    except UserError:
        free = False
    del caught  # it holds what the failed attempt left open
    gc.collect()
    assert free


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_module.fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"lies on a file system without locks .*: give another place with --output"):
        Ledger(tmp_path)


def test_a_second_writer_is_refused_and_told_who_the_first_one_is(tmp_path):
    with Ledger(tmp_path) as book:
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} on {platform.node()}: ") as caught:
            Ledger(tmp_path)
        assert str(tmp_path) in str(caught.value)
        book.append(trial("a"))
    with Ledger(tmp_path) as book:
        assert list(book.known.trials) == ["a"]


WRITER = """
import sys
from pathlib import Path
from cu_ray.sweep.ledger import Ledger
from cu_ray.types import Record

with Ledger(Path(sys.argv[1])) as book:
    print("ready", flush=True)
    for number in range(int(sys.argv[2])):
        book.append(Record("trial", f"{number:04d}", {"method": "scrub"}, "ok", scores={"acc_corr": number / 1000}))
    print("written", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def writer(folder: Path, count: int):
    """Another process that appends so many records and then keeps the ledger until it is told to end."""
    command = [sys.executable, "-c", WRITER, str(folder), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_ledger_is_read_while_another_process_writes_it_and_is_free_when_that_dies(tmp_path):
    seen = []
    with writer(tmp_path, 300) as process:
        os.set_blocking(process.stdout.fileno(), False)
        while not (said := process.stdout.readline()):
            seen.append(list(ledger.read(tmp_path).trials))
        assert said == "written\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "):
            Ledger(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    keys = [f"{number:04d}" for number in range(300)]
    assert all(each == keys[: len(each)] for each in seen)
    assert [len(each) for each in seen] == sorted(len(each) for each in seen)
    with Ledger(tmp_path) as book:
        assert list(book.known.trials) == keys


def test_a_ledger_takes_over_what_it_lacks_and_what_went_better_elsewhere(tmp_path):
    failed = Record("trial", "b", {}, "failed", "no")
    with Ledger(tmp_path / "other") as other:
        for record in (trial("a"), trial("b"), Record("trial", "c", {}, "failed", "later"), Record("original", "o", {}, "ok")):
            other.append(record)
        other.append(PointRecord("s", 0, {"alpha": 0.5}, ("a",)))
        other.append(PointRecord("s", 1, {"alpha": 0.7}, ("b",)))
        other.note_code({"scrub": {"version": 1}, "ssd": {"version": 1}})
    with Ledger(tmp_path / "mine") as book:
        book.append(failed)
        book.append(trial("c"))
        book.append(PointRecord("s", 0, {"alpha": 0.1}, ("z",)))
        book.note_code({"scrub": {"version": 2}})
        assert book.take_over(tmp_path / "other") == 4
        assert book.take_over(tmp_path / "other") == 0
    known = ledger.read(tmp_path / "mine")
    assert {key: record.ok for key, record in known.trials.items()} == {"a": True, "b": True, "c": True}
    assert list(known.originals) == ["o"]
    assert {index: point.hyperparameters["alpha"] for index, point in known.points["s"].items()} == {0: 0.1, 1: 0.7}
    assert known.code == {"scrub": {"version": 2}, "ssd": {"version": 1}}


def test_what_is_taken_over_keeps_the_code_that_it_was_made_by(tmp_path):
    def code(fingerprint):
        return {"scrub": {"version": 1, "fingerprint": fingerprint}}

    with Ledger(tmp_path / "other") as other:
        for key, fingerprint in (("a", "x"), ("b", "y")):
            other.note_code(code(fingerprint))
            other.append(trial(key))
    with Ledger(tmp_path / "mine") as book:
        book.note_code(code("mine"))
        book.take_over(tmp_path / "other")
        book.append(trial("c"))
    known = ledger.read(tmp_path / "mine")
    assert known.made_by == {"a": code("x"), "b": code("y"), "c": code("mine")}
    assert known.code == code("mine")
