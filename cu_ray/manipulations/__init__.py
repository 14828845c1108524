"""Manipulations: what corrupted the training data, and where in the test data it does harm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np

from cu_ray.errors import FieldFault, did_you_mean
from cu_ray.plugins import Bound, Plugin
from cu_ray.types import Corruption, Dataset, DatasetFacts, Domains, Images, Normalisation


@dataclass(frozen=True)
class Manipulation(Plugin):
    """A corruption of `size` training samples. Its fields are its settings.

    has_trigger: whether images carry a trigger, so that one can also be set without relabelling.
    regularity: how much of it can be learned as a rule: 0 nothing, 1 by class, 2 one pattern in all; None where not known.
    """

    has_trigger: ClassVar[bool] = False
    regularity: ClassVar[int | None] = None
    size: Annotated[int, Bound(low=1)]

    @property
    def truth_known(self) -> bool:
        """Whether the true labels of the training samples are known."""
        return True

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

    def corrupt_unseen(self, unseen: Images, dataset: Dataset, corruption: Corruption, rng: np.random.Generator) -> Corruption:
        """The same manipulation of other images at the training set's rate, given what it did there: for validation."""
        size = max(1, round(self.rate(dataset) * len(unseen)))
        return replace(self, size=size).corrupt(unseen, dataset.normalisation, rng)

    def rate(self, dataset: Dataset) -> float:
        """The share of the training samples that is manipulated."""
        return self.size / len(dataset.train)


def class_index(field: str, given: str | int, facts: DatasetFacts) -> int:
    """The index of a class given by name or index; raises FieldFault naming the field, with the nearest class name.

    Also where a number is one class's index and the name of another.
    """
    named = str(given)
    if isinstance(given, int) and named in facts.class_names and facts.class_names.index(named) != given:
        other = f", and the index of class {facts.class_names[given]!r}" if given < len(facts.class_names) else ""
        raise FieldFault(field, f"{given} is the name of a class{other}: classes whose names are numbers go by name, '{given}'")
    try:
        return facts.class_index(given)
    except LookupError:
        allowed = did_you_mean(str(given), facts.class_names)
        raise FieldFault(field, f"{given!r} is no class of this data set. {allowed} Or an index from 0.") from None
