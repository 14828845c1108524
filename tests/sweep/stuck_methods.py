"""Methods that do not come to an end, need a whole GPU, or lose it."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from typing import ClassVar

import ray
import torch

from cu_ray.methods import Method
from cu_ray.stages import pipeline
from cu_ray.types import Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class Loops(Method):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "loops, whatever is raised"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()


@dataclass(frozen=True)
class HangsInC(Loops):
    summary: ClassVar[str] = "hangs in native code and holds the interpreter"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(128)
        lock(mutex)
        lock(mutex)  # for ever, whatever signals come
        return task.original


@dataclass(frozen=True)
class NeedsAWholeGpu(Loops):
    summary: ClassVar[str] = "does not fit beside others"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        if ray.get_runtime_context().get_assigned_resources().get("GPU", 0) < 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return task.original


@dataclass(frozen=True)
class LosesTheGpu(Loops):
    summary: ClassVar[str] = "after it the GPU does nothing more for this process"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        with open(f"{__file__}.tries", "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        pipeline.device_is_lost = lambda device: True
        raise RuntimeError("CUDA error: device-side assert triggered")
