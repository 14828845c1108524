"""A method that writes down each time that it is run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.plugins import Bound, Search
from cu_ray.types import Cost, Sizes, UnlearningTask

EXECUTIONS = "executions.txt"  # beside this file: which trial (the seed of its generator), when, and in which process

SECONDS = 0.5  # that a trial waits, to be hit


@dataclass(frozen=True)
class Counted(CatastrophicForgetting):
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "goes on training, and writes down that it was run"
    number: Annotated[int, Search(1, 1000), Bound(low=1)] = 1  # makes its trials different ones

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        with open(Path(__file__).parent / EXECUTIONS, "a", encoding="utf-8") as executions:
            executions.write(f"{task.generator.initial_seed()} {time.time()} {os.getpid()}\n")
        time.sleep(SECONDS)
        return super().unlearn(task)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(10**9, 10**9)  # what takes longest is run first, while it is killed
