"""Stage 3: what a method makes of the original model."""

from __future__ import annotations

import copy
import math
import numbers
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from cu_ray.errors import ContractBroken
from cu_ray.identity import key_of, seed_for
from cu_ray.lazy import torch
from cu_ray.learning.batches import RowStream
from cu_ray.learning.layers import initialise
from cu_ray.learning.sgd import Sgd
from cu_ray.plugins import name_of
from cu_ray.stages.evaluate import Keeper
from cu_ray.stages.poison import OnDevice
from cu_ray.stages.process import seed_generators, state, state_kept
from cu_ray.stages.reasons import blamed
from cu_ray.stages.returned import require_like_the_original
from cu_ray.stages.tools import WHOLE, Tools
from cu_ray.stages.train import build_model, require_finite
from cu_ray.types import LEARNING_VERSION, Cost, DeletionSplit, Indices, NamedTensors, PoisonedDataset, TrainRecipe, TrialSpec


@dataclass(frozen=True, eq=False)
class Memo:
    """Tensors on the device, and what computing them took."""

    tensors: NamedTensors
    cost: Cost
    seconds: float


class Memos(Protocol):
    """Where memos are kept between trials."""

    def load(self, key: str) -> Memo | None:
        """A memo, or None where nobody computed it yet."""

    def save(self, key: str, memo: Memo) -> None:
        """Keep a memo."""


@dataclass(frozen=True, eq=False)
class Unlearned:
    """An unlearned model in eval mode; what making it costs alone, and what was really paid; the method's notes."""

    model: torch.nn.Module
    cost: Cost
    spent: Cost
    seconds: float  # alone
    seconds_spent: float
    notes: dict[str, float]
    changed_share: float  # of the parameters


def unlearn(
    spec: TrialSpec,
    original: torch.nn.Module,
    poisoned: PoisonedDataset,
    data: OnDevice,
    split: DeletionSplit,
    memos: Memos,
    tools: Tools = WHOLE,
) -> Unlearned:
    """The unlearned model. The original is left as it was.

    Raises Diverged where a weight is not finite, ContractBroken where the method returns another architecture; and what the
    method raises, noted to come from it.
    """
    name = name_of(spec.method)
    keeper = tools.keeper(spec.keep, poisoned, data, spec.original.setting.train.precision)
    started = now(data.device)
    task = Task(spec, original, poisoned, data, split, memos, keeper, tools, seed_for("unlearn", spec.key))
    with blamed(name):
        model = spec.method.unlearn(task)
    seconds = now(data.device) - started - task.watched_seconds
    require_like_the_original(name, original, model, task.meter.hook)
    require_finite(model, f"{name} returned a model whose")
    with blamed(name):  # it may have offered another one than it returned
        model = keeper.keep(model)
    return Unlearned(
        task.meter.let_go(model),
        cost=task.meter.cost + task.memo_cost,
        spent=task.meter.cost,
        seconds=seconds - task.stored_seconds + task.memo_seconds,
        seconds_spent=seconds,
        notes=task.notes,
        changed_share=_changed_share(original, model),
    )


def now(device: torch.device) -> float:
    """A clock in seconds, read when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Task:
    """What a method is given: see `cu_ray.types.UnlearningTask`."""

    def __init__(
        self,
        spec: TrialSpec,
        original: torch.nn.Module,
        poisoned: PoisonedDataset,
        data: OnDevice,
        split: DeletionSplit,
        memos: Memos,
        keeper: Keeper,
        tools: Tools,
        seed: int,
    ) -> None:
        self._spec, self._poisoned, self._data, self._split = spec, poisoned, data, split
        self._memos, self._keeper, self._tools, self._original = memos, keeper, tools, original
        self._seed, self._draws = seed, 0
        self._put_back = state()
        self.meter, self.memo_cost, self.memo_seconds = tools.meter(), Cost(), 0.0
        self.watched_seconds = 0.0  # of what the method has no part in
        self.stored_seconds = 0.0  # of memos' way from and to where they are kept, which a trial alone would not take
        self.notes: dict[str, float] = {}
        self.train: TrainRecipe = spec.original.setting.train
        self.device = data.device
        self.num_classes = poisoned.dataset.num_classes
        self.generator = torch.Generator(data.device).manual_seed(seed)
        self.original = self.meter.watch(copy.deepcopy(original).eval())
        in_deletion = torch.zeros(len(poisoned.labels), dtype=torch.bool, device=data.device)
        in_deletion[data.rows(split.deletion)] = True

        def stream(called: str, rows: Indices) -> RowStream:
            return tools.stream(data.train, rows, in_deletion, self.train.batch_size, self.generator, called)

        self.retain, self.deletion = stream("retain set", split.retain), stream("deletion set", split.deletion)
        self.everything = stream("training set", np.sort(np.concatenate([split.retain, split.deletion])))

    def fresh(self) -> torch.nn.Module:
        """A model of the same architecture with new weights, in eval mode."""
        model = build_model(self._spec.original.setting.model, self._poisoned, self.device, self._next_seed())
        return self.meter.watch(model.eval())

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The model's blocks from input to output."""
        blocks: list[torch.nn.Module] = self._spec.original.setting.model.blocks(model)
        return blocks

    def reinitialise(self, modules: list[torch.nn.Module]) -> None:
        """New weights for the modules."""
        initialise(modules, self._next_seed())

    def sgd(self, model: torch.nn.Module, *, steps: int | None, lr: float | None) -> Sgd:
        """The optimisation loop with the training recipe's batch size, momentum, weight decay and precision."""
        recipe = replace(self.train, steps=steps or self.train.steps, lr=lr or self.train.lr)
        return self._tools.sgd(model, recipe, self.device)

    def attempts(self, most: int) -> Iterable[int]:
        """The numbers of a search's attempts."""
        return self._tools.attempts(most)

    def remember(self, name: str, compute: Callable[[Any], NamedTensors], **depends_on: Any) -> NamedTensors:
        """What `compute` gives, from the memos where it is known."""
        method = self._spec.method
        key = key_of(
            {
                "memo": name,
                "depends_on": depends_on,
                "method": [name_of(method), method.version],
                "original": self._spec.original.key,
                "deletion": self._spec.deletion_identity,
                "device": self.device.type,
                "learning": LEARNING_VERSION,
                **self._spec.repetition,
            }
        )
        began = now(self.device)
        known = self._memos.load(key)
        self.stored_seconds += now(self.device) - began
        if known is not None:
            self.memo_cost += known.cost
            self.memo_seconds += known.seconds
            return dict(known.tensors)
        with state_kept():
            self._put_back()  # a memo is for other trials too: it must not depend on what this method switched
            task = Task(
                self._spec,
                self._original,
                self._poisoned,
                self._data,
                self._split,
                self._memos,
                self._keeper,
                self._tools,
                seed_for("memo", key),
            )
            seed_generators(seed_for("global", key))
            started = now(self.device)
            tensors = _require_tensors(name, compute(task))
        ended = now(self.device)
        self._memos.save(key, Memo(tensors, task.meter.cost, ended - started - task.stored_seconds))
        self.stored_seconds += now(self.device) - ended + task.stored_seconds
        self.meter.cost += task.meter.cost
        return dict(tensors)

    def offer(self, model: torch.nn.Module) -> None:
        """Show the model at the end of an epoch. Looking at it is no part of what the method costs."""
        if not self._keeper.looks:  # for the clock waits for the device
            return
        cost, started = self.meter.cost, now(self.device)
        self._keeper.offer(model)
        self.meter.cost = cost
        self.watched_seconds += now(self.device) - started

    def note(self, **values: float) -> None:
        """Finite numbers to be recorded with the trial. Raises ContractBroken for what is no number."""
        noted = {name: _number(name, value) for name, value in values.items()}
        self.notes.update({name: value for name, value in noted.items() if math.isfinite(value)})

    def _next_seed(self) -> int:
        self._draws += 1
        return seed_for("weights", self._seed, self._draws)


def _number(note: str, value: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise ContractBroken(f"task.note was given a {type(value).__name__} as {note}: a number is needed")
    return float(value)


def _require_tensors(memo: str, computed: Any) -> NamedTensors:
    """The tensors without their gradients' history. Raises ContractBroken where something else was to be remembered."""
    needed = "a dict of tensors by name is needed"
    if not isinstance(computed, dict):
        raise ContractBroken(f"task.remember was given a {type(computed).__name__} as {memo!r}: {needed}")
    for name, tensor in computed.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ContractBroken(f"task.remember was given a {type(tensor).__name__} as {memo!r}, entry {name!r}: {needed}")
        if tensor.layout != torch.strided or tensor.dtype in (torch.bfloat16, torch.complex32):
            raise ContractBroken(f"task.remember was given {memo!r}, entry {name!r}, which the store has no format for: .float()")
    return {name: tensor.detach() for name, tensor in computed.items()}


def _changed_share(original: torch.nn.Module, model: torch.nn.Module) -> float:
    pairs = list(zip(original.parameters(), model.parameters(), strict=True))
    changed = torch.stack([(before != after).sum() for before, after in pairs]).sum()  # the host waits once, not for each
    return int(changed) / sum(before.numel() for before, _ in pairs)
