"""The images inside the package."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cu_ray import plugins

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "cu_ray" / "datasets" / "_data" / "fashion_mnist_small.npz"
CONTENT_HASH = "655bfe69401bfde4aa6bd042a5b0d7dc665addeeea37eab0a9f4735542fe6547"  # keys of finished sweeps contain it
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


def test_it_needs_no_download_and_keeps_its_identity():
    dataset = plugins.find("datasets", "fashion_mnist_small")()
    assert dataset.is_here()
    assert dataset.load().content_hash == CONTENT_HASH


def test_a_changed_pixel_is_another_data_set():
    dataset = plugins.find("datasets", "fashion_mnist_small")().load()
    before = dataset.content_hash
    pixels = dataset.train.pixels.copy()
    pixels[0, 0, 0, 0] ^= 1
    assert replace(dataset, train=replace(dataset.train, pixels=pixels)).content_hash != before
