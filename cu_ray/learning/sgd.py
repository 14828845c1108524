"""The one optimisation loop: SGD with momentum, the published learning-rate schedule, a fixed number of steps.

Every method that descends or ascends composes it; so does the training of original models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from cu_ray.errors import AssumptionFailed, ContractBroken, Diverged
from cu_ray.lazy import torch
from cu_ray.learning.graphs import CudaRecorder, Graphs, repeats
from cu_ray.learning.precision import autocast
from cu_ray.types import Batch, Loss, Stream, TrainRecipe

CHECKED_EVERY = 100  # steps; looking at the loss makes the host wait for the device


def learning_rate_factor(step: int, num_steps: int) -> float:
    """The learning rate at a step (from 0), relative to the base rate: a short rise, then a line that ends near 0.2.

    With w = num_steps // 100 warm-up steps: (step + 1) / (w + 1), then 1 - (step - w) / (1.25 num_steps).
    """
    warm_up = num_steps // 100
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 1 - (step - warm_up) / (1.25 * num_steps)


class Sgd:
    """`recipe.steps` optimiser steps on the model's trainable parameters; the modules' train or eval mode is the caller's."""

    def __init__(self, model: torch.nn.Module, recipe: TrainRecipe, device: torch.device) -> None:
        self._model, self._recipe, self._device = model, recipe, device
        self._optimiser = Momentum(model, recipe, device, fused=device.type == "cuda")
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._graphs: Graphs | None = None
        if device.type == "cuda":
            self._graphs = Graphs(model, CudaRecorder(device))
        self._last_loss: torch.Tensor | None = None
        self.num_steps = 0

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.num_steps >= self._recipe.steps

    def epoch(self, batches: Stream, loss: Loss) -> None:
        """One pass over the batches, or less where the steps end before. Raises Diverged on a loss that is not finite."""
        for batch in batches.epoch():
            if self.done:
                break
            self.step(batch, loss)
        self._require_finite_loss()

    def step(self, batch: Batch, loss: Loss) -> None:
        """One optimiser step on loss(logits [B, classes] in float32, batch). Each 100th raises Diverged on a loss not finite.

        Raises ContractBroken where all steps are made: the schedule ends there, and its rate would fall below 0.
        """
        if self.done:
            raise ContractBroken(f"all {self._recipe.steps} steps are made: ask `done` before each")
        self._optimiser.set_rate(self._recipe.lr * learning_rate_factor(self.num_steps, self._recipe.steps))
        scaled = self._scaler.is_enabled()  # then the update stays out of graphs: it leaves a scaler in halves where it fails
        work = self._gradients if scaled else self._whole_step
        self._last_loss = self._graphs.run(work, batch, loss) if self._graphs else work(batch, loss)
        if scaled:
            self._update()
        self.num_steps += 1
        if self.num_steps % CHECKED_EVERY == 0:
            self._require_finite_loss()

    def _whole_step(self, batch: Batch, loss: Loss) -> torch.Tensor:
        """The loss of a step that is made now."""
        value = self._gradients(batch, loss)
        self._update()
        return value

    def _gradients(self, batch: Batch, loss: Loss) -> torch.Tensor:
        """The loss, whose gradients the parameters have then, scaled."""
        with autocast(self._recipe.precision, self._device), _single_image_named(batch):
            value = loss(self._model(batch.images).float(), batch)
        self._optimiser.zero_grad()
        self._scaler.scale(value).backward()
        return value.detach()

    def _update(self) -> None:
        self._scaler.step(self._optimiser)  # type: ignore[arg-type]
        self._scaler.update()

    def _require_finite_loss(self) -> None:
        if self._last_loss is not None and not bool(torch.isfinite(self._last_loss)):
            raise Diverged(f"the loss was {float(self._last_loss)} at step {self.num_steps}")


@contextlib.contextmanager
def _single_image_named(batch: Batch) -> Iterator[None]:
    """A context in which AssumptionFailed takes the place of what torch says where BatchNorm cannot learn from one image."""
    try:
        yield
    except ValueError as problem:
        if len(batch) > 1 or "more than 1 value per channel" not in str(problem):
            raise
        raise AssumptionFailed(
            "BatchNorm learns from the batch, and in a batch of one image a layer of this model has a single value a channel: "
            "more samples are needed"
        ) from problem


class Momentum:
    """The update rule, SGD with momentum and weight decay, in few operations; GradScaler takes it for one of torch.optim.

    torch.optim.SGD does the same, but its first use imports all of torch.compile: .7 s and 74 MB of each worker. fused: in one
    operation. On processors torch 2.13 has that leave parameters in halves as they are, and misread those that are slices.
    """

    def __init__(self, model: torch.nn.Module, recipe: TrainRecipe, device: torch.device, *, fused: bool) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.param_groups = [{"params": self._parameters}]
        self._rate: Any = recipe.lr
        if fused:  # there, as the velocities are, for graphs
            self._rate = torch.full((), recipe.lr, dtype=torch.float32, device=device)
        self.velocities = [torch.zeros_like(each) if recipe.momentum else None for each in self._parameters]
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay
        self._step_supports_amp_scaling = self._fused = fused  # GradScaler then sets grad_scale and found_inf for a step

    def set_rate(self, rate: float) -> None:
        """The learning rate from now on."""
        if self._fused:
            self._rate.fill_(rate)
        else:
            self._rate = rate

    def zero_grad(self) -> None:
        """No parameter has a gradient then."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move the parameters that have a gradient."""
        from torch.optim.sgd import sgd

        moved = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        parameters: list[Any] = [self._parameters[place] for place in moved]
        with torch.no_grad():
            sgd(
                parameters,
                [parameter.grad for parameter in parameters],
                [self.velocities[place] for place in moved],
                foreach=not self._fused,
                fused=self._fused,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                weight_decay=self._weight_decay,
                momentum=self._momentum,
                lr=self._rate,
                dampening=0,
                nesterov=False,
                maximize=False,
            )


@repeats
def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean cross-entropy against the labels as given."""
    return torch.nn.functional.cross_entropy(logits, batch.labels)


def images_seen(num_images: int, steps: int, batch_size: int) -> int:
    """How many images `steps` optimiser steps see, in passes whose last batch may be smaller."""
    if not num_images:
        return 0
    steps_a_pass = -(-num_images // batch_size)
    passes, rest = divmod(steps, steps_a_pass)
    return passes * num_images + min(rest * batch_size, num_images)
