"""Manipulations: what corrupted the training data, and where in the test data it does harm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np

from cu_ray.errors import FieldFault, did_you_mean
from cu_ray.plugins import Bound, Plugin
from cu_ray.types import Corruption, DatasetFacts, Domains, Images, Normalisation


@dataclass(frozen=True)
class Manipulation(Plugin):
    """A corruption of `size` training samples. Its fields are its settings."""

    size: Annotated[int, Bound(low=1)]

    def settle(self, facts: DatasetFacts) -> Self:
        """The same manipulation with class names as indices; raises FieldFault where it does not fit the data set."""
        if self.size > facts.num_train:
            raise FieldFault("size", f"{self.size} manipulated samples are more than the {facts.num_train} training samples")
        return self

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """What changes in the images. The images themselves stay as they are."""
        raise NotImplementedError

    def test_domains(self, test: Images) -> Domains:
        """The views of the test images on which the manipulation does harm, and on which it does not."""
        raise NotImplementedError

    def scaled(self, share: float, num_images: int) -> Self:
        """The same manipulation of that share of so many images, for the owner's validation samples."""
        return replace(self, size=max(1, round(share * num_images)))


def class_index(field: str, given: str | int, facts: DatasetFacts) -> int:
    """The index of a class given by name or index; raises FieldFault naming the field, with the nearest class name."""
    try:
        return facts.class_index(given)
    except LookupError:
        allowed = did_you_mean(str(given), facts.class_names)
        raise FieldFault(field, f"{given!r} is no class of this data set. {allowed} Or an index from 0.") from None
