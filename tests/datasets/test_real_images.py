"""Real images through the real formats. Skipped unless the environment says where they are.

pip download --no-deps foolbox && unzip foolbox-*.whl        REAL_IMAGES=foolbox/data
apt-get download dataset-fashion-mnist && dpkg -x ...        FASHION_MNIST=usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cu_ray import plugins
from cu_ray.types import Images
from tests.datasets import archives

with_real_images = pytest.mark.skipif("REAL_IMAGES" not in os.environ, reason="REAL_IMAGES: foolbox/data of the wheel foolbox")
with_fashion_mnist = pytest.mark.skipif("FASHION_MNIST" not in os.environ, reason="FASHION_MNIST: Debian's dataset-fashion-mnist")


def real(kind: str) -> Images:
    """20 images with the labels in their names."""
    paths = sorted(Path(os.environ["REAL_IMAGES"]).glob(f"{kind}_*"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = np.array([int(path.stem.split("_")[2]) for path in paths], dtype=np.int64)
    assert len(paths) == 20
    return Images(pixels if pixels.ndim == 4 else pixels[..., None], labels)


@with_real_images
@pytest.mark.parametrize(
    ("name", "write"), [("cifar10", archives.cifar10), ("cifar100", archives.cifar100), ("mnist", archives.mnist)]
)
def test_real_images_come_back_as_they_were(name, write, tmp_path, monkeypatch):
    images = real(name)
    written = write(train=images, test=images)
    cls = written.announce(monkeypatch)
    written.put(tmp_path)
    loaded = cls(folder=str(tmp_path)).load()
    for part in (loaded.train, loaded.test):
        assert np.array_equal(part.pixels, images.pixels)
        assert np.array_equal(part.labels, images.labels)


@with_real_images
def test_real_photographs_are_read_from_a_folder(tmp_path):
    for row, path in enumerate(sorted(Path(os.environ["REAL_IMAGES"]).glob("imagenet_*"))):
        target = tmp_path / ("train" if row < 14 else "test") / ("even" if row % 2 else "odd") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    loaded = plugins.find("datasets", "image_folder")(folder=str(tmp_path), side=64).load()
    assert loaded.train.pixels.shape == (14, 64, 64, 3)
    assert 30 < loaded.train.pixels.std() < 110  # pictures, not noise and not blank


PUBLISHED_AT = {"train": 1504176606, "t10k": 1504176627}  # Debian took name and time out of the gzip headers


@with_fashion_mnist
@pytest.mark.parametrize("unpacked", [False, True])
def test_all_of_fashion_mnist_as_published(unpacked, tmp_path):
    """With its published checksums; the embedded images are part of it, and its normalisation is what it says."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for path in Path(os.environ["FASHION_MNIST"]).glob("*.gz"):
        time = struct.pack("<I", PUBLISHED_AT[path.name.split("-")[0]])
        published = b"\x1f\x8b\x08\x08" + time + b"\0\3" + path.stem.encode() + b"\0" + path.read_bytes()[10:]
        if unpacked:
            (folder / path.stem).write_bytes(gzip.decompress(published))
        else:
            (folder / path.name).write_bytes(published)
    whole = plugins.find("datasets", "fashion_mnist")(folder=str(tmp_path))
    small = plugins.find("datasets", "fashion_mnist_small")().load()
    assert (len(whole.load().train), len(whole.load().test)) == (whole.facts().num_train, whole.facts().num_test)
    for part, each in (("train", 600), ("test", 200)):
        found, expected = getattr(whole.load(), part), getattr(small, part)
        rows = np.sort(np.concatenate([np.flatnonzero(found.labels == label)[:each] for label in range(10)]))
        assert np.array_equal(found.pixels[rows], expected.pixels)
        assert np.array_equal(found.labels[rows], expected.labels)
    scaled = whole.load().train.pixels / 255
    assert (round(float(scaled.mean()), 4), round(float(scaled.std()), 4)) == (0.2860, 0.3530)
