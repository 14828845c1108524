"""Small data sets in the exact on-disk formats in which the known ones are published."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from PIL import Image

from cu_ray import plugins
from cu_ray.types import Images

SIZES = (30, 20)


@dataclass
class Published:
    """What was written: the images, the files, and the same files unpacked as a user might leave them."""

    name: str
    train: Images
    test: Images
    files: dict[str, bytes]  # by path below the download folder, in the order of the plug-in's archives
    unpacked: dict[str, bytes]
    batches: dict[str, Any] = dataclasses.field(default_factory=dict)  # checksums inside an archive

    def put(self, folder: Path, *, unpacked: bool = False) -> None:
        """Write the files there."""
        for path, content in (self.unpacked if unpacked else self.files).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)

    def announce(self, patch: Any) -> type[Any]:
        """The plug-in's class, which from now on expects the sizes and checksums of these files."""
        cls = plugins.find("datasets", self.name)
        archives = tuple(dataclasses.replace(archive, md5=md5(self.files[archive.path])) for archive in cls.archives)
        patch.setattr(cls, "archives", archives)
        patch.setattr(cls, "num_images", (len(self.train), len(self.test)))
        for name, value in self.batches.items():
            patch.setattr(cls, name, value)
        return cls


def md5(content: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.md5(content).hexdigest()


def made_up(count: int, shape: tuple[int, int, int], num_classes: int, seed: int) -> Images:
    """Random images in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes).astype(np.int64)
    return Images(rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels)


def cifar10(train: Images | None = None, test: Images | None = None) -> Published:
    """Five training batches and a test batch in cifar-10-python.tar.gz."""
    train = train or made_up(SIZES[0], (32, 32, 3), 10, 0)
    test = test or made_up(SIZES[1], (32, 32, 3), 10, 1)
    rows = np.array_split(np.arange(len(train)), 5)
    batches = {f"data_batch_{n}": _batch(train, part, "labels") for n, part in enumerate(rows, start=1)}
    batches["test_batch"] = _batch(test, np.arange(len(test)), "labels")
    sums = tuple((name, md5(content)) for name, content in batches.items())
    return _cifar("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py", train, test, batches, (sums[:5], sums[5:]))


def cifar100(train: Images | None = None, test: Images | None = None) -> Published:
    """A training and a test batch with coarse and fine labels in cifar-100-python.tar.gz."""
    train = train or made_up(150, (32, 32, 3), 100, 0)
    test = test or made_up(100, (32, 32, 3), 100, 1)
    batches = {name: _batch(images, np.arange(len(images)), "fine_labels") for name, images in (("train", train), ("test", test))}
    sums = tuple((name, md5(content)) for name, content in batches.items())
    return _cifar("cifar100", "cifar-100-python.tar.gz", "cifar-100-python", train, test, batches, (sums[:1], sums[1:]))


def _batch(images: Images, rows: np.ndarray, labels: str) -> bytes:
    planes = images.pixels[rows].transpose(0, 3, 1, 2).reshape(len(rows), 3072)
    batch = {"data": planes, labels: images.labels[rows].tolist(), "filenames": [f"{row}.png" for row in rows]}
    if labels == "fine_labels":
        batch["coarse_labels"] = [label // 5 for label in batch[labels]]
    return pickle.dumps(batch, protocol=2)


def _cifar(name, archive, folder, train, test, batches, sums) -> Published:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for file, content in batches.items():
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    unpacked = {f"{folder}/{file}": content for file, content in batches.items()}
    return Published(
        name, train, test, {archive: stream.getvalue()}, unpacked, {"train_batches": sums[0], "test_batches": sums[1]}
    )


def mnist(name: str = "mnist", train: Images | None = None, test: Images | None = None) -> Published:
    """Four gzipped IDX files."""
    train = train or made_up(SIZES[0], (28, 28, 1), 10, 0)
    test = test or made_up(SIZES[1], (28, 28, 1), 10, 1)
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    unpacked = {}
    for part, images in (("train", train), ("t10k", test)):
        unpacked[f"{folder}/raw/{part}-images-idx3-ubyte"] = _idx(images.pixels[..., 0])
        unpacked[f"{folder}/raw/{part}-labels-idx1-ubyte"] = _idx(images.labels.astype(np.uint8))
    files = {f"{path}.gz": gzip.compress(content, mtime=0) for path, content in unpacked.items()}
    return Published(name, train, test, files, unpacked)


def fashion_mnist() -> Published:
    """As MNIST."""
    return mnist("fashion_mnist")


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def svhn() -> Published:
    """Two MATLAB files, where the digit 0 is class 10."""
    train, test = made_up(SIZES[0], (32, 32, 3), 10, 0), made_up(SIZES[1], (32, 32, 3), 10, 1)
    files = {}
    for part, images in (("train", train), ("test", test)):
        stream = io.BytesIO()
        y = np.where(images.labels == 0, 10, images.labels).astype(np.uint8)[:, None]
        scipy.io.savemat(stream, {"X": images.pixels.transpose(1, 2, 3, 0), "y": y}, do_compression=True)
        files[f"{part}_32x32.mat"] = stream.getvalue()
    return Published("svhn", train, test, files, {})


def pcam(sizes: tuple[int, int] = SIZES, **options: Any) -> Published:
    """Four gzipped HDF5 files of patches of 96 x 96 pixels; what is expected is their centres."""
    parts, unpacked = [], {}
    for seed, (part, size) in enumerate(zip(("train", "test"), sizes, strict=True)):
        whole = made_up(size, (96, 96, 3), 2, seed)
        parts.append(Images(whole.pixels[:, 32:64, 32:64], whole.labels))
        file = f"pcam/camelyonpatch_level_2_split_{part}"
        unpacked[f"{file}_x.h5"] = _h5(x=whole.pixels, **options)
        unpacked[f"{file}_y.h5"] = _h5(y=whole.labels.astype(np.uint8).reshape(-1, 1, 1, 1))
    files = {f"{path}.gz": gzip.compress(content, compresslevel=1, mtime=0) for path, content in unpacked.items()}
    return Published("pcam", *parts, files, unpacked)


def _h5(chunks: int | None = None, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=chunks and (chunks, *array.shape[1:]))
    return stream.getvalue()


WORDNET = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)


def imagenette() -> Published:
    """A folder of JPEGs for each WordNet number in imagenette2-160.tgz. The images expected are as Pillow decodes them."""
    unpacked, parts = {}, []
    for part, each in (("train", 2), ("val", 1)):
        pixels, labels = [], []
        for label, number in enumerate(WORDNET):
            for index in range(each):
                photograph = _photograph(label * 10 + index, (200, 160) if index else (160, 240))
                unpacked[f"imagenette2-160/{part}/{number}/{number}_{index}.JPEG"] = photograph
                pixels.append(_centre_of(photograph, 64))
                labels.append(label)
        parts.append(Images(np.stack(pixels), np.array(labels)))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, content in sorted(unpacked.items(), reverse=True):  # the order in an archive means nothing
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Published("imagenette", *parts, {"imagenette2-160.tgz": stream.getvalue()}, unpacked)


def _photograph(seed: int, size: tuple[int, int]) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(stream, "JPEG")
    return stream.getvalue()


def _centre_of(photograph: bytes, side: int) -> np.ndarray:
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    width, height = image.size
    wide, high = (side, height * side // width) if width < height else (width * side // height, side)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    top, left = (high - side) // 2, (wide - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


ALL: dict[str, Callable[[], Published]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "imagenette": imagenette,
    "mnist": mnist,
    "pcam": pcam,
    "svhn": svhn,
}
