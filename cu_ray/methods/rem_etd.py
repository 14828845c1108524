"""REM on an original that was trained with example-tied dropout: the corruption is led into the memory that is there."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.activations import last_linear_layer
from cu_ray.learning.tied_dropout import VARIANT, Taker, TiedDropout, channels_in, draw, own_channels, takers
from cu_ray.methods.rem import KEPT_SHARE, Memory, Rem
from cu_ray.types import UnlearningTask


@dataclass(frozen=True)
class RemEtd(Rem):
    """REM's variant that adds no channels (Schoepf et al. 2505.17730): its original has half of them as a memory from the start.

    The original is trained with example-tied dropout, so the method has originals of its own. Each sample sees the fifth of the
    memory that it saw in training, the deletion set shares a new draw. The model that is handed back has the same architecture,
    with weights of 0 wherever a layer would take memory in.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "rem on an original trained with example-tied dropout, whose memory takes up the corruption"
    original_variant: ClassVar[dict[str, Any]] = {VARIANT: KEPT_SHARE}

    def memory(self, task: UnlearningTask) -> Memory:
        """The model with the memory that it was trained with."""
        return TrainedMemory(task)


class TrainedMemory(Memory):
    """A model half of whose channels are a memory, as they were in training."""

    def __init__(self, task: UnlearningTask) -> None:
        self.model, self._blocks = copy.deepcopy(task.original), task.blocks
        self._shared = 2 * len(task.everything)  # with those held out: rows of the training set have numbers below
        layers, drawn = self._takers(self.model), dict[int, torch.Tensor]()
        for layer in layers:
            layer.weight.data[:, own_channels(layer) :] /= KEPT_SHARE  # which took the place of the dropout after training
            width = channels_in(layer) - own_channels(layer)
            if width not in drawn:
                shared = torch.rand(1, width, generator=task.generator, device=task.device) < KEPT_SHARE
                drawn[width] = torch.cat([draw(self._shared, width, KEPT_SHARE, task.device), shared])
        self._begin(TiedDropout([(layer, own_channels(layer)) for layer in layers], drawn))

    def cut_off(self, model: torch.nn.Module) -> None:
        """Write into a model what this one is, but that no layer takes memory in."""
        model.load_state_dict(self.model.state_dict())
        for layer in self._takers(model):
            layer.weight.data[:, own_channels(layer) :] = 0

    def _takers(self, model: torch.nn.Module) -> list[Taker]:
        return takers(model, last_linear_layer(self._blocks(model)[-1]))
