"""docs/datasets.md: every data set is there with its true sizes, and the examples work as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cu_ray import plugins

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
OWN = ("image_folder", "npz", "parquet")


def test_every_data_set_is_on_the_page():
    assert [name for name in plugins.names("datasets") if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("name", [name for name in plugins.names("datasets") if name not in OWN])
def test_the_table_tells_the_facts(name):
    data = plugins.find("datasets", name)()
    facts, line = data.facts(), re.search(rf"^\| `{name}` \|.*$", PAGE, re.M)[0]
    assert f"{facts.num_train:,} + {facts.num_test:,}" in line
    assert f"| {len(facts.class_names)} " in line
    assert f"({data.side})" in line if name == "imagenette" else " x ".join(map(str, facts.image_shape)) in line
    if name != "fashion_mnist_small":
        augmentation = data.augment()
        told = re.search(r"crop (\d+|`side`/8)(, flip)?", line)
        assert told[1] == ("`side`/8" if name == "imagenette" else str(augmentation.crop_padding))
        assert bool(told[2]) == augmentation.flip


@pytest.mark.parametrize("name", [name for name in plugins.names("datasets") if name not in (*OWN, "fashion_mnist_small")])
def test_the_table_of_downloads_names_the_files(name):
    line = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")][1]
    for archive in plugins.find("datasets", name).archives:
        assert archive.path.split("/")[0].split("_x")[0] in line or Path(archive.path).name in line


def examples() -> list[str]:
    return re.findall(r"^```(?:python)?\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_examples_are_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays, listing, table = examples()
    for path in re.findall(r"^pictures/.*$", listing, re.M):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 100)).save(path)
    for code in (arrays, table):
        subprocess.run([sys.executable, "-c", code], check=True)
    for example, sizes in ((arrays, (200, 100)), (listing, (2, 4)), (table, (2, 4))):
        settings = yaml.safe_load(re.search(r"dataset: (.*)", example)[1])
        loaded = plugins.find("datasets", settings.pop("name"))(**settings).load()
        assert (len(loaded.train), len(loaded.test)) == sizes
        assert loaded.class_names[:2] == ("ant", "bee")
