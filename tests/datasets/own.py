"""The same few images as an .npz file, as Parquet files and as a folder of pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cu_ray.types import Images
from tests.datasets.archives import made_up

NAMES = ("ant", "bee", "cat")
TRAIN, TEST = made_up(12, (8, 10, 3), 3, 0), made_up(6, (8, 10, 3), 3, 1)


def in_order(images: Images) -> Images:
    """Class by class, as a folder lists them."""
    order = np.argsort(images.labels, kind="stable")
    return Images(images.pixels[order], images.labels[order])


def png(pixels: np.ndarray) -> bytes:
    """The encoded picture."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def arrays(train: Images = TRAIN, test: Images = TEST) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    return {
        "train_pixels": train.pixels,
        "train_labels": train.labels,
        "test_pixels": test.pixels,
        "test_labels": test.labels,
        "class_names": np.array(NAMES),
    }


def write_npz(path: Path, **changes) -> Path:
    """The .npz file, some arrays changed or (None) left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in {**arrays(), **changes}.items() if array is not None})
    return path


def write_folder(folder: Path, test: str = "test") -> Path:
    """A folder of pictures."""
    for part, images in (("train", TRAIN), (test, TEST)):
        for row, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
            path = folder / part / NAMES[label] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
        (folder / part / "notes.txt").write_text("no picture")
        (folder / part / NAMES[0] / "Thumbs.db").write_bytes(b"no picture")
    return folder


def table(
    train: Images = TRAIN,
    test: Images = TEST,
    *,
    names: bool = False,
    struct: bool = False,
    split: bool = True,
    parts=("train", "test"),
) -> pa.Table:
    """A row an image: encoded picture, label (its number or its name) and part."""
    rows = [
        (png(pixels), NAMES[label] if names else int(label), part)
        for part, images in (("train", train), ("test", test))
        if part in parts
        for pixels, label in zip(images.pixels, images.labels, strict=True)
    ]
    pictures = [{"bytes": row[0], "path": "x.png"} for row in rows] if struct else [row[0] for row in rows]
    columns = {"image": pictures, "label": [row[1] for row in rows]}
    return pa.table(columns | ({"split": [row[2] for row in rows]} if split else {}))


def write_parquet(path: Path, written: pa.Table | None = None) -> Path:
    """One file with all columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(names=True) if written is None else written, path, row_group_size=5)
    return path


def write_hugging_face(folder: Path) -> Path:
    """A folder as `datasets` writes it: {bytes, path}, a file or more for each part, class names in the metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        whole = table(struct=True, split=False, parts=(part,)).replace_schema_metadata(metadata)
        half = len(whole) // 2
        for number, piece in enumerate((whole[:half], whole[half:])):
            pq.write_table(piece, folder / f"{part}-{number:05}-of-00002.parquet")
    return folder


def write_all(folder: Path) -> None:
    """`images.npz`, `images.parquet` and `pictures/` in the folder."""
    write_npz(folder / "images.npz")
    write_parquet(folder / "images.parquet")
    write_folder(folder / "pictures")
