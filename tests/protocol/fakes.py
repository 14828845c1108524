"""Stand-ins by which a method can be watched update by update: fixed batches, a task, an optimisation that takes notes."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from cu_ray.learning.layers import initialise
from cu_ray.learning.sgd import Sgd
from cu_ray.types import Batch, TrainRecipe
from tests.protocol import reference

NUM_CLASSES, SIDE = 3, 5
RECIPE = TrainRecipe(steps=8, lr=0.2, batch_size=4, momentum=0.9, weight_decay=0.05, precision="fp32")


def small_net(seed, *, channels=1, side=SIDE, num_classes=NUM_CLASSES, dtype=torch.float64):
    """The net of `reference.forward` in eval mode, every parameter and statistic away from its usual start."""
    nn = torch.nn
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.CELU(alpha=reference.CELU_ALPHA)),
        nn.Sequential(nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.CELU(alpha=reference.CELU_ALPHA)),
        nn.Sequential(nn.Flatten(), nn.Linear(2 * (side - 3) ** 2, num_classes)),
    ).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator, dtype=dtype))
            if name.endswith(("1.weight", "running_var")) and tensor.dim() == 1:
                tensor.abs_().add_(0.5)
    return model.eval()


def snapshot(model):
    """Copies of a model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(first, second):
    """Whether two snapshots are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(computed, expected, *, rtol=1e-5, atol=1e-6):
    """Two states are equal but for rounding (logits are cast to float32)."""
    assert computed.keys() == expected.keys()
    for name, tensor in computed.items():
        message = f"{name} differs"
        torch.testing.assert_close(
            tensor.double(), expected[name].double(), rtol=rtol, atol=atol, msg=lambda text, m=message: m + text
        )


def some_batches(seed, sizes, *, in_deletion=None, channels=1, side=SIDE, num_classes=NUM_CLASSES):
    """Random batches of these sizes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        images = torch.randn(size, channels, side, side, generator=generator, dtype=torch.float64)
        labels = torch.randint(num_classes, (size,), generator=generator)
        found = torch.randint(2, (size,), generator=generator).bool() if in_deletion is None else torch.full((size,), in_deletion)
        batches.append(Batch(images, labels, torch.arange(size), found))
    return batches


class FixedStream:
    """Yields the same batches in every epoch; notes each batch that is taken in a log."""

    def __init__(self, name, batches, log):
        self.name, self.batches, self.log = name, batches, log

    def __len__(self):
        return sum(map(len, self.batches))

    def epoch(self, batch_size=None, *, shuffle=True, augment=True):
        """The batches in order, joined and split anew where a batch size is given."""
        assert self.batches, f"a definition that does not speak of the {self.name} stream takes batches from it"
        for number, batch in enumerate(self.batches if batch_size is None else resplit(self.batches, batch_size)):
            self.log.append((self.name, number, augment))
            yield batch


def resplit(batches, batch_size):
    """The same samples in batches of another size."""
    fields = ("images", "labels", "indices", "in_deletion")
    whole = [torch.cat([getattr(batch, field) for batch in batches]).split(batch_size) for field in fields]
    return [Batch(*parts) for parts in zip(*whole, strict=True)]


class NotingSgd(Sgd):
    """The package's optimisation loop; keeps a snapshot and the modules' modes after every step."""

    def __init__(self, model, recipe, device):
        super().__init__(model, recipe, device)
        self.model, self.recipe, self.states, self.modes = model, recipe, [], []

    def step(self, batch, loss):
        """One step, noted."""
        super().step(batch, loss)
        self.states.append(snapshot(self.model))
        self.modes.append({name: module.training for name, module in self.model.named_modules()})


class FakeTask:
    """What a method is given, with fixed batches. A step on a batch yields what the reference must yield."""

    def __init__(self, original, *, retain=(), deletion=(), everything=(), fresh=None, recipe=RECIPE, memo=None):
        self.original, self._fresh, self._memo = original, fresh, memo
        self.log, self.offers, self.notes, self.memo_calls = [], 0, {}, []
        self.retain = FixedStream("retain", list(retain), self.log)
        self.deletion = FixedStream("deletion", list(deletion), self.log)
        self.everything = FixedStream("everything", list(everything), self.log)
        self.num_classes, self.device, self.train = NUM_CLASSES, torch.device("cpu"), recipe
        self.generator = torch.Generator().manual_seed(0)
        self.reinitialised, self.sgds = [], []

    def fresh(self):
        """The random teacher."""
        return self._fresh

    def blocks(self, model):
        """The children."""
        return list(model.children())

    def reinitialise(self, modules):
        """As the stage does it; notes which modules."""
        self.reinitialised += modules
        initialise(modules, seed=12345)
        self.after_reinitialising = snapshot(self.original)

    def sgd(self, model, *, steps, lr):
        """The package's loop with the stand-in's recipe."""
        self.sgds.append(
            NotingSgd(model, replace(self.train, steps=steps or self.train.steps, lr=lr or self.train.lr), self.device)
        )
        return self.sgds[-1]

    def attempts(self, most):
        """All of them."""
        return range(most)

    def remember(self, name, compute, **depends_on):
        """The given memo, or what `compute` gives on a task of its own."""
        self.memo_calls.append((name, depends_on))
        return self._memo if self._memo is not None else compute(self._copy())

    def offer(self, model):
        """Count the offers."""
        self.offers += 1

    def note(self, **values):
        """Keep the notes."""
        self.notes |= values

    def _copy(self):
        task = copy.copy(self)
        task.original = copy.deepcopy(self.original)
        return task

    @property
    def states(self):
        """The snapshots after each step of the only optimisation."""
        (sgd,) = self.sgds
        return sgd.states
