"""A manipulation read from a file: one's own incident."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from cu_ray.errors import FieldFault
from cu_ray.identity import carried, derived, key_of, located
from cu_ray.incident import packed, read, unpacked
from cu_ray.manipulations import Manipulation, class_index
from cu_ray.types import Corruption, Dataset, DatasetFacts, Domains, Images, Normalisation, View


@dataclass(frozen=True)
class FromFile(Manipulation):
    """The samples that a CSV, Parquet or npz file lists by `index` (row of the training set), with the `label` each was given.

    With a column `label` (class name or index) the data set's labels are the true ones and the file says what was done to
    them. Without it the data set's labels are already those given: the file lists the samples that were identified, true
    labels are not known, and what needs them is null. `size` is the number of samples in the file. `affected_classes`: the
    classes whose test images are the affected domain, the others being the retain domain; null: the whole test set is both,
    or with unknown labels the affected domain is empty. `target`: the class that images are made to be taken for, for `asr`.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the samples listed in a file: one's own incident"
    size: int = 0
    affected_classes: tuple[int | str, ...] | None = None
    target: int | str | None = None
    content: str | None = derived()  # checksum of what the file says
    samples: str | None = carried()  # what the file says, packed when it is read: workers need no file
    file: str = located()

    def settle(self, facts: DatasetFacts) -> Self:
        """The file is read: its rows and labels must be those of the data set."""
        incident = read(self.file, facts).by_row() if self.samples is None else unpacked(self.samples)
        size = len(incident.indices)
        if self.size not in (0, size):
            raise FieldFault("size", f"{self.file} lists {size} samples, not {self.size}. Leave the size out.")
        affected = self.affected_classes and tuple(
            sorted({class_index("affected_classes", given, facts) for given in self.affected_classes})
        )
        if affected and len(affected) == len(facts.class_names):
            raise FieldFault("affected_classes", "these are all classes: leave them out, and the whole test set is both domains")
        target = None if self.target is None else class_index("target", self.target, facts)
        file = str(Path(self.file).expanduser().absolute())
        content = key_of([incident.indices.tolist(), None if incident.labels is None else incident.labels.tolist()])
        settled = replace(self, size=size, affected_classes=affected, target=target, file=file)
        return replace(settled, content=content, samples=packed(incident))

    @property
    def truth_known(self) -> bool:
        """Whether the file says which labels were given: then the data set's own are the true ones."""
        return unpacked(self.samples or "").labels is not None

    def corrupt(self, images: Images, normalisation: Normalisation, rng: np.random.Generator) -> Corruption:
        """The samples of the file."""
        incident = unpacked(self.samples or "")
        given = images.labels[incident.indices] if incident.labels is None else incident.labels
        return Corruption(incident.indices, given, truth_known=self.truth_known)

    def corrupt_unseen(self, unseen: Images, dataset: Dataset, corruption: Corruption, rng: np.random.Generator) -> Corruption:
        """Images relabelled from class to class as the listed samples were; none where these are not known."""
        if not corruption.truth_known:
            return Corruption(np.empty(0, np.int64), np.empty(0, np.int64), truth_known=False)
        wanted = rng.permutation(self.size)[: max(1, round(self.rate(dataset) * len(unseen)))]
        true, given = dataset.train.labels[corruption.indices[wanted]], corruption.labels[wanted]
        indices, labels = [], []
        for label in np.unique(true):
            members = rng.permutation(np.flatnonzero(unseen.labels == label))[: (true == label).sum()]
            indices.append(members)
            labels.append(given[true == label][: len(members)])
        order = np.argsort(np.concatenate(indices))
        return Corruption(np.concatenate(indices)[order], np.concatenate(labels)[order])

    def test_domains(self, test: Images) -> Domains:
        """The test images of the affected classes, and the others."""
        everything = np.arange(len(test))
        target = None if self.target is None else int(self.target)
        if self.affected_classes:
            affected = np.isin(test.labels, self.affected_classes)
            return Domains(View(np.flatnonzero(affected)), View(np.flatnonzero(~affected)), target)
        return Domains(View(everything if self.truth_known else everything[:0]), View(everything), target)
