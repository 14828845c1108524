"""A canary: a training or a trial cut short, run before a sweep to learn what memory and time the whole one will take."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import math
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cu_ray.errors import Diverged
from cu_ray.lazy import torch
from cu_ray.learning.precision import require
from cu_ray.stages.evaluate import images_evaluated, predict, training_sets
from cu_ray.stages.evidence import OriginalsEvidence
from cu_ray.stages.poison import OnDevice, detect, nothing_found, poison, upload
from cu_ray.stages.process import device_is_lost, is_from_signal
from cu_ray.stages.reasons import is_out_of_memory
from cu_ray.stages.short import MOST_CALLS, Enough, LongEnough, Watch, predict_some, short_tools, short_training_tools
from cu_ray.stages.train import build_model, train
from cu_ray.stages.unlearn import Memo, now, unlearn
from cu_ray.types import Dataset, DeletionSplit, OriginalSpec, PoisonedDataset, TrialSpec


@dataclass(frozen=True)
class Measure:
    """What a canary took on a device. Memory in bytes; seconds a forward pass of one image, of which a backward pass is two.

    `peak_bytes` is all that it held at once, the context of CUDA apart. Of that, `data_bytes`, `original_bytes` and
    `memo_bytes` are what a warm worker keeps on the device from one trial to the next.
    """

    device: str
    device_bytes: int
    peak_bytes: int
    data_bytes: int
    original_bytes: int
    memo_bytes: int
    seconds_per_pass: float | None  # None where no image went through a model, or learning came to no end
    besides_seconds: float | None  # of a whole trial, its evaluation among them; None where it did not come to that
    stopped: str | None  # why it did not come to its end; None where it did

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Measure(**values)` undoes it."""
        return dataclasses.asdict(self)


class Probe(Protocol):
    """What measures the memory of a device."""

    device: torch.device
    name: str
    total_bytes: int

    def begin(self) -> None:
        """Measure anew from here."""

    def peak_bytes(self) -> int:
        """The most that was held at once since then."""

    def lost(self) -> bool:
        """Whether this process can use the device no more."""


class CpuProbe:
    """Of a processor time alone is measured: memory is what all of its processes share."""

    device: torch.device
    total_bytes = 0

    def __init__(self) -> None:
        self.device, self.name = torch.device("cpu"), platform.processor() or platform.machine()

    def begin(self) -> None:
        """Nothing."""

    def peak_bytes(self) -> int:
        """None."""
        return 0

    def lost(self) -> bool:
        """Never."""
        return False


class CudaProbe:
    """The memory of a GPU as its allocator reserves it: fragments and workspaces count.

    What has grown outside the allocator since the probe was made counts too (kernels that were loaded); the context of CUDA,
    which was there before, does not.
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.name = torch.cuda.get_device_name(self.device)
        self.total_bytes = int(torch.cuda.mem_get_info(self.device)[1])
        self._outside_before = self._outside_bytes()

    def begin(self) -> None:
        """Give back what earlier work left in the allocator."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """The most that the allocator reserved since it began, and by how much the rest has grown."""
        torch.cuda.synchronize(self.device)
        grown = max(0, self._outside_bytes() - self._outside_before)
        return int(torch.cuda.max_memory_reserved(self.device)) + grown

    def lost(self) -> bool:
        """Whether a kernel has failed."""
        return device_is_lost(self.device)

    def _outside_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return int(total - free - torch.cuda.memory_reserved(self.device))


def measure(spec: OriginalSpec | TrialSpec, dataset: Dataset, probe: Probe, seconds: float = math.inf) -> Measure:
    """What the beginning, the middle and the end of a training or a trial take, and an evaluation after it.

    Model, batch sizes, precision, deletion set and hyperparameters are those of the whole one; the original's weights are
    untrained and no store is touched. Never raises for what a plug-in does. A canary that runs out of memory is taken to
    need more than the device has, and one that loses the device nothing: whole trials of it will fail. seconds: where the pace
    alone is wanted, how long it may learn.
    """
    probe.begin()
    canary = _Canary(spec, dataset, probe.device, seconds)
    canary.run()
    peak = 0 if probe.lost() else probe.peak_bytes()
    if canary.ran_out:
        peak = max(peak, probe.total_bytes)
    kept = (canary.data_bytes, canary.original_bytes, canary.memo_bytes)
    pace = (canary.seconds_per_pass, canary.besides_seconds)
    return Measure(probe.name, probe.total_bytes, peak, *kept, *pace, canary.stopped)


class _Canary:
    def __init__(self, spec: OriginalSpec | TrialSpec, dataset: Dataset, device: torch.device, seconds: float) -> None:
        self._spec, self._dataset, self._device, self._seconds = spec, dataset, device, seconds
        self._setting = (spec if isinstance(spec, OriginalSpec) else spec.original).setting
        self.data_bytes = self.original_bytes = self.memo_bytes = 0
        self.seconds_per_pass: float | None = None
        self.besides_seconds: float | None = None
        self._once_seconds = 0.0
        self.stopped: str | None = None
        self.ran_out = False  # of memory
        self._split: DeletionSplit | None = None  # what was found; None where it did not come to that

    def run(self) -> None:
        """Learn twice, as the first time warms up, and evaluate twice: also where learning came to no end."""
        setting = self._setting
        with self._noting():
            require(setting.train.precision, self._device)
            poisoned = poison(self._dataset, setting.manipulation, seed=setting.seed, control=setting.control)
            data = upload(poisoned, self._device)
            self.data_bytes = _bytes_of(
                [each for images in (data.train, data.test) for each in (images.pixels_NHWC, images.labels)]
            )
            original = build_model(setting.model, poisoned, self._device, seed=0).eval()  # a worker that trains one keeps one too
            self.original_bytes = _bytes_of(original.state_dict().values())
            learned = None
            with self._noting():
                for _ in range(2):
                    learned = None  # the one before, as a worker frees it
                    learned = self._learned(original, poisoned, data)
            split, precision = self._split or nothing_found(poisoned), setting.train.precision
            sets = training_sets(poisoned, split).values()
            for _ in range(2):
                began = now(self._device)
                some = predict_some(learned or original, poisoned, data, precision, training=sets)
                evaluating = (now(self._device) - began) * images_evaluated(poisoned, split) / some
                self.besides_seconds = self._once_seconds + evaluating
            if isinstance(self._spec, TrialSpec):  # what the original had learned of the deletion set is a score, too
                predict(copy.deepcopy(original), data.train, data.rows(split.deletion), precision)

    def _learned(self, original: torch.nn.Module, poisoned: PoisonedDataset, data: OnDevice) -> torch.nn.Module | None:
        """What learning makes; None where its time was up, or it diverged: untrained weights may, and need the same memory."""
        watch, memos, learned = Watch(self._device, self._seconds / 2), _Memos(), None
        with contextlib.suppress(Diverged, LongEnough):
            if isinstance(self._spec, OriginalSpec):
                learned = train(self._spec, poisoned, data, short_training_tools(watch))
            else:
                evidence = OriginalsEvidence(self._setting.model, lambda: original, data)
                held_out = self._spec.held_out
                if self._split is None:
                    self._split = detect(poisoned, self._spec.detection, self._spec.deletion_size, evidence, held_out=held_out)
                learned = unlearn(self._spec, original, poisoned, data, self._split, memos, short_tools(watch)).model
        self.seconds_per_pass, self._once_seconds = watch.pace() or (None, 0.0)
        self.memo_bytes = memos.num_bytes
        return learned

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Go on after the context where something in it failed, and remember the first reason."""
        try:
            yield
        except Enough:
            self.stopped = self.stopped or f"it took more than {MOST_CALLS} batches and forward passes"
        except (Exception, SystemExit) as problem:  # whatever a plug-in raises: the whole trial will say it in its row
            if is_from_signal(problem):
                raise
            self.stopped = self.stopped or f"{type(problem).__name__}: {problem}"
            of_machine = isinstance(problem, MemoryError)
            self.ran_out = self.ran_out or (is_out_of_memory(problem) and not of_machine)


class _Memos:
    """Memos on the device for one run, as a warm worker has them."""

    def __init__(self) -> None:
        self._kept: dict[str, Memo] = {}

    def load(self, key: str) -> Memo | None:
        """The memo, where this run has made it."""
        return self._kept.get(key)

    def save(self, key: str, memo: Memo) -> None:
        """Keep it, but in no store."""
        self._kept[key] = memo

    @property
    def num_bytes(self) -> int:
        """What they take on the device."""
        return _bytes_of([tensor for memo in self._kept.values() for tensor in memo.tensors.values()])


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
