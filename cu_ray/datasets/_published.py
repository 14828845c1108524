"""What published data sets share: downloaded once, converted once, mapped into memory from then on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cu_ray.datasets import Dataset
from cu_ray.datasets._cache import CACHE, Contents, Part, kept, path_of, readable
from cu_ray.datasets._download import DOWNLOADS, Archive, fetch
from cu_ray.errors import UserError
from cu_ray.plugins import name_of
from cu_ray.types import Augmentation, DatasetFacts, Normalisation, Pixels
from cu_ray.types import Dataset as LoadedDataset


@dataclass(frozen=True, kw_only=True)
class Published(Dataset):
    """A data set whose sizes are known beforehand. `folder`: its files as published; `cache`: the images, converted."""

    title: ClassVar[str]
    num_images: ClassVar[tuple[int, int]]
    image_shape: ClassVar[tuple[int, int, int]]
    class_names: ClassVar[tuple[str, ...]]
    normalisation: ClassVar[Normalisation]
    augmentation: ClassVar[Augmentation]
    archives: ClassVar[tuple[Archive, ...]]
    folder: str = DOWNLOADS
    cache: str = CACHE

    def read(self, paths: Sequence[Path], scratch: Path) -> tuple[Part, Part]:
        """Training and test set from the archives at these paths, or from what was unpacked; `scratch` is for temporary files."""
        raise NotImplementedError

    def require(self) -> None:
        """Raise UserError where a library is missing; asked before anything is downloaded."""

    def augment(self) -> Augmentation:
        """How training images are augmented."""
        return self.augmentation

    def facts(self) -> DatasetFacts:
        return DatasetFacts(*self.num_images, self.image_shape, self.class_names)

    def is_here(self) -> bool:
        return self._path().exists() or all(archive.found(self._downloads()) is not None for archive in self.archives)

    def load(self) -> LoadedDataset:
        """The images, downloaded into `folder` where they are not there yet; checksums are verified."""
        images = kept(self._path(), self._contents)
        return LoadedDataset(name_of(self), self.class_names, self.normalisation, self.augment(), images.train, images.test)

    def _downloads(self) -> Path:
        return Path(self.folder).expanduser().absolute()

    def _path(self) -> Path:
        """Where the images are kept; those of files that somebody unpacked, which have no checksum, by themselves."""
        identity, folder = [self.facts().image_shape, [archive.md5 for archive in self.archives]], self._downloads()
        verified, unverified = (path_of(self.cache, name_of(self), identity + more) for more in ([], ["unpacked"]))
        missing = [archive for archive in self.archives if not (folder / archive.path).exists()]
        if verified.exists() or not missing:
            return verified
        return unverified if unverified.exists() or any(archive.found(folder) for archive in missing) else verified

    def _contents(self, scratch: Path) -> Contents:
        self.require()
        paths = fetch(self.archives, self._downloads(), self.title)
        source = f"{self.title} in {', '.join(map(str, paths))}"
        with readable(source):
            train, test = self.read(paths, scratch)
        if (len(train.labels), len(test.labels)) != self.num_images:
            found, expected = f"{len(train.labels)} + {len(test.labels)}", f"{self.num_images[0]} + {self.num_images[1]}"
            raise UserError(f"{source}: there are {found} images, not {expected}")
        train, test = (Part(part.labels, _each(part.blocks, source)) for part in (train, test))
        return Contents(source, self.class_names, self.facts().image_shape, train, test, self.normalisation)


def _each(blocks: Iterable[Pixels], source: str) -> Iterator[Pixels]:
    with readable(source):
        yield from blocks
