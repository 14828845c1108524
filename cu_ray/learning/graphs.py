"""Steps recorded once as a CUDA graph and replayed: the host gives one order a step instead of some two hundred.

What is recorded is what the device was told, so only what tells it the same each time may be: see `repeats`. All else runs
plainly, to the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from cu_ray.lazy import torch
from cu_ray.learning.condition import HOOKS, Condition
from cu_ray.learning.meter import taped
from cu_ray.types import Batch, Loss

WARM_UPS = 3  # plain steps of a kind before it is recorded: libraries choose kernels and take workspaces in the first ones
MOST_KINDS = 4  # of steps that one optimisation records; a loss made anew for each step must not fill the memory
TRUSTED = ("torch.nn.", "cu_ray.models.")  # where modules come from that repeat

Step = Callable[[Batch, Loss], "torch.Tensor"]
Replay = Callable[[], object]
Given = TypeVar("Given")


def repeats(function: Given) -> Given:
    """The same function or module class, with the promise that a CUDA graph may stand for it.

    That is: for batches of one shape it does the same operations each time, with the same Python numbers (no schedule, no
    counter, no `random`), reads and writes tensors in place where they lie, and never looks at a value on the host.
    """
    function.repeats = True  # type: ignore[attr-defined]
    return function


class Recorder(Protocol):
    """What runs, records and replays work on a device."""

    def warm_up(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """What the work gives, and whether it can be recorded as far as can be seen."""

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """What does the work, not done yet, and where its result will be. Raises what keeps it from being recorded."""


@dataclass(frozen=True, eq=False)
class _Recorded:
    batch: Batch  # where a replay reads
    replay: Replay
    loss: torch.Tensor  # where it leaves the loss
    gradients: list[torch.Tensor | None]
    counts: list[Callable[[], None]]  # what meters counted while it was recorded


class Graphs:
    """Optimiser steps of one model, replayed where they repeat."""

    def __init__(self, model: torch.nn.Module, recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder
        self._parameters = list(model.parameters())
        self._warm_ups: dict[Any, int] = {}
        self._recorded: dict[Any, _Recorded] = {}
        self._plain = False
        self._condition = Condition(model)

    @property
    def progress(self) -> int:
        """A number that grows with each plain step that precedes a recording, and with each recording."""
        return sum(self._warm_ups.values()) + len(self._recorded)

    def run(self, step: Step, batch: Batch, loss: Loss) -> torch.Tensor:
        """The loss of one step. A replayed step leaves gradients and counts where a plain one does."""
        if self._plain or not getattr(loss, "repeats", False) or any(tensor.requires_grad for tensor in _tensors(batch)):
            return step(batch, loss)
        kind = (loss, _layout(batch), self._condition.read())
        if kind not in self._recorded and self._warm_ups.get(kind, 0) < WARM_UPS:
            return self._warm_up(kind, step, batch, loss)
        if kind not in self._recorded and not self._record(kind, step, batch, loss):
            return step(batch, loss)
        return self._replayed(self._recorded[kind], batch)

    def _warm_up(self, kind: Any, step: Step, batch: Batch, loss: Loss) -> torch.Tensor:
        if kind not in self._warm_ups:
            self._plain = not all(map(_module_repeats, self._model.modules()))
            if self._plain or len(self._warm_ups) >= MOST_KINDS:
                return step(batch, loss)
        value, can_be_recorded = self._recorder.warm_up(lambda: step(batch, loss))
        self._warm_ups[kind] = self._warm_ups.get(kind, 0) + 1
        self._plain = not can_be_recorded
        return value

    def _record(self, kind: Any, step: Step, batch: Batch, loss: Loss) -> bool:
        """Whether it was recorded. A failure leaves nothing behind: what is recorded is not done."""
        own = Batch(*(tensor.clone() for tensor in _tensors(batch)))
        try:
            with taped() as counts:
                replay, value = self._recorder.record(lambda: step(own, loss))
        except Exception:  # a method's own fault comes again in the plain step
            self._plain = True
            self._recorded.clear()
            return False
        else:
            gradients = [parameter.grad for parameter in self._parameters]
            self._recorded[kind] = _Recorded(own, replay, value, gradients, counts)
            return True
        finally:
            for parameter in self._parameters:
                parameter.grad = None

    def _replayed(self, recorded: _Recorded, batch: Batch) -> torch.Tensor:
        for tensor, given in zip(_tensors(recorded.batch), _tensors(batch), strict=True):
            tensor.copy_(given)
        recorded.replay()
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        for count in recorded.counts:
            count()
        return recorded.loss


class CudaRecorder:
    """Records CUDA graphs on a stream of their own; all of one recorder share their memory, as no two run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Done on the recording stream, where libraries then have what they need; not to be recorded where the host waits."""
        with _on_side_stream(self._device), _waits_noted() as waits:
            value = work()
        return value, not waits

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """A graph."""
        graph, draws = torch.cuda.CUDAGraph(), _generator(self._device)
        before = draws.clone_state()
        try:
            with (
                _on_side_stream(self._device) as stream,  # also where torch.cuda.graph fails to leave the stream
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                value = work()
        except BaseException:
            draws.graphsafe_set_state(before)  # which torch leaves as if it were still recorded
            self._end_recording()
            raise
        return graph.replay, value

    def _end_recording(self) -> None:
        """Tell the allocator, which torch does not where a recording failed."""
        with contextlib.suppress(RuntimeError, AttributeError):  # it may have been told; and these are torch's own names
            index = torch.cuda.current_device()
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


def _generator(device: torch.device) -> torch.Generator:
    """The device's own generator."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one a process: libraries keep workspaces for each stream


@contextlib.contextmanager
def _on_side_stream(device: torch.device) -> Iterator[torch.cuda.Stream]:
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield stream
    finally:
        torch.cuda.set_stream(current)
        current.wait_stream(stream)


@contextlib.contextmanager
def _waits_noted() -> Iterator[list[str]]:
    """A context that notes where the host waits for the device, unless somebody else already looks for that."""
    waits: list[str] = []
    if torch.cuda.get_sync_debug_mode() != 0:
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [text for text in (str(each.message) for each in caught) if "synchronizing CUDA operation" in text]


def _module_repeats(module: torch.nn.Module) -> bool:
    hooks = [hook for kind in HOOKS for hook in vars(module)[kind].values()]
    known = type(module).__module__.startswith(TRUSTED) or getattr(type(module), "repeats", False)
    return known and "forward" not in vars(module) and all(getattr(hook, "repeats", False) for hook in hooks)


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [getattr(batch, field.name) for field in fields(batch)]


def _layout(batch: Batch) -> tuple[Any, ...]:
    return tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in _tensors(batch))
