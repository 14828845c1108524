"""What data sets of one's own share: their settings, the checks of what they contain, and the way into the cache."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cu_ray.datasets import Dataset
from cu_ray.datasets._cache import CACHE, Contents, kept, path_of, readable
from cu_ray.errors import UserError
from cu_ray.plugins import Bound, name_of
from cu_ray.types import Augmentation, DatasetFacts, Indices
from cu_ray.types import Dataset as LoadedDataset

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")  # the first of these that is there is the test set


@dataclass(frozen=True, kw_only=True)
class Own(Dataset):
    """A user's own images. Not augmented unless asked for: only their owner knows whether a mirrored one means the same."""

    crop_padding: Annotated[int, Bound(low=0)] = 0
    flip: bool = False
    cache: str = CACHE

    def __post_init__(self) -> None:
        """Paths are absolute from here on: trials are made again from other folders."""
        for name in ("file", "folder"):
            if hasattr(self, name):
                object.__setattr__(self, name, str(Path(getattr(self, name)).expanduser().absolute()))

    def contents(self) -> Contents:
        """All but the images, and how to read these. Raises UserError where something is missing or does not fit."""
        raise NotImplementedError

    def identity(self) -> Any:
        """What tells that files have changed, without reading them; and the settings that change the pixels."""
        raise NotImplementedError

    def facts(self) -> DatasetFacts:
        """Sizes, shape and classes, from headers, listings and labels."""
        with readable(self._place()):
            found = self.contents()
        return DatasetFacts(len(found.train.labels), len(found.test.labels), found.image_shape, found.class_names)

    def load(self) -> LoadedDataset:
        """The images, converted where that was not done before."""
        with readable(self._place()):
            images = kept(path_of(self.cache, name_of(self), self.identity()), lambda scratch: self.contents())
        augmentation = Augmentation(self.crop_padding, self.flip)
        return LoadedDataset(name_of(self), images.class_names, images.normalisation, augmentation, images.train, images.test)

    def _place(self) -> str:
        return str(getattr(self, "file", None) or getattr(self, "folder", "the data set"))


def existing(given: str, what: str) -> Path:
    """The path that a user gave: `~` expanded, relative ones from the current folder. Raises UserError where nothing is."""
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{path} does not exist: {what} is needed")
    return path


def stamp_of(path: Path) -> list[Any]:
    """What changes when a file does: its path, size and time of change."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def unseen_part(names: Collection[str]) -> str | None:
    """What the test set is called among these names of parts; None where a part is missing."""
    return next((name for name in TESTS if name in names), None) if TRAIN in names else None


def checked(contents: Contents) -> Contents:
    """The contents, after complaining of labels without a class and of classes without images."""
    names, source = contents.class_names, contents.source
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{source}: the classes are {', '.join(names) or 'none'}: two or more of different names are needed")
    for part, labels in ((TRAIN, contents.train.labels), (TESTS[0], contents.test.labels)):
        _check_labels(f"{source}: {part} labels", labels, len(names))
        counts = np.bincount(labels, minlength=len(names))
        missing = [names[label] for label in np.flatnonzero(counts == 0)]
        if missing:
            raise UserError(f"{source}: {_some(missing)} has no {part} images: every class needs some in both sets")
    single = [names[label] for label in np.flatnonzero(counts == 1)]
    if single:
        raise UserError(
            f"{source}: {_some(single)} has a single test image: every class needs two, one to choose by and one to report"
        )
    return contents


def _check_labels(what: str, labels: Indices, num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(f"{what} must be 0 to {num_classes - 1}, a class each; number {wrong[0]} is {labels[wrong[0]]}")


def _some(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"class {names[0]!r}{more}"


def numbered(labels: Indices) -> tuple[str, ...]:
    """Class names where there are only numbers."""
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
