"""What the original model makes of the training samples, for detections that look at it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cu_ray.lazy import torch
from cu_ray.learning.activations import inputs_of, last_linear_layer
from cu_ray.stages.evaluate import BATCH_SIZES
from cu_ray.stages.poison import OnDevice

Array = npt.NDArray[Any]
Compute = Callable[[], Array]


class OriginalsEvidence:
    """Losses and features of all training samples under a copy of the original: eval mode, float32, without augmentation.

    Losses are float64: near 0 those of single precision are a few values, and ties would be decided by the order of the rows.
    """

    def __init__(
        self,
        plugin: Any,
        original: Callable[[], torch.nn.Module],
        data: OnDevice,
        kept: Callable[[str, Compute], Array] | None = None,
    ) -> None:
        """kept: gives what is known by this name, or what `compute` gives."""
        self._plugin, self._original, self._data = plugin, original, data
        self._kept = kept or (lambda name, compute: compute())

    def losses(self) -> Array:
        """The cross-entropy against given labels [N]."""
        return self._losses

    def features(self) -> Array:
        """What the last linear layer gets [N, F]."""
        return self._features

    @functools.cached_property
    def _losses(self) -> Array:
        return self._kept("losses", self._compute_losses)

    @functools.cached_property
    def _features(self) -> Array:
        return self._kept("features", self._compute_features)

    def _compute_losses(self) -> Array:
        losses = [
            torch.nn.functional.cross_entropy(logits.double(), self._data.train.labels[rows], reduction="none")
            for rows, logits in self._passes(copy.deepcopy(self._original()).eval())
        ]
        return np.asarray(torch.cat(losses).cpu())

    def _compute_features(self) -> Array:
        model = copy.deepcopy(self._original()).eval()
        with inputs_of(last_linear_layer(self._plugin.blocks(model)[-1])) as seen:
            for _ in self._passes(model):
                pass
        return np.asarray(torch.cat([each.flatten(1) for each in seen]).cpu())

    def _passes(self, model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images = self._data.train
        for rows in torch.arange(len(images.labels), device=self._data.device).split(BATCH_SIZES[self._data.device.type]):
            with torch.no_grad():
                logits = model(images.load(rows))
            yield rows, logits
