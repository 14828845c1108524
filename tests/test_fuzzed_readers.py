"""Any bytes as a file of images, samples or weights: what is in it, or one UserError that names the file.

The same cases each time; `CU_RAY_FUZZ=1000` for so many others of each kind.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cu_ray import incident as incidents
from cu_ray.datasets.image_folder import ImageFolder
from cu_ray.datasets.npz import Npz
from cu_ray.datasets.parquet import Parquet
from cu_ray.errors import UserError
from cu_ray.store import LocalStore
from cu_ray.sweep import weights
from cu_ray.types import DatasetFacts
from tests.datasets.own import write_folder, write_npz, write_parquet

CASES = int(os.environ.get("CU_RAY_FUZZ", "60"))
CHANCE = random.Random(None if "CU_RAY_FUZZ" in os.environ else 0)
FACTS = DatasetFacts(100, 10, (8, 8, 1), ("a", "b"))


def mutated(content: bytes) -> bytes:
    """The bytes, some of them changed, left out, doubled or put in."""
    for _ in range(CHANCE.randint(1, 4)):
        start = min(CHANCE.randrange(len(content) + 1), CHANCE.choice([len(content), 200]))  # headers matter most
        length = CHANCE.choice([1, 1, 1, 4, 30])
        piece = CHANCE.choice([b"", b"\0", b"\xff" * length, CHANCE.randbytes(length), content[start : start + length] * 2])
        content = content[:start] + piece + content[start + CHANCE.choice([0, length, len(piece)]) :]
    return content if CHANCE.random() < 0.95 else content[: CHANCE.randrange(len(content) + 1)]


def mutated_member(content: bytes) -> bytes:
    """The .npz file with one array's bytes mutated, and with a checksum that says they are right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(made, "w") as after:
        chosen = CHANCE.choice(before.namelist())
        for name in before.namelist():
            after.writestr(name, mutated(before.read(name)) if name == chosen else before.read(name))
    return made.getvalue()


def incident(folder: Path, ending: str) -> Path:
    path = folder / f"incident.{ending}"
    if ending == "csv":
        path.write_text("index,label\n3,a\n5,b\n9,1\n")
    elif ending == "npz":
        np.savez(path, index=np.array([3, 5, 9]), label=np.array(["a", "b", "a"]))
    else:
        pq.write_table(pa.table({"index": [3, 5, 9], "label": ["a", "b", "a"]}), path)
    return path


def picture(folder: Path) -> Path:
    write_folder(folder / "pictures")
    path = folder / "pictures" / "train" / "ant" / "000.png"
    kind = CHANCE.choice(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
    Image.new("RGB", (10, 8), (1, 2, 3)).save(path, kind)
    return path


def entry(folder: Path) -> Path:
    LocalStore(folder).save("originals", "ab", {"w": np.ones((2, 3), np.float32), "n": np.array(5)}, {"a": "b"})
    return folder / "originals" / "ab.safetensors"


Make, Read = Callable[[Path], Path], Callable[[Path, str], object]
READERS: dict[str, tuple[Make, Read]] = {
    "npz": (lambda folder: write_npz(folder / "x.npz"), lambda path, cache: Npz(file=str(path), cache=cache)),
    "parquet": (lambda folder: write_parquet(folder / "x.parquet"), lambda path, cache: Parquet(file=str(path), cache=cache)),
    "pictures": (picture, lambda path, cache: ImageFolder(folder=str(path.parents[2]), cache=cache)),
    **{
        f"samples in {ending}": (
            lambda folder, ending=ending: incident(folder, ending),
            lambda path, cache: incidents.read(str(path), FACTS),
        )
        for ending in ("csv", "npz", "parquet")
    },
    "weights": (entry, lambda path, cache: weights.read(path)),
    "an entry of the store": (entry, lambda path, cache: LocalStore(path.parents[1]).load("originals", "ab")),
}


@pytest.mark.filterwarnings("ignore")  # libraries say of damaged files what they like
@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused_with_one_message(name, tmp_path):
    make, read = READERS[name]
    refused = 0
    for case in range(CASES):
        path = make(tmp_path)
        content = path.read_bytes()
        change = CHANCE.choice([mutated, mutated_member]) if path.suffix == ".npz" else mutated
        path.write_bytes(change(content))
        try:
            found = read(path, str(tmp_path / "cache"))
            if hasattr(found, "facts"):
                found.facts()
                found.load()
        except UserError as error:
            refused += 1
            assert str(path) in str(error) or str(path.parents[2]) in str(error), error
            assert len(str(error)) < 2000
            assert len(str(error).splitlines()) == 1, error
        except BaseException as error:
            error.add_note(f"case {case} of {name}")
            raise
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert refused or name == "an entry of the store"
