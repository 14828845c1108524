"""Activation clustering: where a class falls into two clusters of features, the smaller one is suspected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cu_ray.detections import Detection
from cu_ray.types import Evidence, Indices, Mask, PoisonedDataset

Array = npt.NDArray[np.float64]
COMPONENTS, MOST_ROUNDS = 10, 100


@dataclass(frozen=True)
class ActivationClustering(Detection):
    """All training samples: the smaller of two clusters of their given class first, the classes with the smallest one first.

    Chen et al. 1811.03728: the features of a class are reduced to ten dimensions and clustered by 2-means, and a class is the
    more suspect the smaller its smaller cluster is. Here the reduction is to principal components (theirs: independent ones),
    and 2-means starts from the two sides of the first of them. Within a cluster the nearest to its centre come first; after
    the smaller clusters the others follow. It knows nothing of the manipulation.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a detector: the smaller of two clusters of a class's features"

    def find(self, poisoned: PoisonedDataset, size: int, rng: np.random.Generator, evidence: Evidence) -> Indices:
        """The first `size` of the ranking."""
        features = evidence.features().astype(np.float64)
        suspicion = []  # a row each: belongs to the larger cluster, the smaller one's share of the class, distance, row
        for label in np.unique(poisoned.labels):
            members = np.flatnonzero(poisoned.labels == label)
            in_smaller, distances = two_means(principal_components(features[members]))
            share = np.full(len(members), in_smaller.mean())
            suspicion.append(np.stack([~in_smaller, share, distances, members]))
        larger, share, distance, rows = np.concatenate(suspicion, axis=1)
        order = np.lexsort((rows, distance, share, larger))
        return np.asarray(rows[order][:size], dtype=np.int64)


def principal_components(features_NF: Array) -> Array:
    """The features [N, at most 10] along their directions of largest variance, the largest first."""
    centred = features_NF - features_NF.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :COMPONENTS]
    return np.asarray(centred @ directions)


def two_means(points_ND: Array) -> tuple[Mask, Array]:
    """Which points [N] are in the smaller of two clusters, and the distance of each [N] to the centre of its own.

    Points that cannot be told apart are one cluster: then none is in a smaller one.
    """
    second = points_ND[:, 0] > 0
    distances_2N = np.zeros((2, len(points_ND)))
    for _ in range(MOST_ROUNDS):
        if second.all() or not second.any():
            return np.zeros(len(points_ND), dtype=bool), distances_2N[0]
        centres = points_ND[~second].mean(axis=0), points_ND[second].mean(axis=0)
        distances_2N = np.stack([np.linalg.norm(points_ND - centre, axis=1) for centre in centres])
        before, second = second, distances_2N[1] < distances_2N[0]
        if (before == second).all():
            break
    smaller = second if 2 * second.sum() <= len(second) else ~second
    return smaller, distances_2N.min(axis=0)
