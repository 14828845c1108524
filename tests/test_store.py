"""The store gives back what was kept, or nothing: never a damaged entry, never code."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cu_ray import store
from cu_ray.cli import main
from cu_ray.errors import StoreFailed, UserError
from cu_ray.places import ABANDONED_AFTER, Folder
from cu_ray.report.write import write as report
from cu_ray.store import LocalStore
from cu_ray.sweep import ledger, status
from tests.report import made

THOROUGH = settings(derandomize=True, database=None, deadline=None, max_examples=40)

WEIGHTS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.steps": np.array(7, dtype=np.int64)}
FACTS = {"forward": "12", "note": "é \N{SNOWMAN}"}


@pytest.fixture
def local(tmp_path):
    return LocalStore(tmp_path / "store")


def path_of(local, kind="originals", key="abc"):
    return local.folder / kind / f"{key}.safetensors"


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        assert tensors[name].tobytes() == array.tobytes()


# --------------------------------------------------------------------------------------------------------- round trip


def test_what_was_kept_is_given_back(local):
    local.save("originals", "abc", WEIGHTS, FACTS)
    tensors, facts = local.load("originals", "abc")
    assert_same(tensors, WEIGHTS)
    assert facts == FACTS


@THOROUGH
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5),
        arrays.arrays(
            st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]), arrays.array_shapes(min_dims=0, min_side=0)
        ),
        max_size=3,
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3),
)
def test_any_arrays_and_metadata_are_given_back_to_the_bit(tmp_path_factory, tensors, facts):
    facts.pop("checksum", None)
    local = LocalStore(tmp_path_factory.getbasetemp() / "any")
    local.save("originals", "abc", tensors, facts)
    loaded, loaded_facts = local.load("originals", "abc")
    assert_same(loaded, tensors)
    assert loaded_facts == facts


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(8, dtype=np.float32)[::2]])
def test_arrays_that_lie_scattered_in_memory_are_given_back(local, array):
    local.save("memos", "abc", {"importance": array}, {})
    assert_same(local.load("memos", "abc")[0], {"importance": array})


def test_the_same_content_is_the_same_bytes_which_the_library_reads(tmp_path):
    facts = {**FACTS, **{name: name for name in "abcdefgh"}}
    (content,) = {store.as_safetensors(WEIGHTS, dict(sorted(facts.items(), reverse=turn))) for turn in (False, True) * 10}
    (tmp_path / "x").write_bytes(content)
    with safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata() == facts
        assert_same({name: file.get_tensor(name) for name in file.keys()}, WEIGHTS)  # noqa: SIM118 (it is no mapping)


def test_an_entry_as_earlier_versions_wrote_it_is_read(local):
    path_of(local).parent.mkdir(parents=True)
    path_of(local).write_bytes(save(WEIGHTS, metadata={**FACTS, "checksum": store.checksum(WEIGHTS, FACTS)}))
    tensors, facts = local.load("originals", "abc")
    assert_same(tensors, WEIGHTS)
    assert facts == FACTS


def test_an_entry_that_was_never_kept_is_none(local):
    assert local.load("originals", "abc") is None
    assert not local.has("originals", "abc")
    assert not local.folder.exists()


def test_kinds_and_keys_are_apart(local):
    local.save("originals", "abc", WEIGHTS, {})
    assert local.has("originals", "abc")
    assert local.load("memos", "abc") is None
    assert local.load("originals", "abd") is None


def test_what_killed_writers_left_is_taken_away_once_nobody_can_be_at_it(local):
    local.save("originals", "abc", WEIGHTS, {})
    folder = local.folder / "originals"
    (old, new, lock) = (folder / name for name in (".abc.1.tmp", ".abd.2.tmp", ".abc.lock"))
    for path in (old, new, lock):
        path.write_bytes(b"half")
    for path in (old, lock):
        os.utime(path, (0, time.time() - ABANDONED_AFTER - 60))
    local.save("originals", "abe", WEIGHTS, {})
    assert sorted(path.name for path in folder.iterdir()) == [lock.name, new.name, "abc.safetensors", "abe.safetensors"]


def test_what_nobody_used_for_long_is_told_and_deleted_when_asked(local):
    keys = {name: name[0] * 64 for name in ("abandoned", "beloved", "current", "damaged")}
    for key in keys.values():
        local.save("originals", key, WEIGHTS, {})
    foreign = local.folder / "originals" / "holiday.safetensors"
    foreign.write_bytes(b"somebody's")
    long_ago = time.time() - 100 * 24 * 3600
    for path in (foreign, *(path_of(local, key=keys[name]) for name in ("abandoned", "beloved"))):
        os.utime(path, (long_ago, long_ago))
    os.utime(path_of(local, key=keys["damaged"]), (time.time(), long_ago))  # read by somebody who may not write
    assert local.load("originals", keys["beloved"]) is not None

    def clean(*options, answer=None):
        return CliRunner().invoke(main, ["clean", "--storage", str(local.folder), *options], input=answer)

    assert "originals unused for 90 days: 1, 0.00 GiB" in clean(answer="n\n").output
    assert "everything was used within 101 days" in clean("--unused-for", "101").output
    assert local.has("originals", keys["abandoned"])
    assert clean("--yes").exit_code == 0
    assert [local.has("originals", key) for key in keys.values()] == [False, True, True, True]
    assert foreign.exists()
    assert "everything was used" in clean("--yes").output


def test_a_later_entry_replaces_the_earlier_one(local):
    local.save("originals", "abc", WEIGHTS, {"round": "1"})
    local.save("originals", "abc", {"other": np.ones(2, np.float32)}, {"round": "2"})
    tensors, facts = local.load("originals", "abc")
    assert list(tensors) == ["other"]
    assert facts == {"round": "2"}


def test_a_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    LocalStore("~/kept").save("originals", "abc", WEIGHTS, {})
    assert (tmp_path / "kept" / "originals" / "abc.safetensors").exists()


# ------------------------------------------------------------------------------------------------------------- damages


def test_an_entry_cut_short_anywhere_is_none_and_removed(local):
    local.save("originals", "abc", WEIGHTS, FACTS)
    whole = path_of(local).read_bytes()
    for length in range(len(whole)):
        path_of(local).write_bytes(whole[:length])
        assert local.load("originals", "abc") is None
        assert not path_of(local).exists()


def test_an_entry_with_a_byte_of_its_arrays_changed_is_none_and_removed(local):
    local.save("originals", "abc", WEIGHTS, FACTS)
    whole = path_of(local).read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    assert len(whole) - start == 24 + 8
    for place in range(start, len(whole)):
        path_of(local).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert local.load("originals", "abc") is None
        assert not path_of(local).exists()


def test_a_changed_byte_of_the_head_never_gives_other_arrays_or_metadata(local):
    local.save("originals", "abc", WEIGHTS, {"forward": "12"})
    whole = path_of(local).read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for place in range(start):
        path_of(local).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        entry = local.load("originals", "abc")
        if entry is not None:
            assert_same(entry[0], WEIGHTS)
            assert entry[1] == {"forward": "12"}, f"byte {place} of the head"


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"not safetensors at all", b"\xff" * 64])
def test_what_is_no_entry_is_none_and_removed(local, content):
    path_of(local).parent.mkdir(parents=True)
    path_of(local).write_bytes(content)
    assert local.load("originals", "abc") is None
    assert not path_of(local).exists()


def test_a_damaged_entry_can_be_kept_again(local):
    path_of(local).parent.mkdir(parents=True)
    path_of(local).write_bytes(b"damaged")
    assert local.load("originals", "abc") is None
    local.save("originals", "abc", WEIGHTS, {})
    assert_same(local.load("originals", "abc")[0], WEIGHTS)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("pack", ["pickle", "torch"])
def test_a_pickle_is_never_run(local, tmp_path, pack):
    path_of(local).parent.mkdir(parents=True)
    if pack == "pickle":
        path_of(local).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    else:
        torch.save(Bomb(tmp_path / "exploded"), path_of(local))
    assert local.load("originals", "abc") is None
    assert not (tmp_path / "exploded").exists()
    assert not path_of(local).exists()


def test_arrays_of_objects_cannot_be_kept(local):
    with pytest.raises(SafetensorError, match="object"):
        local.save("originals", "abc", {"objects": np.array([Bomb("x")], dtype=object)}, {})
    assert not local.has("originals", "abc")


# ------------------------------------------------------------------------------------------------- half-written entries


def test_a_half_written_temporary_is_no_entry(local):
    path_of(local).parent.mkdir(parents=True)
    (path_of(local).parent / ".abc.0123.tmp").write_bytes(b"half")
    assert local.load("originals", "abc") is None
    assert not local.has("originals", "abc")
    local.save("originals", "abc", WEIGHTS, {})
    assert_same(local.load("originals", "abc")[0], WEIGHTS)


def test_nothing_but_the_entry_is_left_in_the_folder(local):
    local.save("originals", "abc", WEIGHTS, {})
    assert [path.name for path in path_of(local).parent.iterdir()] == ["abc.safetensors"]


def test_a_crash_while_writing_leaves_the_earlier_entry_and_no_temporary(local, monkeypatch):
    local.save("originals", "abc", WEIGHTS, {"round": "1"})

    def crash(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        local.save("originals", "abc", WEIGHTS, {"round": "2"})
    assert local.load("originals", "abc")[1] == {"round": "1"}
    assert [path.name for path in path_of(local).parent.iterdir()] == ["abc.safetensors"]


def test_a_store_that_fails_says_so_whatever_else_fails_with_it(local, monkeypatch):
    """As where a file system becomes read-only: the claim cannot be given back either."""

    def refuse(*given, **how):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(StoreFailed, match=r"runtime\.storage: Read-only file system"), local.claimed("originals", "abc"):
        monkeypatch.setattr(os, "replace", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)
        local.save("originals", "abc", WEIGHTS, {})


def test_an_entry_appears_by_a_rename_in_its_own_folder(local, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (renamed.append((source, target)), replace(source, target)))
    local.save("originals", "abc", WEIGHTS, {})
    ((source, target),) = renamed
    assert source.parent == target.parent == path_of(local).parent
    assert target == path_of(local)


# ------------------------------------------------------------------------------------------------------- limited kinds


def keep_memos(local, *keys, started=1_000_000_000):
    """Memos of 4,000 bytes and a little, a second apart."""
    for second, key in enumerate(keys):
        local.save("memos", key, {"importance": np.zeros(1000, np.float32)}, {})
        os.utime(path_of(local, "memos", key), (started + second, started + second))


def memos_of(local):
    return sorted(path.stem for path in (local.folder / "memos").iterdir())


def test_memos_beyond_the_limit_go_oldest_first(local, monkeypatch):
    keep_memos(local, "d", "b", "c", "a")
    monkeypatch.setitem(store.LIMITS, "memos", 10_000)
    keep_memos(local, "e", started=2_000_000_000)
    assert memos_of(local) == ["a", "e"]


def test_memos_within_the_limit_stay(local, monkeypatch):
    monkeypatch.setitem(store.LIMITS, "memos", 20_000)
    keep_memos(local, *"abcd")
    assert memos_of(local) == ["a", "b", "c", "d"]


def test_a_memo_that_was_used_lately_stays(local, monkeypatch):
    keep_memos(local, *"abc")
    assert local.load("memos", "a") is not None
    monkeypatch.setitem(store.LIMITS, "memos", 10_000)
    keep_memos(local, "d", started=4_000_000_000)
    assert memos_of(local) == ["a", "d"]


def test_originals_are_never_trimmed(local, monkeypatch):
    monkeypatch.setitem(store.LIMITS, "memos", 1)
    for key in "abc":
        local.save("originals", key, WEIGHTS, {})
    assert all(local.load("originals", key) for key in "abc")


def test_a_memo_that_another_process_trims_while_it_is_read_is_given_or_none(local, monkeypatch):
    keep_memos(local, "a")
    checksum = store.checksum

    def trimmed_meanwhile(*arguments):
        path_of(local, "memos", "a").unlink()
        return checksum(*arguments)

    monkeypatch.setattr(store, "checksum", trimmed_meanwhile)
    entry = local.load("memos", "a")
    assert entry is None or len(entry[0]["importance"]) == 1000


# ------------------------------------------------------------------------------------------------------------- claims


def made_once(store, made, name):
    """As a worker does: what is not there is made by the one that claims it, while others wait."""
    with store.claimed("originals", "abc"):
        if store.load("originals", "abc") is None:
            time.sleep(0.3)
            made.append(name)
            store.save("originals", "abc", WEIGHTS, FACTS)


def test_of_many_that_claim_an_entry_one_makes_it(local):
    made = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: made_once(LocalStore(local.folder), made, name), "abcd"))
    assert len(made) == 1
    assert [path.name for path in (local.folder / "originals").iterdir()] == ["abc.safetensors"]


def test_other_entries_are_claimed_at_the_same_time(local):
    with local.claimed("originals", "abc"), local.claimed("originals", "def"), local.claimed("memos", "abc"):
        pass


def test_who_fails_to_make_what_it_claimed_leaves_it_to_the_next(local):
    with pytest.raises(ZeroDivisionError), local.claimed("originals", "abc"):
        raise ZeroDivisionError
    made = []
    made_once(local, made, "next")
    assert made == ["next"]


def test_the_claim_of_a_killed_process_is_free(local):
    script = f"""
import time
from cu_ray.store import LocalStore
with LocalStore({str(local.folder)!r}).claimed("originals", "abc"):
    print("claimed", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "claimed\n"
        process.kill()
    made = []
    made_once(local, made, "next")
    assert made == ["next"]


# ------------------------------------------------------------------------------------------------------- several users

ANNA, BEN, GROUP = 1001, 1002, 2001

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users, which only root may")


@contextlib.contextmanager
def as_user(number: int):
    """What is done in this context another user does, of one group with all others, with the usual umask."""
    groups, group, umask = os.getgroups(), os.getegid(), os.umask(0o022)
    os.setgroups([GROUP])
    os.setegid(GROUP)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        os.umask(umask)


@pytest.fixture
def shared():
    """A folder that a group shares: `chmod g+ws`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # whose parents others may enter
        os.chmod(place, 0o755)
        folder = Path(place) / "shared"
        folder.mkdir()
        os.chown(folder, ANNA, GROUP)
        folder.chmod(0o2775)
        yield folder


@needs_root
def test_what_one_user_keeps_another_one_reads_and_replaces(shared):
    with as_user(ANNA):
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {"by": "anna"})
    entry = shared / "originals" / "a.safetensors"
    assert stat.S_IMODE(entry.stat().st_mode) == 0o664
    assert stat.S_IMODE((shared / "originals").stat().st_mode) == 0o2775
    with as_user(BEN):
        found = LocalStore(shared).load("originals", "a")
        assert found is not None and found[1] == {"by": "anna"}
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {"by": "ben"})
        LocalStore(shared).save("originals", "b", {"x": np.arange(4)}, {})
    with as_user(ANNA):
        assert LocalStore(shared).load("originals", "a")[1] == {"by": "ben"}
        assert LocalStore(shared).has("originals", "b")


@needs_root
def test_an_entry_that_one_user_damaged_another_one_removes(shared):
    with as_user(ANNA):
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {})
        (shared / "originals" / "a.safetensors").write_bytes(b"no")
    with as_user(BEN):
        assert LocalStore(shared).load("originals", "a") is None
        assert not LocalStore(shared).has("originals", "a")


@needs_root
def test_an_entry_is_as_open_as_its_folder_whatever_files_of_its_user_are_otherwise(shared):
    with as_user(ANNA):
        os.umask(0o077)
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {})
    with as_user(BEN):
        assert LocalStore(shared).load("originals", "a") is not None


@needs_root
def test_an_entry_that_may_not_be_read_is_made_again_where_it_can_be_replaced_and_else_a_fault(shared):
    """As the first versions wrote them."""
    with as_user(ANNA):
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {})
        (shared / "originals" / "a.safetensors").chmod(0o600)
    with as_user(BEN):
        assert LocalStore(shared).load("originals", "a") is None
        LocalStore(shared).save("originals", "a", {"x": np.arange(3)}, {})
        assert LocalStore(shared).load("originals", "a") is not None
        (shared / "originals" / "a.safetensors").chmod(0o600)
    (shared / "originals").chmod(0o2755)
    with as_user(ANNA + 5), pytest.raises(StoreFailed, match="Permission denied"):
        LocalStore(shared).load("originals", "a")
    with as_user(ANNA + 5), pytest.raises(StoreFailed, match="Permission denied"), LocalStore(shared).claimed("originals", "b"):
        pytest.fail("it would be trained and could not be kept")


@needs_root
def test_what_one_user_claims_another_one_waits_for_and_a_lock_that_was_left_holds_nobody_up(shared):
    taken, over = threading.Event(), threading.Event()

    def claim():
        with LocalStore(shared).claimed("originals", "a"):
            taken.set()
            over.wait(20)

    with as_user(ANNA):
        holder = threading.Thread(target=claim)
        holder.start()
        taken.wait(20)
    lock = shared / "originals" / ".a.lock"
    assert lock.stat().st_uid == ANNA
    threading.Timer(0.5, over.set).start()
    with as_user(BEN), LocalStore(shared).claimed("originals", "a"):
        assert over.is_set(), "it was not waited for"
    holder.join()
    lock.write_bytes(b"")
    lock.chmod(0o600)  # of a process of Anna's that was killed, and nobody else may open it
    os.chown(lock, ANNA, GROUP)
    with as_user(BEN), LocalStore(shared).claimed("originals", "a"):
        pass


@needs_root
def test_results_that_another_user_keeps_shut_are_said_to_be_that_and_not_to_be_none(shared):
    with as_user(0):
        results = made.folder(shared / "one")
        with ledger.Ledger(results / "ledger"):
            pass
        (results / "status.json").write_text("{}")
        report([results], shared / "before", None)  # with all that it imports
        (results / "ledger").chmod(0o700)
        (results / "status.json").chmod(0o600)
    with as_user(BEN):
        with pytest.raises(UserError, match=r"ledger cannot be read: .*Permission denied"):
            ledger.read(results / "ledger")
        with pytest.raises(UserError, match=r"status.json cannot be read: Permission denied"):
            status.read(results)
        page, _ = report([results], shared / "report", None)
        assert page.exists(), "the tables can be read"
        assert Folder(shared / "two").files() == Folder(results / "status.json").files() == []
