"""CIFAR-10, through torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cu_ray.datasets import Dataset
from cu_ray.errors import UserError
from cu_ray.types import Augmentation, DatasetFacts, Images, Normalisation
from cu_ray.types import Dataset as LoadedDataset

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Cifar10(Dataset):
    """CIFAR-10 (Krizhevsky 2009), normalised and augmented as in the benchmark."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "CIFAR-10: 50,000 + 10,000 images of 32 x 32 x 3, downloaded once by torchvision"
    folder: str = "~/.cache/cu-ray/downloads"

    def facts(self) -> DatasetFacts:
        """50,000 training and 10,000 test images of 32 x 32 in colour."""
        return DatasetFacts(50_000, 10_000, (32, 32, 3), CLASS_NAMES)

    def load(self) -> LoadedDataset:
        """The images, downloaded into `folder` where they are not there yet; torchvision verifies the checksums."""
        from cu_ray.datasets._torchvision import torchvision_datasets

        folder, source = Path(self.folder).expanduser(), torchvision_datasets().CIFAR10
        parts = []
        for train in (True, False):
            try:
                part = source(str(folder), train=train, download=not (folder / source.base_folder).exists())
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"CIFAR-10 is neither in {folder} nor could it be downloaded ({error}). "
                    f"Put {source.filename} (md5 {source.tgz_md5}) there and unpack it: {folder / source.base_folder} must exist."
                ) from error
            parts.append(Images(part.data, np.asarray(part.targets, np.int64)))
        normalisation = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        return LoadedDataset("cifar10", CLASS_NAMES, normalisation, Augmentation(crop_padding=4, flip=True), *parts)
