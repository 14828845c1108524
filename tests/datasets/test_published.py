"""The known data sets: read from small archives in their exact formats, pixel by pixel; never from a damaged or half a file."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from cu_ray import plugins, testing
from cu_ray.datasets import _cache, _download, _torchvision
from cu_ray.errors import UserError
from tests.datasets import archives

NO_UNPACKED_FORM = ("svhn",)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(_torchvision.torchvision_datasets().utils, "_urlretrieve", refuse)
    monkeypatch.setattr(_torchvision.torchvision_datasets().utils, "_get_redirect_url", lambda url, **_: url)


@pytest.fixture(params=sorted(archives.ALL))
def published(request, monkeypatch):
    written = archives.ALL[request.param]()
    written.announce(monkeypatch)
    return written


def of(written, folder: Path):
    return plugins.find("datasets", written.name)(folder=str(folder))


def assert_same_images(loaded, written):
    for found, expected in ((loaded.train, written.train), (loaded.test, written.test)):
        assert found.pixels.dtype == np.uint8
        assert np.array_equal(found.pixels, expected.pixels)
        assert found.labels.dtype == np.int64
        assert np.array_equal(found.labels, expected.labels)


def test_every_pixel_and_label_is_read(published, tmp_path):
    published.put(tmp_path)
    assert_same_images(of(published, tmp_path).load(), published)


def test_they_meet_the_suite_of_data_sets(published, tmp_path):
    published.put(tmp_path)
    settings = {"folder": str(tmp_path)}
    members = {"plugin": plugins.find("datasets", published.name), "settings": settings}
    suite = type("Suite", (testing.DatasetConformance,), members)()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()


def test_the_second_load_needs_the_cache_only(published, tmp_path, monkeypatch):
    published.put(tmp_path)
    first = of(published, tmp_path).load()
    for path in published.files:
        (tmp_path / path).unlink()
    monkeypatch.setattr(_cache, "_convert", None)
    again = of(published, tmp_path)
    assert again.is_here()
    assert again.load().content_hash == first.content_hash
    assert type(again.load().train.pixels) is np.ndarray
    assert isinstance(again.load().train.pixels.base, np.memmap)


def test_unpacked_files_give_the_same_data_set(published, tmp_path):
    if published.name in NO_UNPACKED_FORM:
        pytest.skip("is published in one form only")
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    published.put(packed)
    published.put(unpacked, unpacked=True)
    cls = plugins.find("datasets", published.name)
    loaded = [cls(folder=str(folder), cache=str(folder / "cache")).load() for folder in (packed, unpacked)]
    assert loaded[0].content_hash == loaded[1].content_hash


def test_what_was_unpacked_stands_in_for_no_archive(published, tmp_path, monkeypatch):
    """Whose checksum nobody knows: it is used until the archive is there, and by those alone who have it."""
    if published.name in NO_UNPACKED_FORM:
        pytest.skip("is published in one form only")
    unpacked, packed, cache = tmp_path / "unpacked", tmp_path / "packed", str(tmp_path / "cache")
    published.put(unpacked, unpacked=True)
    published.put(packed)
    cls, read = plugins.find("datasets", published.name), []
    monkeypatch.setattr(
        cls, "read", lambda self, paths, scratch, real=cls.read: (read.append(paths), real(self, paths, scratch))[1]
    )
    for folder in (unpacked, unpacked, packed, packed, unpacked):
        assert cls(folder=str(folder), cache=cache).is_here()
        cls(folder=str(folder), cache=cache).load()
    assert [paths[0].is_relative_to(packed) for paths in read] == [False, True]
    shutil.rmtree(unpacked)
    assert cls(folder=str(unpacked), cache=cache).is_here()


def test_it_is_here_once_its_files_are(published, tmp_path):
    assert not of(published, tmp_path).is_here()
    published.put(tmp_path)
    assert of(published, tmp_path).is_here()
    (tmp_path / list(published.files)[-1]).unlink()
    assert not of(published, tmp_path).is_here()


def test_without_files_or_network_one_message_names_every_file(published, tmp_path):
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        of(published, tmp_path / "nothing").load()
    for path, content in published.files.items():
        assert str(tmp_path / "nothing" / path) in str(caught.value)
        assert archives.md5(content) in str(caught.value)
    assert not list((tmp_path / "nothing").rglob("*.tmp"))


def test_a_damaged_archive_is_refused(published, tmp_path):
    published.put(tmp_path)
    damaged = tmp_path / list(published.files)[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"is damaged: its md5 is [0-9a-f]{32}, not [0-9a-f]{32}") as caught:
        of(published, tmp_path).load()
    assert str(damaged) in str(caught.value)
    assert not (Path.home() / ".cache/cu-ray/datasets" / damaged.name).exists()
    published.put(tmp_path)
    assert_same_images(of(published, tmp_path).load(), published)


def test_half_an_unpacked_file_is_refused(published, tmp_path):
    if published.name in NO_UNPACKED_FORM:
        pytest.skip("is published in one form only")
    published.put(tmp_path, unpacked=True)
    last = tmp_path / list(published.unpacked)[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(UserError, match=str(last.name).split(".")[0]):
        of(published, tmp_path).load()


def test_another_number_of_images_is_refused(published, tmp_path, monkeypatch):
    published.put(tmp_path)
    cls = plugins.find("datasets", published.name)
    monkeypatch.setattr(cls, "num_images", (len(published.train), len(published.test) + 1))
    with pytest.raises(UserError, match=rf"{cls.title}.* images, not {len(published.train)} \+ {len(published.test) + 1}"):
        of(published, tmp_path).load()


def test_a_download_gets_its_name_once_it_is_verified(published, tmp_path, monkeypatch):
    def retrieve(url, target, chunk_size=0):
        content = next(content for path, content in published.files.items() if url.endswith(Path(path).name))
        Path(target).write_bytes(content if sound else content[:-1])

    monkeypatch.setattr(_torchvision.torchvision_datasets().utils, "_urlretrieve", retrieve)
    sound = False
    with pytest.raises(UserError, match="could not be downloaded"):
        of(published, tmp_path).load()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "home" not in path.parts]
    sound = True
    assert_same_images(of(published, tmp_path).load(), published)
    assert sorted(published.files) == sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and "home" not in path.parts
    )


@pytest.mark.parametrize("name", sorted(archives.ALL))
def test_its_files_and_checksums_are_those_that_torchvision_knows(name):
    known = repr(_known_to_torchvision(name))
    for archive in plugins.find("datasets", name).archives:
        assert archive.md5 in known
        assert Path(archive.path).name.removesuffix(".gz") in known or archive.urls[0] in known


def _known_to_torchvision(name):
    module = _torchvision.torchvision_datasets()
    cls = {
        "cifar10": module.CIFAR10,
        "cifar100": module.CIFAR100,
        "fashion_mnist": module.FashionMNIST,
        "imagenette": module.Imagenette,
        "mnist": module.MNIST,
        "pcam": module.PCAM,
        "svhn": module.SVHN,
    }[name]
    return [vars(each) for each in cls.__mro__ if each.__module__.startswith("torchvision.datasets")]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_batches_of_cifar_are_those_that_torchvision_knows(name):
    cls, known = plugins.find("datasets", name), getattr(_torchvision.torchvision_datasets(), name.upper())
    assert [list(each) for each in cls.train_batches] == known.train_list
    assert [list(each) for each in cls.test_batches] == known.test_list


def test_the_classes_that_the_benchmark_confuses_are_where_it_says():
    facts = plugins.find("datasets", "cifar100")().facts()
    assert len(facts.class_names) == 100
    assert list(facts.class_names) == sorted(facts.class_names)
    assert (facts.class_index("maple_tree"), facts.class_index("oak_tree")) == (47, 52)
    cifar10 = plugins.find("datasets", "cifar10")().facts()
    assert (cifar10.class_index("cat"), cifar10.class_index("dog")) == (3, 5)


@pytest.mark.parametrize("name", sorted(archives.ALL))
def test_facts_need_neither_files_nor_torch(name):
    code = (
        "import sys\nfrom cu_ray import plugins\n"
        f"known = plugins.find('datasets', {name!r})(folder='/nowhere', cache='/nowhere')\n"
        "assert known.facts().num_train > 1000 and not known.is_here()\n"
        "loaded = {'torch', 'torchvision', 'h5py', 'PIL', 'pyarrow', 'scipy'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_benchmark_s_normalisation_and_augmentation(monkeypatch, tmp_path):
    for name, mean in (("cifar10", 0.4914), ("cifar100", 0.4914), ("pcam", 0.5)):
        written = archives.ALL[name]()
        written.announce(monkeypatch)
        written.put(tmp_path)
        loaded = of(written, tmp_path).load()
        assert loaded.normalisation.mean[0] == mean
        assert (loaded.augmentation.crop_padding, loaded.augmentation.flip) == (4, True)
    assert not plugins.find("datasets", "svhn").augmentation.flip
    assert not plugins.find("datasets", "mnist").augmentation.flip


# ---------------------------------------------------------------------------------------------------------------- PCam


def test_pcam_without_h5py_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cu-ray\[pcam\]'"):
        plugins.find("datasets", "pcam")(folder=str(tmp_path)).load()


@pytest.mark.parametrize("chunks", [None, 7])
def test_pcam_is_converted_in_pieces(tmp_path, monkeypatch, chunks):
    from cu_ray.datasets import pcam

    monkeypatch.setattr(pcam, "BLOCK", 20)
    written = archives.pcam((1000, 20), chunks=chunks)  # 28 MB
    written.announce(monkeypatch)
    written.put(tmp_path)
    data = of(written, tmp_path)
    tracemalloc.start()
    loaded = data.load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_700_000, peak
    assert_same_images(loaded, written)
    assert not list((Path.home() / ".cache/cu-ray/datasets").rglob("*.h5"))


# ---------------------------------------------------------------------------------------------------------- Imagenette


@pytest.mark.parametrize("side", [16, 64])
def test_imagenette_takes_the_size_asked_for(tmp_path, monkeypatch, side):
    written = archives.imagenette()
    cls = written.announce(monkeypatch)
    written.put(tmp_path)
    data = cls(folder=str(tmp_path), side=side)
    assert data.load().image_shape == data.facts().image_shape == (side, side, 3)
    assert data.load().augmentation.crop_padding == side // 8


def test_nothing_is_unpickled_that_was_not_published(tmp_path, monkeypatch):
    written = archives.cifar10()
    cls = written.announce(monkeypatch)
    written.put(tmp_path)
    monkeypatch.setattr(cls, "train_batches", tuple((name, "0" * 32) for name, _ in cls.train_batches))
    monkeypatch.setattr("pickle.loads", None)
    with pytest.raises(UserError, match="data_batch_1 is damaged"):
        of(written, tmp_path).load()


def test_torch_is_not_touched_where_the_files_are_here(tmp_path, monkeypatch):
    written = archives.mnist()
    written.announce(monkeypatch)
    written.put(tmp_path)
    monkeypatch.setattr(_download, "torchvision_datasets", None)
    assert_same_images(of(written, tmp_path).load(), written)


def test_a_known_set_can_be_uploaded_and_drawn_from(tmp_path, monkeypatch):
    from cu_ray.learning.batches import DeviceImages

    written = archives.cifar10()
    written.announce(monkeypatch)
    written.put(tmp_path)
    loaded = of(written, tmp_path).load()
    images = DeviceImages(loaded.train, loaded.normalisation, torch.device("cpu"), augmentation=loaded.augmentation)
    assert images.load(torch.arange(5), generator=torch.Generator()).shape == (5, 3, 32, 32)
    assert dataclasses.replace(loaded, train=loaded.test).content_hash != loaded.content_hash
