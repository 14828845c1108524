"""What lies at a URI is what would lie in a folder: nothing lost, nothing half there, no credentials anywhere."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import cu_ray
from cu_ray import __version__, config, lease, places, store
from cu_ray.errors import Faults, PlaceFailed, RayStopped, StoreFailed, UserError
from cu_ray.places import Folder, Remote, at, lasting
from cu_ray.remote import away
from cu_ray.remote.launcher import Cluster
from cu_ray.store import LocalStore, RemoteStore, open_store
from cu_ray.sweep import ledger
from cu_ray.sweep.dispatch import Dispatch
from cu_ray.sweep.doctor import look
from cu_ray.sweep.ledger import Ledger, PointRecord, evidence, objects
from cu_ray.sweep.ledger.lines import scan
from cu_ray.types import Record
from tests import sweeps
from tests.object_storage import GOOGLE, SECRET, server
from tests.test_ledger import trial

ROOT = Path(__file__).parents[1]
WEIGHTS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.steps": np.array(7, dtype=np.int64)}


@pytest.fixture(scope="module")
def storage():
    with server() as running:
        yield running


@pytest.fixture
def uri(storage, monkeypatch):
    """A new bucket, reached as the environment says."""
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    return f"{storage.bucket(f'bucket-{uuid.uuid4().hex[:12]}')}/some/path"


@pytest.fixture
def quick(monkeypatch):
    """Leases that are waited for in a second, and outages that are not sat out for longer."""
    for name, value in {"BEAT": 0.2, "SETTLE": 0.05}.items():
        monkeypatch.setattr(lease, name, value)
    for module in (objects, store):
        monkeypatch.setattr(module, "PAUSES", (0.1, 0.2))


# ---------------------------------------------------------------------------------------------------------------- places


def test_a_place_gives_back_what_was_put_there(uri):
    place = at(uri) / "tables"
    assert place.files() == []
    place.write("one", b"first")
    place.write("one", b"second")
    place.write("two", b"")
    assert place.read("one") == b"second"
    assert [(file.name, file.size) for file in sorted(place.files(), key=lambda file: file.name)] == [("one", 6), ("two", 0)]
    assert place.has("one")
    place.delete("one")
    place.delete("one")
    assert not place.has("one")
    with pytest.raises(FileNotFoundError):
        place.read("one")


@pytest.mark.skipif(GOOGLE is not None, reason="of S3")
def test_an_endpoint_may_stand_in_the_uri_and_stays_with_what_is_below(storage, uri, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = storage.endpoint.removeprefix("http://")
    place = at(f"{uri}/?endpoint_override={host}&scheme=http") / "below"
    assert str(place) == f"{uri}/below?endpoint_override={host}&scheme=http"
    assert place.name == "below"
    place.write("one", b"first")
    assert at(str(place)).read("one") == b"first"


def test_an_interrupted_write_leaves_a_whole_object_or_none(uri, monkeypatch):
    place = at(uri)
    place.write("one", b"earlier")
    signals = [threading.Timer(delay, signal.raise_signal, [signal.SIGINT]) for delay in (0.005, 0.02)]
    for each in signals:
        each.start()
        try:
            for _ in range(200):
                place.write("one", b"x" * 100_000)
        except KeyboardInterrupt:
            pass
        assert place.read("one") in (b"earlier", b"x" * 100_000)


def test_a_read_while_another_writes_gives_one_or_the_other_whole(uri):
    place, ended = at(uri), threading.Event()

    def content(number):
        return b"%d," % number * (5 + 10_000 * (number % 2))

    def rewrite():
        for number in itertools.count():
            if ended.is_set():
                return
            place.write("one", content(number))

    place.write("one", content(0))
    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = [place.read("one") for _ in range(100)]
    finally:
        ended.set()
        writer.join()
    assert all(each == content(int(each.split(b",")[0])) for each in seen)
    assert len(set(seen)) > 10


@pytest.mark.skipif(GOOGLE is not None, reason="of S3")
def test_what_cannot_be_reached_is_one_message(uri):
    with pytest.raises(PlaceFailed, match=r"s3://no-such-bucket/x/one: .*NO_SUCH_BUCKET"):
        (at("s3://no-such-bucket") / "x").write("one", b"")


def test_google_storage_that_does_not_answer_is_one_message_soon(monkeypatch):
    monkeypatch.setattr(places, "FIRST_ANSWER_IN", 1)
    began = time.monotonic()
    with pytest.raises(PlaceFailed, match=r"gs://anonymous@bucket/path/one\?endpoint_override=.*: .*connect"):
        at("gs://anonymous@bucket/path?endpoint_override=127.0.0.1:9&scheme=http").has("one")
    assert time.monotonic() - began < 60  # without a first answer a quarter of an hour


def test_a_file_uri_is_a_folder(tmp_path):
    assert at(f"file://{tmp_path}/a%20b") == Folder(tmp_path / "a b")
    assert lasting("results").startswith("/")
    assert lasting("s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize(
    "given",
    [
        f"s3://AKIA:{SECRET}@bucket/path",
        f"s3://AKIA:{SECRET}/with+slash@bucket/path",
        f"s3://{SECRET}@bucket/path",
        f"s3:/AKIA:{SECRET}@bucket/path",
        f"gs://user:{SECRET}@bucket",
        f"ftp://user:{SECRET}@host/path",
        f"s3://bucket/path?endpoint_override=http://AKIA:{SECRET}@host",
        f"s3://bucket/path?secret_key={SECRET}",
    ],
)
def test_a_uri_with_credentials_is_refused_and_not_repeated(given, tmp_path):
    with pytest.raises(UserError) as caught:
        at(given)
    assert SECRET not in str(caught.value)
    file = sweeps.small(tmp_path, storage=given)
    with pytest.raises(Faults) as faults:
        config.load(file)
    assert "runtime.storage" in str(faults.value) or "not YAML" in str(faults.value)
    assert SECRET[:4] not in str(faults.value).replace(str(file), "")
    done = sweeps.command(tmp_path, "plan", str(sweeps.small(tmp_path)), "--output", given)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://host/path", "Allowed: abfs"),
        ("s4://bucket/path", "Did you mean 's3'"),
        ("s3:/bucket/path", "s3://BUCKET/PATH is needed"),
        ("s3://", "s3://BUCKET/PATH is needed"),
        ("file://relative", "file:///PATH is needed"),
        ("s3://bucket/path?endpoint=host", "Did you mean 'endpoint_override'"),
    ],
)
def test_what_is_no_uri_is_refused_with_what_is_allowed(given, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        at(given)


# ---------------------------------------------------------------------------------------------------------------- ledger


def test_a_ledger_at_a_uri_gives_back_what_was_appended(uri, quick):
    records = [trial("a"), PointRecord("s", 0, {"alpha": 0.5}, ("a",)), trial("b")]
    with Ledger(uri) as book:
        for record in records[:2]:
            book.append(record)
        book.note_code({"scrub": {"version": 1}})
        written = book.write(records[2])
        written.result()
        assert ledger.read(uri).trials.keys() == {"a", "b"}
        assert book.known.trials.keys() == {"a"}
    with Ledger(uri) as again:
        assert again.known.trials == {"a": trial("a"), "b": trial("b")}
        assert again.known.code == {"scrub": {"version": 1}}


def test_what_comes_while_an_object_is_written_is_one_object(uri, quick):
    with Ledger(uri) as book:
        futures = [book.write(trial(f"{number:03d}")) for number in range(500)]
        for future in futures:
            future.result()
    assert list(ledger.read(uri).trials) == [f"{number:03d}" for number in range(500)]
    assert len(logs(uri)) < 50


def test_evidence_at_a_uri_is_there_before_its_record(uri, quick, monkeypatch):
    files = [evidence.File(f"{number:03d}", b"%d" % number) for number in range(40)]
    written, put = [], objects.Batcher._put

    def checked_put(self, lines):
        written.append({record.key for record in map(json_of, scan(lines).payloads)} <= evidence.keys(at(uri)))
        put(self, lines)

    monkeypatch.setattr(objects.Batcher, "_put", checked_put)
    with Ledger(uri) as book:
        for future in [book.write(trial(file.key), file) for file in files]:
            future.result()
    assert set(written) == {True}
    assert evidence.keys(at(uri)) == ledger.read(uri).trials.keys() == {file.key for file in files}
    assert evidence.read(at(uri), "007") == b"7"


def json_of(payload):
    known = ledger.Known()
    assert known.take_in(payload, "test")
    (record,) = known.trials.values()
    return record


def test_a_record_whose_evidence_cannot_be_written_to_a_uri_is_not_written_either(uri, quick, monkeypatch):
    def full(place, file):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), Ledger(uri) as book:
        monkeypatch.setattr(objects.evidence, "write", full)
        book.write(trial("a"), evidence.File("a", b"1")).result()
    assert ledger.read(uri).trials == {}


def logs(uri):
    return [file.name for file in at(uri).files() if file.name.endswith(".log")]


def one_by_one(book, keys):
    for key in keys:
        book.write(trial(key)).result()


def test_many_small_objects_are_compacted(uri, quick, monkeypatch):
    monkeypatch.setattr(objects, "COMPACT_AT", 8)
    keys = [f"{number:03d}" for number in range(40)]
    for start in (0, 20):
        with Ledger(uri) as book:
            one_by_one(book, keys[start : start + 20])
    assert len(logs(uri)) <= 8
    assert list(ledger.read(uri).trials) == keys


@pytest.mark.parametrize("problem", [OSError("killed"), RuntimeError("can't start new thread")], ids=["killed", "no thread"])
def test_a_crash_while_objects_are_compacted_loses_nothing_and_keeps_the_order(uri, quick, monkeypatch, problem):
    monkeypatch.setattr(objects, "COMPACT_AT", 6)
    failed = Record("trial", "a", {}, "failed", "no")

    def crash(self, name):
        raise problem

    with Ledger(uri) as book, monkeypatch.context() as patch:
        patch.setattr(Remote, "delete", crash)
        book.write(failed).result()
        one_by_one(book, "bcdea")  # compacted, and all are still there
        one_by_one(book, "f")
        assert len(logs(uri)) == 8
        assert ledger.read(uri).trials["a"].ok
    for name in sorted(logs(uri))[1:4]:
        at(uri).delete(name)
    with Ledger(uri) as again:
        assert again.known.trials["a"].ok
        assert set(again.known.trials) == set("abcdef")


def test_a_ledger_is_read_while_it_is_written_and_compacted(uri, quick, monkeypatch):
    monkeypatch.setattr(objects, "COMPACT_AT", 4)
    keys, seen, ended = [f"{number:03d}" for number in range(60)], [], threading.Event()

    def look():
        while not ended.is_set():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                seen.append(list(ledger.read(uri).trials))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        with Ledger(uri) as book:
            one_by_one(book, keys)
    finally:
        ended.set()
        reader.join()
    assert all(each == keys[: len(each)] for each in seen)
    assert len({len(each) for each in seen}) > 3


def test_any_bytes_at_a_uri_are_passed_over(uri, quick):
    rng = random.Random(0)
    with Ledger(uri) as book:
        one_by_one(book, "abc")
    place = at(uri)
    damaged = sorted(logs(uri))[1]
    place.write(damaged, place.read(damaged)[:-10])
    place.write("000000002-other.log", rng.randbytes(500))
    place.write("000000003-empty.log", b"")
    passed_over = "are no whole record and are passed over"
    with pytest.warns(UserWarning, match=passed_over):
        assert set(ledger.read(uri).trials) == {"a", "c"}
    with pytest.warns(UserWarning, match=passed_over), Ledger(uri) as book:
        one_by_one(book, "b")
    with pytest.warns(UserWarning, match=passed_over):
        assert set(ledger.read(uri).trials) == {"a", "b", "c"}


def test_what_goes_wrong_in_the_background_is_raised_and_nothing_is_written_after_it(uri, quick, monkeypatch):
    book = Ledger(uri)
    one_by_one(book, "a")
    write = Remote.write

    def fails(self, name, content):
        if name.endswith(".log"):
            raise PlaceFailed("the network is down")
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "write", fails)
        with pytest.raises(PlaceFailed, match="down"):
            one_by_one(book, "b")
    with pytest.raises(PlaceFailed, match="down"):
        book.append(trial("c"))
    with pytest.raises(PlaceFailed, match="down"):
        book.close()
    with Ledger(uri) as again:
        assert list(again.known.trials) == ["a"]


def test_an_outage_is_sat_out_and_each_record_is_there_once_in_its_order(uri, quick, monkeypatch):
    write, left = Remote.write, [2]

    def fails_twice(self, name, content):
        if name.endswith(".log") and left[0]:
            left[0] -= 1
            if not left[0]:
                write(self, name, content)  # it came there, but no answer
            raise PlaceFailed("the network is down")
        write(self, name, content)

    with Ledger(uri) as book:
        one_by_one(book, "a")
        monkeypatch.setattr(Remote, "write", fails_twice)
        futures = [book.write(trial("b"), evidence.File("b", b"1")), book.write(trial("c"))]
        for future in futures:
            future.result()
    assert left == [0]
    payloads = [payload for name in sorted(logs(uri)) for payload in scan(at(uri).read(name)).payloads]
    assert [json_of(payload).key for payload in payloads if b'"trial"' in payload] == ["a", "b", "c"]
    assert evidence.keys(at(uri)) == {"b"}


def test_a_writer_whose_lease_another_took_does_not_try_again(uri, quick, monkeypatch):
    monkeypatch.setattr(objects, "PAUSES", (60.0,))

    def lost(self):
        raise lease.LeaseLost("another has it")

    began = time.monotonic()
    with pytest.raises(lease.LeaseLost), Ledger(uri) as book:
        monkeypatch.setattr(lease.Lease, "require", lost)
        one_by_one(book, "a")
    assert time.monotonic() - began < 30


# ----------------------------------------------------------------------------------------------------------------- lease


def test_a_second_writer_is_refused_and_told_who_the_first_one_is(uri, quick):
    with Ledger(uri) as book:
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} on {platform.node()}: "):
            Ledger(uri)
        one_by_one(book, "a")
    assert not at(uri).has("lease.json")


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(uri):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    held_by(uri, process.pid, platform.node())
    started = time.monotonic()
    Ledger(uri).close()
    assert time.monotonic() - started < lease.BEAT


def test_the_lease_of_another_machine_is_taken_when_it_is_not_renewed(uri, quick):
    held_by(uri, 1, "elsewhere")
    started = time.monotonic()
    Ledger(uri).close()
    assert time.monotonic() - started > lease.STALE * lease.BEAT


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{", b'{"process": "x", "host": 3}'])
def test_a_damaged_lease_is_taken_when_nothing_renews_it(uri, quick, content):
    at(uri).write("lease.json", content)
    Ledger(uri).close()


def held_by(uri, process, host):
    at(uri).write("lease.json", json.dumps({"process": process, "host": host, "token": "other", "renewed_at": 0}).encode())


def test_of_two_that_take_the_lease_at_once_one_has_it(uri, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.5)
    books, refused = [], []

    def open_it():
        try:
            books.append(Ledger(uri))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(books), len(refused)) == (1, 3)
    books[0].close()


def test_a_writer_that_was_taken_for_dead_stops_and_what_both_wrote_is_kept(uri, quick):
    slept = Ledger(uri)
    one_by_one(slept, "a")
    held_by(uri, os.getpid(), "elsewhere")  # while it slept
    time.sleep(3 * lease.BEAT)
    with pytest.raises(OSError, match=f"process {os.getpid()} on elsewhere has taken over {uri}"):
        one_by_one(slept, "b")
    with pytest.raises(OSError, match="has taken over"):
        slept.close()
    assert list(ledger.read(uri).trials) == ["a"]
    assert json.loads(at(uri).read("lease.json"))["host"] == "elsewhere"


# ----------------------------------------------------------------------------------------------------------------- store


def made_once(uri, made, name):
    with open_store(uri).claimed("originals", "abc"):
        if open_store(uri).load("originals", "abc") is None:
            time.sleep(0.5)
            made.append(name)
            open_store(uri).save("originals", "abc", WEIGHTS, {})


def test_of_many_that_claim_an_entry_one_makes_it(uri, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 2.0)
    made = []
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: made_once(uri, made, name), "abc"))
    assert len(made) == 1
    assert (at(uri) / "claims" / "originals-abc").files() == []


@pytest.mark.parametrize(("times", "made_it"), [(2, True), (99, False)])
def test_a_claim_sits_out_an_outage_and_says_of_a_long_one_what_it_was(uri, quick, monkeypatch, times, made_it):
    has, left, made = RemoteStore.has, [times], []

    def fails(self, kind, key):
        if left[0]:
            left[0] -= 1
            raise StoreFailed("runtime.storage: the network is down")
        return has(self, kind, key)

    monkeypatch.setattr(RemoteStore, "has", fails)
    with contextlib.nullcontext() if made_it else pytest.raises(StoreFailed, match=r"^runtime\.storage: the network is down$"):
        made_once(uri, made, "it")
    assert made == (["it"] if made_it else [])


def test_the_claim_of_a_dead_process_is_free(uri, quick):
    held_by(f"{uri}/claims/originals-abc", 1, "elsewhere")
    made = []
    made_once(uri, made, "next")
    assert made == ["next"]


def test_a_store_at_a_uri_gives_back_arrays_and_metadata_to_the_bit(uri):
    kept = open_store(uri)
    assert isinstance(kept, RemoteStore)
    assert not kept.has("originals", "abc")
    assert kept.load("originals", "abc") is None
    kept.save("originals", "abc", {**WEIGHTS, "scattered": np.arange(6.0).reshape(2, 3).T}, {"forward": "12", "note": "é"})
    assert kept.has("originals", "abc")
    tensors, facts = kept.load("originals", "abc")
    assert facts == {"forward": "12", "note": "é"}
    assert tensors.keys() == {*WEIGHTS, "scattered"}
    assert all(tensors[name].tobytes() == array.tobytes() for name, array in WEIGHTS.items())


def test_an_entry_is_the_same_file_in_a_folder_and_at_a_uri(uri, tmp_path):
    open_store(uri).save("originals", "abc", WEIGHTS, {"forward": "12"})
    local = open_store(str(tmp_path))
    assert isinstance(local, LocalStore)
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "abc.safetensors").write_bytes((at(uri) / "originals").read("abc.safetensors"))
    tensors, facts = local.load("originals", "abc")
    assert facts == {"forward": "12"}
    assert tensors["layer.weight"].tobytes() == WEIGHTS["layer.weight"].tobytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "head", "empty", "noise"])
def test_a_damaged_entry_is_none_and_removed(uri, damage):
    kept, place = open_store(uri), at(uri) / "originals"
    kept.save("originals", "abc", WEIGHTS, {})
    whole = place.read("abc.safetensors")
    damages = {"cut": whole[:-3], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "head": b"\xff" + whole[1:], "empty": b""}
    place.write("abc.safetensors", damages.get(damage, random.Random(0).randbytes(300)))
    assert kept.load("originals", "abc") is None
    assert not kept.has("originals", "abc")


def test_memos_beyond_the_limit_go_oldest_first(uri, monkeypatch):
    monkeypatch.setitem(store.LIMITS, "memos", 10_000)
    kept = open_store(uri)
    for key in "abc":
        kept.save("memos", key, {"importance": np.zeros(1000, np.float32)}, {})
        time.sleep(1.1)  # the server's clock counts seconds
    assert [kept.has("memos", key) for key in "abc"] == [False, True, True]


# ----------------------------------------------------------------------------------------------------------------- sweep


def test_a_sweep_to_a_uri_killed_and_resumed_has_the_tables_of_a_local_run(storage, uri, tmp_path):
    environment = {**os.environ, **storage.environment}
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.mkdir()
    remote.mkdir()
    small = {"seeds": "[0]", "trials": 3, "fractions": "[1.0]"}
    done = sweeps.command(local, "sweep", str(sweeps.small(local, **small)))
    assert done.returncode == 0, done.stdout + done.stderr

    file = sweeps.small(remote, storage=f"{uri}/store", **small)
    file.write_text(file.read_text() + "evidence: true\n")
    said = [killed_after(3, remote, environment, str(file), uri)]
    finished = ledger.read(f"{uri}/results/small/ledger").trials
    assert len(finished) >= 3
    again = sweeps.command(remote, "sweep", str(file), "--output", f"{uri}/results", env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{uri}/results/small/tables/{{trials,originals,best,curves}}.parquet" in again.stdout
    after = ledger.read(f"{uri}/results/small/ledger").trials
    assert {key: after[key] for key in finished} == finished
    known = ledger.read(f"{uri}/results/small/ledger")
    assert evidence.keys(at(f"{uri}/results/small/ledger")) == known.trials.keys() | known.originals.keys()

    copy = tmp_path / "copy"
    (copy / "tables").mkdir(parents=True)
    for file_there in (at(uri) / "results" / "small" / "tables").files():
        (copy / "tables" / file_there.name).write_bytes((at(uri) / "results/small/tables").read(file_there.name))
    sweeps.assert_same_tables(local / "results" / "small", copy)

    key = pq.read_table(copy / "tables" / "trials.parquet")["trial_key"][0].as_py()
    place = f"{uri}/results/small"
    for arguments, expected in (
        (["sweep", str(file), "--output", f"{uri}/results"], "Nothing to do"),
        (["status", place], "small: not running"),
        (["table", place], "no_unlearning"),
        (["rescore", place], f"of {len(known.trials) + len(known.originals)} trials and originals"),
        (["plan", str(file), "--output", f"{uri}/results"], "trials_done"),
        (["replay", place, key], "The scores are the same to the bit."),
        (["export", place, key], f"{place}/export/{key[:16]}"),
    ):
        done = sweeps.command(remote, *arguments, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stdout
        said.append(done.stdout + done.stderr)
    assert {file.name for file in at(f"{place}/export/{key[:16]}").files()} == {"model.safetensors", "trial.json", "load.py"}
    assert not (remote / "results").exists()
    assert_no_secret([again.stdout, again.stderr, *said], uri, [remote, tmp_path / "home"])


@pytest.mark.filterwarnings("default")  # Ray's own, which come up in this process
def test_a_sweep_from_python_has_its_results_at_a_uri(uri, tmp_path, monkeypatch):
    places = {"output": f"{uri}/results", "storage": f"{uri}/store"}
    sweep = cu_ray.Sweep.load(sweeps.small(tmp_path, seeds="[0]", trials=2, fractions="[1.0]"), only=["method=scrub"], **places)
    interrupted = interrupted_at_its_first_trial(sweep, monkeypatch)
    assert len(interrupted.trials) == interrupted.outcome.estimate.trials_done == 1, "it was not waited for the ledger"
    results = sweep.run(quiet=True)
    assert results.outcome.num_run == 1
    assert str(sweep.folder) == str(results.folder) == f"{uri}/results/small"
    assert len(results.trials) == 2
    assert set(results.trials["status"]) == {"ok"}
    assert len((at(f"{uri}/store") / "originals").files()) == 1
    read = cu_ray.Results.read(f"{uri}/results/small")
    pd.testing.assert_frame_equal(read.best, results.best, check_exact=True)
    assert repr(results).startswith(repr(read))
    assert sweep.plan().trials_done == 2
    assert sweep.run(quiet=True).outcome.num_run == 0
    with pytest.raises(UserError, match=f"there is no {uri}/results/large/tables/best.parquet"):
        cu_ray.Results.read(f"{uri}/results/large")
    with pytest.raises(UserError, match=r"runtime\.output: s4:// is no place"):
        cu_ray.Sweep.load(tmp_path / "small.yaml", output="s4://bucket/results")
    assert not (tmp_path / "results").exists()


@pytest.mark.filterwarnings("default")  # Ray's own, which come up in this process
def test_a_sweep_whose_ledger_cannot_be_written_any_more_ends_with_the_reason(uri, tmp_path, monkeypatch):
    trials, record_write, write = [], Ledger.write, Remote.write

    def noted(ledger, record, file=None):
        trials.extend([record.key] if isinstance(record, Record) and record.kind == "trial" else [])
        return record_write(ledger, record, file)

    def fails_later(self, name, content):
        if trials and name.endswith(".log"):
            raise PlaceFailed("the network is down")
        write(self, name, content)

    file = sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]")
    sweep = cu_ray.Sweep.load(file, only=["method=ssd"], output=uri, storage=tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(RayStopped, match="stopped: the network is down"):
        patch.setattr(Ledger, "write", noted)
        patch.setattr(Remote, "write", fails_later)
        patch.setattr(objects, "PAUSES", (0.1,))
        sweep.run(quiet=True)
    counts = sweep.plan()
    assert (counts.originals_done, counts.trials_done) == (1, 0)


def test_the_doctor_looks_for_a_storage_at_a_uri_and_leaves_nothing_there(uri):
    (fault,) = look(uri, "probe", 0)["faults"]
    assert f"does not see what another node wrote to {uri}: " in fault
    at(uri).write("probe", b"")
    assert look(uri, "probe", 0)["faults"] == []
    assert [file.name for file in at(uri).files()] == ["probe"]


def test_a_sweep_that_was_sent_to_a_cluster_is_found_by_its_uri_and_brings_nothing_home(uri, tmp_path, monkeypatch):
    sent, fetched = [], []
    monkeypatch.chdir(tmp_path)
    answers = {"cu-ray --version": __version__, "test -e ~/cu-ray/small/files/results": "there"}
    monkeypatch.setattr(
        Cluster, "ask", lambda cluster, command: next((what for begin, what in answers.items() if command.startswith(begin)), "")
    )
    monkeypatch.setattr(Cluster, "send", lambda cluster, folder, to: sent.append((folder / "run.sh").read_text()))
    monkeypatch.setattr(Cluster, "fetch", lambda cluster, folder, to: fetched.append(folder))
    for output in (uri, "results"):
        sweep = config.with_runtime(config.load(sweeps.small(tmp_path)), output=output)
        away.start(sweep, Cluster.of(ROOT / "cluster.yaml"), ["--output", output], Console(quiet=True))
        assert f"cu-ray sweep small.yaml --address auto --output {output}" in sent[-1]
        away.Away.of(sweep.folder).fetch()
    assert fetched == ["~/cu-ray/small/files/results/small"]
    with pytest.raises(UserError, match=f"{uri}/other is not the folder"):
        away.Away.of(at(uri) / "other")


def interrupted_at_its_first_trial(sweep, monkeypatch):
    """The results of a run that is interrupted while the record of its first trial is on its way."""
    ended = Dispatch.ended

    def ended_and_interrupted(dispatch, name, record, file=None):
        ended(dispatch, name, record, file)
        if record.kind == "trial":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(cu_ray.Interrupted) as caught:
        patch.setattr(Dispatch, "ended", ended_and_interrupted)
        sweep.run(workers=1, quiet=True)
    return caught.value.results


def killed_after(trials, folder, environment, file, uri):
    """Start the sweep, kill -9 its driver when so many trials are in the ledger; what it said."""
    with open(folder / "driver.log", "w", encoding="utf-8") as log:
        command = sweeps.program("sweep", file, "--output", f"{uri}/results")
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(ledger.read(f"{uri}/results/small/ledger").trials) < trials:
        assert process.poll() is None, (folder / "driver.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    return (folder / "driver.log").read_text()


def assert_no_secret(said, uri, folders):
    """Neither what was said nor anything that was written holds the secret."""
    texts = [text.encode() for text in said]
    for folder in folders:
        texts += [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".npy"]
    for part in ("results/small", "results/small/ledger", "results/small/tables"):
        texts += [at(f"{uri}/{part}").read(file.name) for file in at(f"{uri}/{part}").files()]
    assert len(texts) > 15
    assert not any(SECRET.encode() in text or b"AKIATESTING" in text for text in texts)
