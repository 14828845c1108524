"""The data sets: what is inside the package, and the real on-disk format of CIFAR-10 through torchvision."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cu_ray import plugins
from cu_ray.errors import UserError

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "cu_ray" / "datasets" / "_data" / "fashion_mnist_small.npz"
SMALL_SHA256 = "e643353a76ac1cbec0dd88221707406961d83203f5183292281b95b0bc4eccc6"


def test_the_embedded_images_are_balanced_and_are_the_ones_that_were_built():
    dataset = plugins.find("datasets", "fashion_mnist_small")().load()
    assert np.bincount(dataset.train.labels).tolist() == [600] * 10
    assert np.bincount(dataset.test.labels).tolist() == [200] * 10
    assert dataset.train.pixels.shape == (6000, 28, 28, 1)
    assert hashlib.sha256(SMALL.read_bytes()).hexdigest() == SMALL_SHA256
    assert SMALL.stat().st_size < 5_000_000


@pytest.mark.skipif("FASHION_MNIST" not in os.environ, reason="FASHION_MNIST: the folder of Debian's dataset-fashion-mnist")
def test_the_embedded_images_are_rebuilt_to_the_byte(tmp_path):
    script, output = ROOT / "scripts" / "build_fashion_mnist_small.py", tmp_path / "rebuilt.npz"
    subprocess.run([sys.executable, str(script), os.environ["FASHION_MNIST"], str(output)], check=True)
    assert output.read_bytes() == SMALL.read_bytes()


def write_cifar10(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A CIFAR-10 of 20 + 4 images in the exact on-disk format: rows of 3,072 bytes, channels first."""
    folder.mkdir(parents=True)
    rows = rng.integers(0, 256, (24, 3072), dtype=np.uint8)
    labels = rng.integers(0, 10, 24).tolist()
    for batch, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        part = slice(4 * batch, 4 * batch + 4)
        (folder / name).write_bytes(pickle.dumps({"data": rows[part], "labels": labels[part]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"] + ["x"] * 9}))
    return {"rows": rows, "labels": np.array(labels)}


def test_cifar10_is_read_from_its_own_format(tmp_path, monkeypatch):
    from cu_ray.datasets import _torchvision

    written = write_cifar10(tmp_path / "cifar-10-batches-py", np.random.default_rng(0))
    source = _torchvision.torchvision_datasets().CIFAR10
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = plugins.find("datasets", "cifar10")(folder=str(tmp_path)).load()
    expected = written["rows"].reshape(24, 3, 32, 32).transpose(0, 2, 3, 1)
    assert dataset.train.pixels.dtype == np.uint8
    assert np.array_equal(dataset.train.pixels, expected[:20])
    assert np.array_equal(dataset.test.pixels, expected[20:])
    assert np.array_equal(dataset.train.labels, written["labels"][:20])
    assert dataset.normalisation.mean == (0.4914, 0.4822, 0.4465)


def test_cifar10_without_files_or_network_says_what_to_put_where(tmp_path, monkeypatch):
    from cu_ray.datasets import _torchvision

    def no_network(self):
        raise OSError("no network")

    monkeypatch.setattr(_torchvision.torchvision_datasets().CIFAR10, "download", no_network)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz") as caught:
        plugins.find("datasets", "cifar10")(folder=str(tmp_path)).load()
    assert str(tmp_path) in str(caught.value)


def test_a_changed_pixel_is_another_data_set():
    dataset = plugins.find("datasets", "fashion_mnist_small")().load()
    before = dataset.content_hash
    pixels = dataset.train.pixels.copy()
    pixels[0, 0, 0, 0] ^= 1
    from dataclasses import replace

    assert replace(dataset, train=replace(dataset.train, pixels=pixels)).content_hash != before
