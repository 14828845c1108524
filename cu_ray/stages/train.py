"""Stage 2: the original model, trained on the whole manipulated training set."""

from __future__ import annotations

from typing import Any

import numpy as np

from cu_ray.errors import Diverged
from cu_ray.identity import seed_for
from cu_ray.lazy import torch
from cu_ray.learning.activations import last_linear_layer
from cu_ray.learning.layers import initialise
from cu_ray.learning.sgd import cross_entropy
from cu_ray.learning.tied_dropout import TiedDropout, share_of, takers
from cu_ray.stages.poison import OnDevice
from cu_ray.stages.tools import WHOLE, Tools
from cu_ray.types import Batch, OriginalSpec, PoisonedDataset


def train(spec: OriginalSpec, poisoned: PoisonedDataset, data: OnDevice, tools: Tools = WHOLE) -> torch.nn.Module:
    """The original model in eval mode. Raises Diverged where a weight is not finite in the end."""
    setting = spec.setting
    model = build_model(setting.model, poisoned, data.device, seed_for("initialise", spec.key))
    generator = torch.Generator(data.device).manual_seed(seed_for("batches", spec.key))
    nothing_found = torch.zeros(len(poisoned.labels), dtype=torch.bool, device=data.device)
    rows = np.arange(len(poisoned.labels))
    stream = tools.stream(data.train, rows, nothing_found, setting.train.batch_size, generator)
    keeper = tools.keeper(setting.train.keep, poisoned, data, setting.train.precision)
    sgd = tools.sgd(model.train(), setting.train, data.device)
    tied = _tied_dropout(spec, model, len(rows), data.device)
    while not sgd.done:
        if tied is None:
            sgd.epoch(stream, cross_entropy)
        else:
            sgd.epoch(tied.following(stream), _cross_entropy_anew)
        keeper.offer(model)
    require_finite(model, "the original model's")
    kept = keeper.keep(model)
    kept.zero_grad(set_to_none=True)  # workers keep originals, and gradients would keep the memory of graphs
    if tied is not None:
        tied.settle()
    return kept


def _tied_dropout(spec: OriginalSpec, model: torch.nn.Module, num_rows: int, device: torch.device) -> TiedDropout | None:
    """The dropout that the variant of the original asks for. Raises AssumptionFailed where the model cannot have it.

    Raises ContractBroken for a variant that is no dropout.
    """
    if not spec.variant:
        return None
    share = share_of(dict(spec.variant))
    head = last_linear_layer(spec.setting.model.blocks(model)[-1])
    return TiedDropout.half_of(takers(model, head), share, num_rows, device)


def _cross_entropy_anew(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The same loss, in a step that is never recorded: what a sample sees of the memory is in no batch."""
    return cross_entropy(logits, batch)


def build_model(model_plugin: Any, poisoned: PoisonedDataset, device: torch.device, seed: int) -> torch.nn.Module:
    """A model with new weights, channels last, on the device."""
    with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
        torch.manual_seed(seed)
        model: torch.nn.Module = model_plugin.build(poisoned.dataset.image_shape, poisoned.dataset.num_classes)
    initialise([model], seed)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def require_finite(model: torch.nn.Module, whose: str) -> None:
    """Raise Diverged where a parameter or buffer holds NaN or an infinite value. whose: how the message begins."""
    state = model.state_dict()
    finite = [torch.isfinite(tensor).all() for tensor in state.values()]
    for name, is_finite in zip(state, torch.stack(finite).tolist() if finite else [], strict=True):  # one look at the device
        if not is_finite:
            raise Diverged(f"{whose} {name} is not finite")
