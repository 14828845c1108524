"""Detection read from a file: what somebody, or another tool, has found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from cu_ray.detections import Detection
from cu_ray.errors import FieldFault
from cu_ray.identity import carried, derived, key_of, located
from cu_ray.incident import Incident, packed, read, unpacked
from cu_ray.types import DatasetFacts, Evidence, Indices, PoisonedDataset


@dataclass(frozen=True)
class FromFile(Detection):
    """The samples that a CSV, Parquet, npz or npy file lists by `index` (row of the training set), the surest first.

    A deletion fraction is a share of the list, from its beginning: 1 is all of it. Other columns say nothing here.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the samples listed in a file; a deletion fraction is the first share of the list"
    content: str | None = derived()  # checksum of the rows in their order
    samples: str | None = carried()  # the rows, packed when the file is read: workers need no file
    file: str = located()

    def settle(self, facts: DatasetFacts) -> Self:
        """The file is read: its rows must be some of the data set's."""
        rows = (read(self.file, facts) if self.samples is None else unpacked(self.samples)).indices
        if len(rows) == facts.num_train:
            raise FieldFault("file", f"{self.file} lists all {len(rows)} training samples: none is left to retain")
        file = str(Path(self.file).expanduser().absolute())
        return replace(self, file=file, content=key_of(rows.tolist()), samples=packed(Incident(rows, None)))

    def num_found(self, fraction: float, manipulated_size: int) -> int:
        """That share of the list, one sample at least."""
        return max(1, round(fraction * len(unpacked(self.samples or "").indices)))

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` of the list."""
        return unpacked(self.samples or "").indices[:size]
