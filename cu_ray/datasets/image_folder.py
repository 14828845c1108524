"""One's own pictures, a folder for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from cu_ray.datasets._cache import Contents, Part, Shape
from cu_ray.datasets._own import TESTS, TRAIN, Own, checked, existing, stamp_of, unseen_part
from cu_ray.datasets._pictures import ENDINGS, Listing, Look, listed
from cu_ray.errors import UserError
from cu_ray.plugins import Bound

LAYOUT = "a folder with train/CLASS/*.jpg and test/CLASS/*.jpg (or val/CLASS/*.jpg)"


@dataclass(frozen=True)
class ImageFolder(Own):
    """Pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/); classes in the order of their folders' names.

    `side`: resize the shorter side to so many pixels and keep the centre; without it all must be of one size already.
    `grey`: one channel instead of three. Normalised by the training pixels.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "your own pictures: train/CLASS/* and test/CLASS/* in `folder`"
    folder: str
    side: Annotated[int | None, Bound(low=1)] = None
    grey: bool = False

    def contents(self) -> Contents:
        """What the listing and the first picture's header tell, and the pictures still to be read."""
        root = existing(self.folder, LAYOUT)
        train, test = self._listings(root)
        _check_classes(root, train, test)
        shape = self._look.shape(train.paths[0], str(train.paths[0]))
        return checked(Contents(str(root), train.classes, shape, self._part(train, shape), self._part(test, shape)))

    def identity(self) -> Any:
        """The settings, and path, size and time of each picture."""
        paths = [path for listing in self._listings(existing(self.folder, LAYOUT)) for path in listing.paths]
        return [self.side, self.grey, [stamp_of(path) for path in paths]]

    @property
    def _look(self) -> Look:
        return Look(self.side, self.grey)

    def _listings(self, root: Path) -> tuple[Listing, Listing]:
        found = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
        test = unseen_part(found)
        if test is None:
            missing = TRAIN if TRAIN not in found else " or ".join(TESTS[:2])
            raise UserError(f"{root} has no folder {missing}: {LAYOUT} is needed")
        return listed(root / TRAIN), listed(root / test)

    def _part(self, listing: Listing, shape: Shape) -> Part:
        return Part(listing.labels, self._look.blocks(((path, str(path)) for path in listing.paths), shape))


def _check_classes(root: Path, train: Listing, test: Listing) -> None:
    if not train.paths:
        raise UserError(f"{root / TRAIN} has no pictures ({', '.join(ENDINGS)}): {LAYOUT} is needed")
    for where, one, other in (("training", train, test), ("test", test, train)):
        alone = sorted(set(one.classes) - set(other.classes))
        if alone:
            raise UserError(f"{root}: class {alone[0]!r} is in the {where} set only: every class needs a folder in both")
