"""What backdoors share: which samples they take, and their test views."""

from __future__ import annotations

import numpy as np

from cu_ray.errors import FieldFault
from cu_ray.types import Domains, Images, Indices, View


def drawn(size: int, target: int, images: Images, rng: np.random.Generator, *, clean_label: bool) -> tuple[Indices, Indices]:
    """The samples (sorted) and their labels: the target's. Of all images, or of the target class for a clean label.

    Raises FieldFault where the target class has too few.
    """
    candidates = np.flatnonzero(images.labels == target) if clean_label else np.arange(len(images))
    if len(candidates) < size:
        raise FieldFault(
            "size", f"class {target} has {len(candidates)} samples, fewer than {size}; a clean label takes no others"
        )
    return np.sort(rng.choice(candidates, size, replace=False)), np.full(size, target, dtype=np.int64)


def size_at_rate(rate: float, target: int, images: Images, *, clean_label: bool) -> int:
    """How many images that share is, at least one; of a clean label not more than the target class has."""
    size = max(1, round(rate * len(images)))
    return min(size, int((images.labels == target).sum())) if clean_label else size


def with_and_without(test: Images, target: int) -> Domains:
    """Affected: every test image with the trigger, true labels. Retain: the clean test images."""
    rows = np.arange(len(test))
    return Domains(View(rows, stamped=True), View(rows), target=target)
