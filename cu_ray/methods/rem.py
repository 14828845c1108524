"""Redirection for erasing memory (REM): the corruption is led into channels that are added for it and then cut off."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from cu_ray.lazy import torch
from cu_ray.learning.accuracy import accuracy_as_given
from cu_ray.learning.activations import last_linear_layer
from cu_ray.learning.tied_dropout import Taker, TiedDropout, channels_in, takers
from cu_ray.methods import Method
from cu_ray.methods.npo import negative_preference
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, Optimisation, Sizes, UnlearningTask

FORGOTTEN = 0.2  # accuracy on the deletion set at which an erasure ends, and below which it earns no more
MOST_PASSES = 100  # of one erasure
KEPT_SHARE = 0.2  # of the memory channels that a sample sees


@dataclass(frozen=True)
class Rem(Method):
    """Erase, then train on everything with a memory beside the network (Schoepf et al. 2505.17730), in turns.

    Every layer gets as many memory channels as it has. A sample sees a fixed fifth of them, drawn for its row; the deletion set
    shares one draw. Erasure: with the memory off, NPO on the deletion set, until its accuracy is at most 0.2. Redirection: a
    pass over the training set that descends 2 / beta log sigmoid(beta (CE - CE_reference)) with the memory on, while the
    deletion set goes on being erased with the memory off. Of the models after each turn, without memory, the one of the best
    acc(retain set) (1 - max(acc(deletion set), 0.2)) is kept. The reference is the original with a memory of random weights.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "erase by NPO, then train with added memory channels that take up the corruption and are cut off"
    cost_is_bound: ClassVar[bool] = True
    beta: Annotated[float, Search(0.1, 10, log=True), Bound(low=0, open_low=True)] = 1.0
    lr: Annotated[float, Search(5e-4, 5e-2, log=True), Bound(low=0, open_low=True)] = 0.005
    steps: Annotated[int, Bound(low=1)] = 980

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The best of the models, its memory cut off."""
        model, memory = task.original, self.memory(task)
        sgd = task.sgd(memory.model, steps=self.steps, lr=self.lr)
        best, kept = -1.0, copy.deepcopy(model.state_dict())
        turns = 0
        while not sgd.done:
            self.erase(task, memory, sgd)
            self.redirect(task, memory, sgd)
            memory.cut_off(model)
            found, turns = self.value(task, model), turns + 1
            if found > best:
                best, kept = found, copy.deepcopy(model.state_dict())
            task.offer(model)
        model.load_state_dict(kept)
        task.note(value=best, turns=turns)
        return model

    def memory(self, task: UnlearningTask) -> Memory:
        """The model with what the corruption is led into."""
        return Memory(task)

    def erase(self, task: UnlearningTask, memory: Memory, sgd: Optimisation) -> None:
        """Passes of NPO over the deletion set, without memory, until its given labels are forgotten."""

        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return negative_preference(logits, memory.reference_logits(batch), batch.labels, self.beta)

        memory.off()
        for _ in task.attempts(MOST_PASSES):
            if sgd.done or accuracy_as_given(memory.model, task.deletion, augment=False) <= FORGOTTEN:
                break
            sgd.epoch(task.deletion, loss)

    def redirect(self, task: UnlearningTask, memory: Memory, sgd: Optimisation) -> None:
        """A pass over the training set that learns with memory, and goes on erasing without."""

        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            found, reference = batch.in_deletion, memory.reference_logits(batch)
            learned = -negative_preference(logits, reference, batch.labels, self.beta)
            memory.off()
            if not bool(found.any()):
                return learned
            without = memory.model(batch.images[found]).float()
            return learned + negative_preference(without, reference[found], batch.labels[found], self.beta)

        for batch in task.everything.epoch():
            if sgd.num_steps >= self.steps:
                break
            memory.on(batch)
            sgd.step(batch, loss)

    def value(self, task: UnlearningTask, model: torch.nn.Module) -> float:
        """What the models are compared by: what is kept of the retain set, times what is forgotten of the deletion set."""
        retained, found = (accuracy_as_given(model, samples, augment=False) for samples in (task.retain, task.deletion))
        return retained * (1 - max(found, FORGOTTEN))

    def cost(self, sizes: Sizes) -> Cost:
        """At most three images forward for each that a step sees; each turn all samples once, the deletion set twice more."""
        everything = sizes.deletion + sizes.retain
        seen = self.steps * min(sizes.batch_size, everything)
        turns = -(-self.steps // max(1, everything // sizes.batch_size))
        return Cost(3 * seen + turns * (everything + sizes.deletion), seen + turns * sizes.deletion)


class Memory:
    """A model with memory channels beside its own, on for the samples of a batch or off; and how it was at first.

    While it is off, no memory reaches any of the model's own channels: the model then is what `cut_off` leaves.
    """

    def __init__(self, task: UnlearningTask) -> None:
        self.model = copy.deepcopy(task.original)
        widened = _widen(self.model, last_linear_layer(task.blocks(self.model)[-1]))
        task.reinitialise([self.model])
        for own, before in self._pairs(task.original):
            own.copy_(before)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shared = len(task.everything)  # the row of the draws that the deletion set shares
        drawn: dict[int, torch.Tensor] = {}
        for _, width in widened:
            if width not in drawn:
                table = torch.rand(self._shared + 1, width, generator=task.generator, device=task.device)
                drawn[width] = table < KEPT_SHARE
        self._begin(TiedDropout(widened, drawn))

    def _begin(self, tied: TiedDropout) -> None:
        self.model.eval()
        self.tied, self._reference = tied, copy.deepcopy(self.model)

    def on(self, batch: Batch) -> None:
        """Let the model learn with what these samples see of the memory."""
        # a row beyond the number of samples (others are held out) has the draw of another one
        self.tied.rows_B = torch.where(batch.in_deletion, self._shared, batch.indices % self._shared)
        self.model.train()

    def off(self) -> None:
        """Let the model do without its memory, BatchNorm by its running statistics."""
        self.tied.rows_B = None
        self.model.eval()

    def reference_logits(self, batch: Batch) -> torch.Tensor:
        """Of the model as it was at first, with as much memory as the model itself has now [B, classes]."""
        with torch.no_grad():
            logits: torch.Tensor = self._reference(batch.images).float()
        return logits

    def cut_off(self, model: torch.nn.Module) -> None:
        """Write into a model without memory what is not memory."""
        for own, before in self._pairs(model):
            before.copy_(own)

    def _pairs(self, model: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What of each tensor is not memory, and the same tensor of a model without."""
        plain = model.state_dict()
        return [(tensor[tuple(map(slice, plain[name].shape))], plain[name]) for name, tensor in self.model.state_dict().items()]


def _widen(model: torch.nn.Module, head: torch.nn.Linear) -> list[tuple[Taker, int]]:
    """Double the channels of all layers, but for the image and the logits; gives each that takes memory, and its former width.

    The new tensors hold nothing yet. Raises AssumptionFailed for a layer of which it is not known how to.
    """
    widths = {layer: channels_in(layer) for layer in takers(model, head)}
    for module in model.modules():
        if module is head:
            head.in_features *= 2
            _resize(head, head.out_features, head.in_features)
        elif isinstance(module, torch.nn.Conv2d):
            module.in_channels *= 2 if module in widths else 1
            module.out_channels *= 2
            _resize(module, module.out_channels, module.in_channels)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.num_features *= 2
            _resize(module, module.num_features)
    return list(widths.items())


def _resize(layer: torch.nn.Module, *sizes: int) -> None:
    """Give the layer's tensors these sizes in their first dimensions."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, torch.nn.Parameter(parameter.new_empty(*sizes[: parameter.dim()], *parameter.shape[len(sizes) :])))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        setattr(layer, name, buffer.new_empty(*sizes[: buffer.dim()]) if buffer.dim() else buffer)
