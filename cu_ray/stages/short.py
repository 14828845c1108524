"""Learning cut short for a canary: passes of three batches, and steps that stand for many.

So a method goes through all its phases on little data. Batches keep their sizes and streams say their whole length, for
memory depends on both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from cu_ray.lazy import torch
from cu_ray.learning.batches import RowStream
from cu_ray.learning.meter import Meter
from cu_ray.learning.sgd import Sgd
from cu_ray.stages.evaluate import BATCH_SIZES, Keeper, predict
from cu_ray.stages.poison import OnDevice
from cu_ray.stages.tools import Tools
from cu_ray.types import Indices, PoisonedDataset, TrainRecipe

MOST_STEPS = 24  # of one optimisation: eight short passes
MOST_ATTEMPTS = 4  # of one search
FEWEST_BATCHES = 2  # that a pace is taken from
MOST_OF_USUAL = 20  # times the usual time for an image
MOST_CALLS = 500  # batches taken and forward passes; of the package's methods REM takes most, 353 in the tests

Moment = Any  # seconds, or an event on a GPU


class Enough(BaseException):
    """A canary took more batches than it may. No Exception, for those a method may catch."""


class LongEnough(BaseException):
    """A canary took its time, and its pace is known. No Exception either."""


class Watch:
    """Ends a canary that takes too many batches; knows how many image passes there were and how long they took.

    seconds: after which it is long enough, once a few batches were taken.
    """

    def __init__(self, device: torch.device, seconds: float = math.inf) -> None:
        self._device, self._calls, self._seconds = device, 0, seconds
        self._began: float | None = None
        self._batches: list[tuple[Moment, int]] = []  # when each began, and how many passes there were until then
        self._once: set[int] = set()  # the numbers of batches with which something was done that is not done each time
        self.passes = 0  # of one image; a backward pass counts as two

    def batch(self) -> None:
        """Count a batch. Raises Enough where there were too many calls, LongEnough where the time is up."""
        self._batches.append((moment(self._device), self.passes))
        self._began = time.perf_counter() if self._began is None else self._began
        if len(self._batches) > FEWEST_BATCHES and time.perf_counter() - self._began > self._seconds:
            raise LongEnough
        self.call()

    def call(self) -> None:
        """Count a forward pass. Raises Enough where there were too many calls."""
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise Enough

    def once(self) -> None:
        """What is done with this batch is done a few times in an optimisation, however long it is: a graph is recorded."""
        self._once.add(len(self._batches))

    def pace(self) -> tuple[float, float] | None:
        """Seconds a pass, and those that go by once besides; None without any pass.

        From the first batch on, so that new weights and copies made before it do not count. What took very much longer with one
        batch than with most is no pace either: something is computed from a whole set then.
        """
        if not self._batches:
            return None
        marks = [*self._batches, (moment(self._device), self.passes)]
        _synchronize(self._device)
        total = seconds_between(marks[0][0], marks[-1][0])
        # from a batch to the next, or over several where a batch goes through no model: seconds, passes, whether it is once
        learning = list[tuple[float, int, bool]]()
        begin, once = marks[0], False
        for number, end in enumerate(marks[1:], 1):
            once = once or number in self._once
            if end[1] > begin[1]:
                learning.append((seconds_between(begin[0], end[0]), end[1] - begin[1], once))
                begin, once = end, False
        learning = [span for span in learning if not span[2]] or learning
        if not learning:
            return None
        most = MOST_OF_USUAL * statistics.median(seconds / passes for seconds, passes, _ in learning)
        kept = [(seconds, passes) for seconds, passes, _ in learning if seconds <= most * passes]
        pace = sum(seconds for seconds, _ in kept) / sum(passes for _, passes in kept)
        return pace, max(0.0, total - pace * (self.passes - marks[0][1]))


def moment(device: torch.device) -> Moment:
    """Now; on a GPU when it comes to this, which nobody waits for."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(begin: Moment, end: Moment) -> float:
    """From one moment to a later one, both past."""
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    return float(begin.elapsed_time(end)) / 1000


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def short_tools(watch: Watch) -> Tools:
    """The tools for a canary's trial."""
    return Tools(partial(ShortStream, watch), partial(ShortSgd, watch), ShortKeeper, partial(WatchedMeter, watch), few_attempts)


def short_training_tools(watch: Watch) -> Tools:
    """Those for a canary's original, where only what is optimised goes forward."""

    def sgd(model: torch.nn.Module, recipe: TrainRecipe, device: torch.device) -> Sgd:
        return ShortSgd(watch, WatchedMeter(watch).watch(model), recipe, device)

    return Tools(partial(ShortStream, watch), sgd, ShortKeeper)


def few_attempts(most: int) -> Iterable[int]:
    """The first attempts of a search."""
    return range(min(most, MOST_ATTEMPTS))


class ShortStream(RowStream):
    """Of each pass the first two batches and the last, which may be smaller."""

    def __init__(self, watch: Watch, *given: Any) -> None:
        super().__init__(*given)
        self._watch = watch

    def _chunks(self, rows: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        chunks = rows.split(batch_size)
        for chunk in (*chunks[:2], *chunks[2:][-1:]):
            self._watch.batch()
            yield chunk


class ShortSgd(Sgd):
    """At most 24 real steps, each counted as so many that all are made: what a method does late comes too.

    A loss that is not finite is no fault: the weights are untrained, and memory does not depend on them.
    """

    def __init__(self, watch: Watch, model: torch.nn.Module, recipe: TrainRecipe, device: torch.device) -> None:
        super().__init__(model, recipe, device)
        self._watch, self._stride = watch, math.ceil(recipe.steps / MOST_STEPS)

    def step(self, *given: Any) -> None:
        """One real step."""
        before = self._graphs.progress if self._graphs else 0
        super().step(*given)
        if self._graphs and self._graphs.progress != before:
            self._watch.once()
        self.num_steps += self._stride - 1

    def _require_finite_loss(self) -> None:
        pass


class ShortKeeper(Keeper):
    """Looks at a few test images only, and finds each model better than the one before: it keeps a copy of every one."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._looks = 0

    def _score(self, model: torch.nn.Module) -> float:
        predict_some(model, self._poisoned, self._data, self._precision)
        self._looks += 1
        return float(self._looks)


class WatchedMeter(Meter):
    """Tells the watch of every pass."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def _count_forward(self, num_images: int) -> None:
        self._watch.call()
        self._watch.passes += num_images
        super()._count_forward(num_images)

    def _count_backward(self, num_images: int) -> None:
        self._watch.passes += 2 * num_images
        super()._count_backward(num_images)


def predict_some(
    model: torch.nn.Module, poisoned: PoisonedDataset, data: OnDevice, precision: str, *, training: Iterable[Indices] = ()
) -> int:
    """What an evaluation predicts, in its order: test images, these with the trigger, sets of training rows; how many of them.

    Of each the first two batches and the last, which may be smaller.
    """
    num_images = 0
    test_rows = torch.arange(len(poisoned.selection_half), device=data.device)
    views = [(data.test, test_rows, False)]
    if poisoned.corruption.stamp is not None:
        views.append((data.test, test_rows, True))
    views += [(data.train, data.rows(rows), False) for rows in training]
    for images, rows, stamp_all in views:
        chunks = rows.split(BATCH_SIZES[data.device.type])
        some = torch.cat([*chunks[:2], *chunks[2:][-1:]])
        predict(model, images, some, precision, stamp_all=stamp_all)
        num_images += len(some)
    return num_images
