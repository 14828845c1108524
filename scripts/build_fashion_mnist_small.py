"""Rebuild cu_ray/datasets/_data/fashion_mnist_small.npz, to the byte, from the Debian package dataset-fashion-mnist.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist*.deb fashion
    python scripts/build_fashion_mnist_small.py fashion/usr/share/datasets/fashion-mnist [OUTPUT.npz]

The first 600 training and 200 test images of each class, in the order of the files.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parent.parent / "cu_ray" / "datasets" / "_data" / "fashion_mnist_small.npz"


def first_of_each_class(folder: Path, prefix: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [10 count, 28, 28] and labels uint8 [10 count]."""
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
    return pixels[rows], labels[rows]


def main() -> None:
    """Write the file."""
    folder, output = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    arrays = {}
    for part, prefix, count in (("train", "train", 600), ("test", "t10k", 200)):
        arrays[f"{part}_pixels"], arrays[f"{part}_labels"] = first_of_each_class(folder, prefix, count)
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes whenever it is built
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


if __name__ == "__main__":
    main()
