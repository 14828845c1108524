"""Random label swap: labels permuted among samples drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cu_ray.manipulations import Manipulation
from cu_ray.types import Corruption, Domains, Images, Normalisation, View


@dataclass(frozen=True)
class RandomLabelSwap(Manipulation):
    """The labels of samples drawn uniformly are permuted among them; about 1/C of them stay true by chance.

    Affected domain and retain domain: all (clean) test images. Source: arXiv 2402.14015.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "labels permuted among `size` samples"
    regularity: ClassVar[int | None] = 0

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """`size` samples with one another's labels."""
        chosen = np.sort(rng.choice(len(images), self.size, replace=False))
        return Corruption(chosen, rng.permutation(images.labels[chosen]))

    def test_domains(self, test: Images) -> Domains:
        """All test images, twice."""
        rows = np.arange(len(test))
        return Domains(View(rows), View(rows))
