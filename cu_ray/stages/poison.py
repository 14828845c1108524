"""Stage 1: what the model's owner got, and what was found of the manipulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cu_ray import checks
from cu_ray.errors import ContractBroken
from cu_ray.identity import generator_for, key_of
from cu_ray.lazy import torch
from cu_ray.learning.batches import DeviceImages
from cu_ray.plugins import describe, name_of
from cu_ray.stages.reasons import blamed
from cu_ray.types import (
    Corruption,
    Dataset,
    DeletionSplit,
    Domains,
    Evidence,
    Images,
    Indices,
    Mask,
    NamedTensors,
    PoisonedDataset,
    Validation,
)

HELD_OUT_SHARE, HELD_OUT_MINIMUM = 0.2, 5


def poison(dataset: Dataset, manipulation: Any, *, seed: int, control: str | None = None) -> PoisonedDataset:
    """The data set with some training samples manipulated, the test views, and the owner's validation samples.

    The draw belongs to data set, manipulation and seed: neither model nor training change it. With a control (see
    `Setting`) the same samples are drawn and the same test views made, but the training data are manipulated less.

    Raises ContractBroken where the manipulation gives anything else than it has to.
    """
    identity = {"dataset": dataset.content_hash, "manipulation": describe(manipulation, locations=False), "seed": seed}
    half = selection_half(dataset)
    with blamed(name_of(manipulation)):
        corruption = _corruption(dataset, manipulation, identity)
        domains = _domains(dataset, manipulation, corruption)
        validation = _validation(dataset, manipulation, corruption, half, identity)
    labels, stamped = dataset.train.labels.copy(), np.zeros(len(dataset.train), dtype=bool)
    if control is None:
        labels[corruption.indices] = corruption.labels
    if control != "never_manipulated":
        stamped[corruption.indices] = corruption.stamp is not None
    return PoisonedDataset(
        dataset,
        corruption,
        labels,
        stamped,
        domains,
        half,
        validation,
        key_of(identity | ({"control": control} if control else {})),
    )


def selection_half(dataset: Dataset) -> Mask:
    """Which test images [N] belong to the selection half: half of each class, whatever the seed; the others report."""
    rng = generator_for("test split", dataset.content_hash)
    half = np.zeros(len(dataset.test), dtype=bool)
    for label in range(dataset.num_classes):
        members = rng.permutation(np.flatnonzero(dataset.test.labels == label))
        half[members[: len(members) // 2]] = True
    return half


def _corruption(dataset: Dataset, manipulation: Any, identity: dict[str, Any]) -> Corruption:
    corruption: Corruption = manipulation.corrupt(dataset.train, dataset.normalisation, generator_for("poison", identity))
    checks.require(checks.of_corruption("corrupt()", corruption, dataset.train, dataset.num_classes))
    checks.require(checks.of_size(corruption, manipulation.size))
    return corruption


def _domains(dataset: Dataset, manipulation: Any, corruption: Corruption) -> Domains:
    domains: Domains = manipulation.test_domains(dataset.test)
    checks.require(checks.of_domains(domains, corruption, len(dataset.test), dataset.num_classes))
    return domains


def _validation(dataset: Dataset, manipulation: Any, corruption: Corruption, half: Mask, identity: dict[str, Any]) -> Validation:
    rows = np.flatnonzero(half)
    unseen = Images(dataset.test.pixels[rows], dataset.test.labels[rows])
    changed = manipulation.corrupt_unseen(unseen, dataset, corruption, generator_for("validation", identity))
    checks.require(checks.of_corruption("corrupt_unseen()", changed, unseen, dataset.num_classes))
    labels, stamped = unseen.labels.copy(), np.zeros(len(rows), dtype=bool)
    labels[changed.indices] = changed.labels
    stamped[changed.indices] = changed.stamp is not None
    return Validation(rows, labels, stamped)


def detect(poisoned: PoisonedDataset, detection: Any, size: int, evidence: Evidence, *, held_out: bool = False) -> DeletionSplit:
    """The deletion set of that size and the retain set; with `held_out`, a fifth of the deletion set kept back.

    `evidence`: of the original model, for detections that look at it.

    Deletion sets of one setting are nested. Raises ContractBroken where the detection finds another number of samples.
    """
    if size == 0:
        return nothing_found(poisoned)
    identity = [poisoned.key, describe(detection, locations=False)]
    rng = generator_for("detect", [poisoned.key, describe(detection.drawn_as(), locations=False)])
    found = detection.find(poisoned, size, rng, evidence)
    if len(found) != size or len(np.unique(found)) != size:
        raise ContractBroken(f"{type(detection).__name__} found {len(np.unique(found))} different samples, not {size}")
    manipulated = np.isin(found, poisoned.corruption.indices)
    num_held_out = num_held_out_of(size) if held_out else 0
    shuffled = generator_for("hold out", identity, size).permutation(found) if num_held_out else found
    retained = np.ones(len(poisoned.labels), dtype=bool)
    retained[found] = False
    known = poisoned.corruption.truth_known
    return DeletionSplit(
        deletion=np.sort(shuffled[num_held_out:]),
        retain=np.flatnonzero(retained),
        held_out=np.sort(shuffled[:num_held_out]),
        precision=float(manipulated.mean()) if known else None,
        recall=float(manipulated.sum() / len(poisoned.corruption.indices)) if known else None,
    )


def nothing_found(poisoned: PoisonedDataset) -> DeletionSplit:
    """The split where nothing was identified: all training samples are retained."""
    nothing = np.empty(0, dtype=np.int64)
    return DeletionSplit(nothing, np.arange(len(poisoned.labels)), nothing, None, 0.0)


def num_held_out_of(size: int) -> int:
    """How many samples of a deletion set the defender holds out: a fifth; 0 where that is fewer than five."""
    count = round(HELD_OUT_SHARE * size)
    return count if count >= HELD_OUT_MINIMUM else 0


@dataclass(frozen=True, eq=False)
class OnDevice:
    """The images of a poisoned data set on a device: training images as given, test images."""

    train: DeviceImages
    test: DeviceImages
    device: torch.device

    def rows(self, rows: Indices) -> torch.Tensor:
        """Row numbers as a tensor on the device."""
        return torch.from_numpy(rows).to(self.device)

    def tensors(self) -> NamedTensors:
        """Everything that trials share of it, by name."""
        parts = {"training": self.train, "test": self.test}
        return {f"{part} {name}": tensor for part, images in parts.items() for name, tensor in images.tensors().items()}


def upload(poisoned: PoisonedDataset, device: torch.device, like: OnDevice | None = None) -> OnDevice:
    """The poisoned data set on a device. like: the same data set there, manipulated otherwise: its pixels are used."""
    dataset, stamp = poisoned.dataset, poisoned.corruption.stamp
    train = DeviceImages(
        Images(dataset.train.pixels, poisoned.labels),
        dataset.normalisation,
        device,
        augmentation=dataset.augmentation,
        stamp=stamp,
        stamped=poisoned.stamped,
        like=None if like is None else like.train,
    )
    test = DeviceImages(dataset.test, dataset.normalisation, device, stamp=stamp, like=None if like is None else like.test)
    return OnDevice(train, test, device)
