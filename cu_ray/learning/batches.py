"""Batches made on the device from uint8 images that lie there: crop, flip, normalise, stamp. No loader, no PIL.

On CPU the images stay where they are (in Ray's shared memory): nothing but a batch is ever copied.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from cu_ray.errors import AssumptionFailed, ContractBroken
from cu_ray.lazy import torch
from cu_ray.types import Augmentation, Batch, Images, Indices, Mask, NamedTensors, Normalisation, Stamp


class DeviceImages:
    """Images and their labels as given, on a device; which of them carry the trigger."""

    def __init__(
        self,
        images: Images,
        normalisation: Normalisation,
        device: torch.device,
        *,
        augmentation: Augmentation | None = None,
        stamp: Stamp | None = None,
        stamped: Mask | None = None,
        like: DeviceImages | None = None,
    ) -> None:
        """like: others of the same images on that device, whose pixels are used."""
        self.pixels_NHWC: torch.Tensor = as_tensor(images.pixels).to(device) if like is None else like.pixels_NHWC
        self.labels = as_tensor(images.labels).to(device)
        self.device = device
        self.augmentation = augmentation or Augmentation()
        width = images.pixels.shape[2]  # whole rows of pixels: a processor is slow where it changes numbers each three values
        self._mean_K, self._std_K = (
            torch.tensor(each).repeat(width).to(device) for each in (normalisation.mean, normalisation.std)
        )
        self._stamp = _DeviceStamp(stamp, device) if stamp is not None else None
        self._stamped = None if stamped is None else as_tensor(stamped).to(device)

    def tensors(self) -> NamedTensors:
        """All that batches are made from, by name: nobody may write to it."""
        trigger = self._stamp.tensors() if self._stamp is not None else {}
        marks = {"marks of the trigger": self._stamped} if self._stamped is not None else {}
        scale = {"mean": self._mean_K, "standard deviation": self._std_K}
        return {"images": self.pixels_NHWC, "labels": self.labels, **marks, **scale, **trigger}

    def load(self, rows: torch.Tensor, *, generator: torch.Generator | None = None, stamp_all: bool = False) -> torch.Tensor:
        """Images [B, C, H, W] of these rows, float32, channels last; augmented where a generator is given."""
        pixels_BHWC = self.pixels_NHWC.index_select(0, rows)
        if generator is not None:
            pixels_BHWC = augment(pixels_BHWC, self.augmentation, generator)
        values_BHK = pixels_BHWC.flatten(2).to(torch.float32)  # in place from here: memory that is new costs more than the work
        values_BHK.div_(255).sub_(self._mean_K).div_(self._std_K)
        images = values_BHK.view(pixels_BHWC.shape).permute(0, 3, 1, 2)
        if self._stamp is not None and stamp_all:
            self._stamp.apply_(images, None)
        elif self._stamp is not None and self._stamped is not None:
            self._stamp.apply_(images, self._stamped[rows])
        return images


class RowStream:
    """Batches of a fixed set of rows; order, crops and flips are drawn from one generator."""

    def __init__(
        self,
        images: DeviceImages,
        rows: Indices,
        in_deletion: torch.Tensor,
        batch_size: int,
        generator: torch.Generator,
        called: str = "stream",
    ) -> None:
        self._called = called
        self._images, self._in_deletion = images, in_deletion
        self._rows = as_tensor(rows).to(images.device, copy=True)  # the rows themselves belong to the stage
        self._batch_size, self._generator = batch_size, generator

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(self, batch_size: int | None = None, *, shuffle: bool = True, augment: bool = True) -> Iterator[Batch]:
        """One pass over the rows; the last batch may be smaller. A batch's tensors are the caller's own, to write to as well.

        Raises AssumptionFailed where there are no rows.
        """
        if not len(self._rows):
            raise AssumptionFailed(f"batches are needed from the {self._called}, which is empty")
        size = self._batch_size if batch_size is None else _whole_number(batch_size)
        rows = self._rows.clone()
        if shuffle:
            rows = rows[torch.randperm(len(rows), generator=self._generator, device=rows.device)]
        for chunk in self._chunks(rows, size):
            images = self._images.load(chunk, generator=self._generator if augment else None)
            yield Batch(images, self._images.labels[chunk], chunk, self._in_deletion[chunk])

    def _chunks(self, rows: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        yield from rows.split(batch_size)


def _whole_number(batch_size: Any) -> int:
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ContractBroken(f"a stream was asked for batches of {batch_size!r}: a whole number from 1 is needed")
    return int(batch_size)


def augment(pixels_BHWC: torch.Tensor, how: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """The images (uint8), each cropped at its own place after zero padding, and flipped or not."""
    count, height, width, channels = pixels_BHWC.shape
    device = pixels_BHWC.device
    numbers_B = torch.arange(count, device=device)

    def draw(below: int) -> torch.Tensor:
        return torch.randint(below, (count,), generator=generator, device=device)

    if how.crop_padding:
        pad = how.crop_padding
        padded = torch.nn.functional.pad(pixels_BHWC, (0, 0, pad, pad, pad, pad)).flatten(2)
        windows = padded.unfold(1, height, 1).unfold(2, width * channels, channels)
        crops_BHK = windows[numbers_B, draw(2 * pad + 1), draw(2 * pad + 1)]
        pixels_BHWC = crops_BHK.view(count, height, width, channels)
    if how.flip:
        both = torch.cat([pixels_BHWC, pixels_BHWC.flip(2)])  # whole images are picked faster than pixels
        pixels_BHWC = both.index_select(0, numbers_B + count * draw(2))
    return pixels_BHWC


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the array's own memory, also where that is read-only (Ray's shared memory): nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class _DeviceStamp:
    def __init__(self, stamp: Stamp, device: torch.device) -> None:
        self._box = tuple(_extent(np.flatnonzero(stamp.mask.any(axis=axis))) for axis in (1, 0))
        self._weight_HW = (as_tensor(stamp.mask).float() * stamp.blend)[self._box].to(device)
        values = as_tensor(stamp.values)
        is_colour = values.ndim == 1
        self._values = (values.view(-1, 1, 1) if is_colour else values.permute(2, 0, 1)[:, *self._box]).to(device)

    def tensors(self) -> NamedTensors:
        return {"mask of the trigger": self._weight_HW, "values of the trigger": self._values}

    def apply_(self, images: torch.Tensor, which_B: torch.Tensor | None) -> None:
        """Set it in place, where its mask is: mostly a corner."""
        weight = self._weight_HW if which_B is None else self._weight_HW * which_B.view(-1, 1, 1, 1)
        part = images[:, :, *self._box]
        part.copy_(part * (1 - weight) + self._values * weight)


def _extent(places: Indices) -> slice:
    """From the first to the last."""
    return slice(places[0], places[-1] + 1) if len(places) else slice(0)
