"""Optimisations with and without recording, on any device, and the trials that they are compared on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cu_ray.detections.uniform import Uniform
from cu_ray.learning.graphs import Graphs
from cu_ray.learning.meter import Meter
from cu_ray.learning.sgd import Momentum, Sgd
from cu_ray.methods.bad_teaching import BadTeaching
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.cognac import Cognac
from cu_ray.methods.cuts import Cuts
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.methods.fine_pruning import FinePruning
from cu_ray.methods.gradient_ascent import GradientAscent
from cu_ray.methods.npo import Npo
from cu_ray.methods.relabelling import Relabelling
from cu_ray.methods.salun import Salun
from cu_ray.methods.scrub import Scrub
from cu_ray.models.resnet9 import ResNet9
from cu_ray.stages.poison import detect, poison, upload
from cu_ray.stages.tools import Tools
from cu_ray.stages.train import build_model, train
from cu_ray.stages.unlearn import unlearn
from tests.protocol.tiny import RECIPE, tiny_dataset, trial_spec

DATASET = tiny_dataset()
METHODS = {
    "SCRUB": Scrub(steps=24, msteps=9, lr=0.01),
    "bad teaching": BadTeaching(steps=24),
    "CF-k": CatastrophicForgetting(k=2, steps=24),
    "EU-k": ExactUnlearning(k=2, steps=24),
    "retraining": ExactUnlearning(steps=24),
}
FURTHER = {
    "gradient ascent": GradientAscent(steps=24),
    "NPO": Npo(steps=24),
    "relabelling": Relabelling(steps=24),
    "SalUn": Salun(steps=24),
    "Cognac": Cognac(steps=24),
    "CUTS": Cuts(steps=24),
    "fine-pruning": FinePruning(steps=24),
}


class Tape(TorchDispatchMode):
    """Remembers operations with the memory that they read and wrote, as a graph does, and does them again there."""

    def __init__(self):
        super().__init__()
        self._done = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = tree_map(alias, (args, kwargs or {}))
        known = {each.untyped_storage().data_ptr() for each in tree_leaves(given) if isinstance(each, torch.Tensor)}
        self._done.append((operation, given, [alias(each) for each in tree_leaves(result)], known))
        return result

    @torch.no_grad()
    def replay(self):
        """The same work on what lies in that memory now."""
        for operation, (args, kwargs), results, known in self._done:
            for target, value in zip(results, tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(target, torch.Tensor) and target.untyped_storage().data_ptr() not in known:
                    target.copy_(value)


def alias(value):
    """The same memory, whatever becomes of the tensor."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class StandIn:
    """Records as a GPU does: the work is not done, and a replay knows no more of Python."""

    def __init__(self, sgd, *, can_be_recorded=True, fault=None):
        self._model, self._optimiser = sgd._model, sgd._optimiser
        self._can_be_recorded, self._fault = can_be_recorded, fault
        self.recordings = self.replays = 0

    def warm_up(self, work):
        """The work done, and whether the test wants it to be recorded."""
        return work(), self._can_be_recorded

    def record(self, work):
        """Done, and undone."""
        self.recordings += 1
        before = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        velocities = [each.clone() for each in self._optimiser.velocities]
        with Tape() as tape:
            value = work()
        self._model.load_state_dict(before)
        for each, velocity in zip(self._optimiser.velocities, velocities, strict=True):
            each.copy_(velocity)
        if self._fault is not None:
            raise self._fault

        def replay():
            self.replays += 1
            tape.replay()

        return replay, value


class PlainSgd(Sgd):
    """Never records; updates as on a GPU."""

    def __init__(self, model, recipe, device):
        super().__init__(model, recipe, device)
        self._optimiser = Momentum(model, recipe, device, fused=True)
        self._graphs = None


class RecordedSgd(PlainSgd):
    """Records by the stand-in; `made` are all of them."""

    made: ClassVar[list] = []
    how: ClassVar[dict] = {}

    def __init__(self, *given):
        super().__init__(*given)
        self.recorder = StandIn(self, **self.how)
        self._graphs = Graphs(self._model, self.recorder)
        type(self).made.append(self)


class NoMemos:
    """Knows nothing and keeps nothing."""

    def load(self, key):
        """Nobody computed it yet."""

    def save(self, key, memo):
        """Nobody will ask for it."""


@dataclass
class Outcome:
    """What came of a training or a trial."""

    state: dict
    cost: object = None


def unlearned(method, sgd, device="cpu", *, width=2, precision="fp32", batch_size=16):
    """A trial of the method from untrained weights, with an optimisation of that class."""
    device = torch.device(device)
    recipe = replace(RECIPE, precision=precision, batch_size=batch_size)
    spec = wide(trial_spec(DATASET, method, recipe=recipe), width)
    poisoned = poison(DATASET, spec.original.setting.manipulation, seed=0)
    data = upload(poisoned, device)
    original = build_model(spec.original.setting.model, poisoned, device, 0).eval()
    split = detect(poisoned, Uniform(), spec.deletion_size, None)
    result = unlearn(spec, original, poisoned, data, split, NoMemos(), Tools(sgd=sgd))
    return Outcome(on_cpu(result.model), result.cost)


def trained(sgd, device="cpu", *, width=2, precision="fp32", steps=24):
    """The original after its training."""
    spec = wide(trial_spec(DATASET, Scrub(), recipe=replace(RECIPE, precision=precision, steps=steps)), width).original
    poisoned = poison(DATASET, spec.setting.manipulation, seed=0)
    meter = Meter()

    def watched(model, *given):
        return sgd(meter.watch(model), *given)

    model = train(spec, poisoned, upload(poisoned, torch.device(device)), Tools(sgd=watched))
    return Outcome(on_cpu(model), meter.cost)


def wide(spec, width):
    """The trial on a ResNet-9 of that width."""
    return replace(spec, original=replace(spec.original, setting=replace(spec.original.setting, model=ResNet9(width=width))))


def on_cpu(model):
    """Copies of what it is made of."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
