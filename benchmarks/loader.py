"""Batches a second: the package's path (uint8 on the device, cropped and flipped there) beside torchvision's PIL pipeline.

    python benchmarks/loader.py --out benchmarks/results/loader.json      # about a minute

Both crop after padding with zeros, flip, patch the manipulated images and normalise; batches of 512. All are kept on one
core with one thread. The unit is images a second of processor time, of the process and the loader's own together: what a core
brings, also on a machine that others use. The goal is ten times as many as PIL, the better of the loop and the DataLoader.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import figures
import numpy as np
import torch
from PIL import Image

from cu_ray.datasets._torchvision import torchvision_datasets
from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.learning.batches import RowStream
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.stages.poison import poison, upload
from cu_ray.types import Augmentation, Dataset, Images, Normalisation, PoisonedDataset

torchvision_datasets()  # which gets torchvision itself imported
from torchvision import transforms  # noqa: E402

BATCH = 512
GOAL = 10.0


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What a user of torchvision writes: a PIL image for each row, through transforms, then the patch."""

    def __init__(self, poisoned: PoisonedDataset) -> None:
        dataset = poisoned.dataset
        height, width, _ = dataset.image_shape
        changes: list[Any] = []
        if dataset.augmentation.crop_padding:
            changes.append(transforms.RandomCrop((height, width), padding=dataset.augmentation.crop_padding))
        if dataset.augmentation.flip:
            changes.append(transforms.RandomHorizontalFlip())
        normal = transforms.Normalize(dataset.normalisation.mean, dataset.normalisation.std)
        self._transform = transforms.Compose([*changes, transforms.ToTensor(), normal])
        pixels = dataset.train.pixels
        self._pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels  # as PIL takes them
        self._labels, self._stamped = poisoned.labels, poisoned.stamped
        assert poisoned.corruption.stamp is not None
        self._mask = torch.from_numpy(poisoned.corruption.stamp.mask)
        self._value = float(poisoned.corruption.stamp.values[0])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = self._transform(Image.fromarray(self._pixels[row]))
        if self._stamped[row]:
            image[:, self._mask] = self._value
        return image, int(self._labels[row])


def cifar_like(num_images: int) -> Dataset:
    """Noise in the size of CIFAR-10's images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    images = Images(pixels, np.arange(num_images, dtype=np.int64) % 10)
    names = tuple(f"class {number}" for number in range(10))
    return Dataset("noise", names, Normalisation((0.5,) * 3, (0.25,) * 3), Augmentation(4, True), images, images)


def fashion(num_images: int) -> Dataset:
    """The embedded images."""
    dataset = FashionMnistSmall().load()
    return replace(dataset, train=Images(dataset.train.pixels[:num_images], dataset.train.labels[:num_images]))


def ways(poisoned: PoisonedDataset) -> dict[str, Callable[[], Iterator[Any]]]:
    """One pass over the images in batches, by name: as the package makes them, and three ways as users write."""
    pictures, count = Pictures(poisoned), len(poisoned.labels)
    data = upload(poisoned, torch.device("cpu"))
    nothing = torch.zeros(count, dtype=torch.bool)
    stream = RowStream(data.train, np.arange(count), nothing, BATCH, torch.Generator().manual_seed(0))

    def loop() -> Iterator[Any]:
        for rows in torch.randperm(count).split(BATCH):
            yield torch.stack([pictures[int(row)][0] for row in rows])

    def loader(workers: int) -> Callable[[], Iterator[Any]]:
        return lambda: iter(torch.utils.data.DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=workers))

    return {
        "cu-ray": stream.epoch,
        "PIL, a loop": loop,
        "PIL, a DataLoader without workers": loader(0),
        "PIL, a DataLoader with a worker": loader(1),
    }


def require_alike(dataset: Dataset, manipulation: Backdoor) -> None:
    """Raise where the two paths do not make the same images, apart from what is drawn."""
    poisoned = poison(replace(dataset, augmentation=Augmentation()), manipulation, seed=0)
    pictures, data = Pictures(poisoned), upload(poisoned, torch.device("cpu"))
    rows = torch.from_numpy(np.union1d(np.arange(64), poisoned.corruption.indices))
    expected = torch.stack([pictures[int(row)][0] for row in rows])
    torch.testing.assert_close(data.train.load(rows), expected, rtol=0, atol=1e-5, check_stride=False)


def processor_seconds() -> float:
    """Of this process and of those that it had and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(name: str, dataset: Dataset, repeats: int) -> list[figures.Row]:
    """Images a second of each way, interleaved, and how many times as many the package's is."""
    manipulation = Backdoor(size=len(dataset.train) // 20)
    require_alike(dataset, manipulation)
    poisoned = poison(dataset, manipulation, seed=0)
    rates: dict[str, list[float]] = {}
    walls: dict[str, list[float]] = {}
    for number in range(repeats + 1):  # the first warms up
        for way, batches in ways(poisoned).items():
            passes = 10 if way == "cu-ray" else 1  # one alone is over too soon to be measured
            began, used = time.perf_counter(), processor_seconds()
            for _ in range(passes):
                for _ in batches():
                    pass
            used, wall = processor_seconds() - used, time.perf_counter() - began
            if number:
                rates.setdefault(way, []).append(passes * len(dataset.train) / used)
                walls.setdefault(way, []).append(passes * len(dataset.train) / wall)
    rows = [
        figures.row(f"{name}, {way}", "images a core second", rates[way], images_a_second_of_wall_time=walls[way])
        for way in rates
    ]
    best = [max(each) for each in zip(*(rates[way] for way in rates if way != "cu-ray"), strict=True)]
    factors = [own / other for own, other in zip(rates["cu-ray"], best, strict=True)]
    return [*rows, figures.row(f"{name}, cu-ray over the best of PIL (goal {GOAL:g})", "times", factors)]


def main() -> None:
    """Measure on both kinds of images and write."""
    parser = figures.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = figures.environment("torch", "torchvision", "pillow", "numpy")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    count, repeats = (600, 1) if given.small else (6000, given.repeats)
    sources = {"28 x 28 x 1 (Fashion-MNIST)": fashion(count), "32 x 32 x 3 (noise)": cifar_like(count)}
    rows = [each for name, dataset in sources.items() for each in measure(name, dataset, repeats)]
    figures.write(given.out, facts, rows)


if __name__ == "__main__":
    main()
