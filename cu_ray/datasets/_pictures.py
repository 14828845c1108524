"""Pictures (JPEG, PNG, ...) as arrays, and folders of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cu_ray.errors import UserError
from cu_ray.types import Indices, Pixels

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
DEEP_MODES = ("I", "F")  # more than 8 bits: I;16, I, F
PRIVATE = (".", "@")  # begin the names of thumbnails, checkpoints and a file server's own folders
BLOCK = 256


@dataclass(frozen=True)
class Look:
    """How pictures become arrays. `side`: pixels after resizing the shorter side and cropping the centre; None: as they are."""

    side: int | None = None
    grey: bool = False

    def pixels(self, picture: Path | bytes, where: str) -> Pixels:
        """The picture [H, W, C]. Raises UserError where it is none."""
        with _opened(picture, where) as image:
            try:
                colours = image.convert("L" if self.grey else "RGB")
            except OSError as error:
                raise UserError(f"{where} is damaged: {error}") from error
        pixels = np.asarray(colours if self.side is None else _squared(colours, self.side))
        return pixels[..., None] if self.grey else pixels

    def shape(self, picture: Path | bytes, where: str) -> tuple[int, int, int]:
        """The shape that `pixels` gives, from the picture's header only."""
        channels = 1 if self.grey else 3
        if self.side is not None:
            return self.side, self.side, channels
        with _opened(picture, where) as image:
            return image.height, image.width, channels

    def blocks(self, pictures: Iterable[tuple[Path | bytes, str]], shape: tuple[int, int, int]) -> Iterator[Pixels]:
        """Blocks of pictures, each given with what it is called in messages."""
        block: list[Pixels] = []
        for picture, where in pictures:
            pixels = self.pixels(picture, where)
            if pixels.shape != shape:
                raise UserError(
                    f"{where} is {pixels.shape[1]} x {pixels.shape[0]} pixels, others are {shape[1]} x {shape[0]}: "
                    "`side` makes them alike"
                )
            block.append(pixels)
            if len(block) == BLOCK:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)


def _opened(picture: Path | bytes, where: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture))
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is not a picture that can be read") from error
    if image.mode.split(";")[0] in DEEP_MODES:
        image.close()
        raise UserError(f"{where} has more than 8 bits a channel: uint8 images are needed")
    return image


def _squared(image: Any, side: int) -> Any:
    from PIL import Image

    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of a folder with a folder for each class: class folders in order, paths and labels in order of path."""

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Indices


def listed(folder: Path) -> Listing:
    """The pictures below `<folder>/<class>/`, also in folders there; other files, and what programs keep there, are left out."""
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(PRIVATE)))
    found = [sorted(path for path in (folder / name).rglob("*") if _is_picture(path, folder)) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found])
    return Listing(classes, tuple(path for paths in found for path in paths), labels)


def _is_picture(path: Path, folder: Path) -> bool:
    private = any(part.startswith(PRIVATE) for part in path.relative_to(folder).parts)
    return path.suffix.lower() in ENDINGS and not private and path.is_file()
