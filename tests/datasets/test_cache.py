"""The cache: appears finished or not at all, is made by one process, and gives plain arrays on mapped files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cu_ray import places
from cu_ray.datasets import _cache
from cu_ray.errors import UserError
from tests.datasets import own

NAMES = own.NAMES


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def contents(blocks=None, labels=own.TRAIN.labels):
    train = _cache.Part(labels, [own.TRAIN.pixels] if blocks is None else blocks)
    return _cache.Contents("the source", NAMES, (8, 10, 3), train, _cache.Part(own.TEST.labels, [own.TEST.pixels]))


def keep(folder: Path, made=None, identity=0):
    return _cache.kept(
        _cache.path_of(str(folder), "made", identity), lambda scratch: contents() if made is None else made(scratch)
    )


def test_arrays_are_plain_mapped_and_read_only(folder):
    for _ in range(2):
        for array in vars(keep(folder).train).values():
            assert type(array) is np.ndarray
            assert isinstance(array.base, np.memmap)
            assert not array.flags.writeable


def test_how_the_images_come_in_blocks_changes_nothing(folder):
    whole = keep(folder)
    pieces = keep(folder, lambda _: contents(np.split(own.TRAIN.pixels, [1, 5])), identity=1)
    assert np.array_equal(whole.train.pixels, pieces.train.pixels)
    assert whole.normalisation == pieces.normalisation


def test_another_identity_or_converter_is_another_entry(folder, monkeypatch):
    paths = [_cache.path_of(str(folder), "made", identity) for identity in (0, 1)]
    monkeypatch.setattr(_cache, "CONVERTER", _cache.CONVERTER + 1)
    assert len({*paths, _cache.path_of(str(folder), "made", 0)}) == 3


def failing(_):
    def blocks():
        yield own.TRAIN.pixels[:2]
        raise OSError(errno.ENOSPC, "No space left on device")

    return contents(blocks())


def test_a_conversion_that_fails_leaves_nothing(folder):
    with pytest.raises(UserError, match=r"No space left on device; `cache` names a folder with more space"):
        keep(folder, failing)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert len(keep(folder).train) == 12


def test_a_conversion_that_is_killed_leaves_nothing_half(folder):
    killed = (
        "import os, sys\nfrom tests.datasets import test_cache as it\nfrom pathlib import Path\n"
        "def blocks():\n    yield it.own.TRAIN.pixels[:2]\n    os._exit(9)\n"
        "it.keep(Path(sys.argv[1]), lambda _: it.contents(blocks()))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", killed, str(folder)], cwd=root)
    assert done.returncode == 9
    assert [path.name[0] for path in folder.iterdir()] == [".", "."]  # the lock and what is unfinished
    assert len(keep(folder).train) == 12
    assert sorted(path.name[0] for path in folder.iterdir()) == [".", "m"]


def test_two_processes_convert_once(folder):
    slow = (
        "import sys, time\nfrom tests.datasets import test_cache as it\nfrom pathlib import Path\n"
        "def made(_):\n    print('converts', flush=True)\n    time.sleep(1)\n    return it.contents()\n"
        "print(len(it.keep(Path(sys.argv[1]), made).train))\n"
    )
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", slow, str(folder)], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = "".join(process.communicate()[0] for process in started)
    assert (said.count("converts"), said.count("12")) == (1, 3)


def test_where_there_are_no_locks_two_convert_at_once_and_one_of_them_is_kept(folder, monkeypatch):
    """As on Lustre without `-o flock`; the other's folder may also appear late, as over NFS."""

    def no_locks(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(places.fcntl, "flock", no_locks)
    inner = []

    def made(_):
        inner.append(keep(folder))  # another process, while this one reads the source
        return contents()

    outer = keep(folder, made)
    assert np.array_equal(outer.train.pixels, inner[0].train.pixels)
    assert sorted(path.name[0] for path in folder.iterdir()) == [".", "m"]


def test_where_locks_are_a_machine_s_own_another_machine_s_work_is_left_alone(folder, monkeypatch):
    """As on Lustre with `-o localflock`: each has the lock."""
    monkeypatch.setattr(places.fcntl, "flock", lambda file, how: None)
    inner = []

    def made(_):
        with monkeypatch.context() as there:
            there.setattr(_cache, "LOCKED", "locked-on-another-")
            inner.append(keep(folder))
        return contents()

    outer = keep(folder, made)
    assert np.array_equal(outer.train.pixels, inner[0].train.pixels)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda _: contents([own.TRAIN.pixels[:11]]), "the source: 11 train images, but 12 train labels"),
        (lambda _: contents([own.TRAIN.pixels[:, :7]]), r"the source: train images of \(7, 10, 3\) uint8"),
        (lambda _: contents([own.TRAIN.pixels.astype(float)]), "float64, not of"),
    ],
)
def test_images_that_do_not_fit_are_not_kept(made, message, folder):
    with pytest.raises(UserError, match=message):
        keep(folder, made)
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_a_damaged_entry_is_named(folder):
    keep(folder)
    path = _cache.path_of(str(folder), "made", 0)
    os.truncate(path / "train_pixels.npy", 200)
    with pytest.raises(UserError, match=r"is damaged .*: delete it, and it is made again"):
        keep(folder)


def test_a_folder_that_cannot_be_written_is_named(folder):
    folder.mkdir()
    (folder / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be converted into .*file/inside"):
        keep(folder / "file" / "inside")
