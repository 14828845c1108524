"""Imagenette at a small size."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from cu_ray.datasets._cache import Part
from cu_ray.datasets._download import Archive
from cu_ray.datasets._pictures import Look, listed
from cu_ray.datasets._published import Published
from cu_ray.plugins import Bound
from cu_ray.types import Augmentation, DatasetFacts, Normalisation


@dataclass(frozen=True)
class Imagenette(Published):
    """Imagenette 2 (Howard): ten easy classes of ImageNet, shorter side resized to `side`, then the centre of it.

    Classes in the order of their WordNet numbers, as in torchvision.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Imagenette: 9,469 + 3,925 photographs at `side` x `side` x 3, downloaded once"
    title = "Imagenette"
    num_images = (9_469, 3_925)
    class_names = (
        *("tench", "english_springer", "cassette_player", "chain_saw", "church"),
        *("french_horn", "garbage_truck", "gas_pump", "golf_ball", "parachute"),
    )
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
    archives = (
        Archive(
            "imagenette2-160.tgz",
            "e793b78cc4c9e9a4ccc0c1155377a412",
            ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",),
            unpacked="imagenette2-160",
        ),
    )
    side: Annotated[int, Bound(low=8, high=160)] = 64  # the archive's shorter sides are 160

    def facts(self) -> DatasetFacts:
        """9,469 training and 3,925 test images in colour, of the size asked for."""
        return DatasetFacts(*self.num_images, (self.side, self.side, 3), self.class_names)

    def augment(self) -> Augmentation:
        """A crop in proportion to that of CIFAR-10, and a flip."""
        return Augmentation(crop_padding=self.side // 8, flip=True)

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set, from the archive or its folder; what Imagenette calls `val` is the test set."""
        folder = paths[0]
        if not folder.is_dir():
            with tarfile.open(folder) as archive:
                archive.extractall(scratch, filter="data")
            folder = scratch / "imagenette2-160"
        return self._part(folder / "train"), self._part(folder / "val")

    def _part(self, folder: Path) -> Part:
        listing, look = listed(folder), Look(self.side)
        return Part(listing.labels, look.blocks(((path, str(path)) for path in listing.paths), self.facts().image_shape))
