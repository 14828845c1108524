"""Methods that fail, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from cu_ray.methods import Method
from cu_ray.types import Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class Raises(Method):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "raises"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        raise RuntimeError("no luck")

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()


@dataclass(frozen=True)
class ReturnsNan(Raises):
    summary: ClassVar[str] = "returns NaN weights"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        with torch.no_grad():
            next(task.original.parameters()).fill_(float("nan"))
        return task.original


@dataclass(frozen=True)
class WritesPixels(Raises):
    summary: ClassVar[str] = "writes into the images that all workers of a machine share"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        task.retain._images.pixels_NHWC.zero_()
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(10**9, 10**9)  # what takes longest is run first


@dataclass(frozen=True)
class Exits(Raises):
    summary: ClassVar[str] = "ends the process"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        raise SystemExit(1)


@dataclass(frozen=True)
class Interrupts(Raises):
    summary: ClassVar[str] = "interrupts"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class OtherArchitecture(Raises):
    summary: ClassVar[str] = "returns another architecture"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        return torch.nn.Linear(2, 2)
