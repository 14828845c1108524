"""What the benchmarks of learning on a processor share: precisions, models, threads, the rate of a large matrix product."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import figures
import torch
from gpu import TOY, Bench, Sizes

from cu_ray.learning.precision import BF16_FLAGS, local_cpu_flags
from cu_ray.models.resnet9 import ResNet9

NARROW = "ResNet-9 of width 8"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def precisions() -> list[str]:
    """fp32, and bf16 where the processor has it."""
    return ["fp32", "bf16"] if BF16_FLAGS & local_cpu_flags() else ["fp32"]


def threads() -> list[int]:
    """One, as a worker of a sweep has, and one a core."""
    return sorted({1, os.cpu_count() or 1})


def sizes(*, small: bool) -> Sizes:
    """As on a GPU, but for what would take too long."""
    if small:
        return replace(TOY, models={"ResNet-9": ResNet9(width=2)})
    models: dict[str, Any] = {"ResNet-9": ResNet9(), NARROW: ResNet9(width=8)}
    steps = {"ResNet-9": 1, NARROW: 8}
    return replace(
        Sizes(),
        train=2048,
        test=500,
        manipulated=100,
        deleted=50,
        product=2048,
        models=models,
        batches=dict.fromkeys(models, 128),
        steps=steps,
    )


def bench(given: Sizes, precision: str) -> Bench:
    """Data and models on the processor in that precision."""
    made = Bench(given, "cpu")
    made.precision = precision
    return made


@dataclass(frozen=True)
class Product:
    """A large matrix product, the floor of arithmetic."""

    side: int
    precision: str

    def rate(self) -> float:
        """FLOP/s of some."""
        left, right = (torch.randn(self.side, self.side).to(TYPES[self.precision]) for _ in range(2))
        left @ right
        began = perf_counter()
        for _ in range(4):
            left @ right
        return 4 * 2 * self.side**3 / (perf_counter() - began)


def compared(what: str, rates: dict[str, list[float]], products: dict[str, list[float]], flops: float) -> list[figures.Row]:
    """Images a second in each precision, their part of the product's rate, and how many times fp32 the others are."""
    rows = []
    for precision, values in rates.items():
        shares = [rate * flops / product for rate, product in zip(values, products[precision], strict=True)]
        rows.append(figures.row(f"{what}, {precision}", "images/s", values))
        rows.append(figures.row(f"{what}, {precision}: of a matrix product's rate", "of it", shares))
    for other in list(rates)[1:]:
        factors = [each / own for own, each in zip(rates["fp32"], rates[other], strict=True)]
        rows.append(figures.row(f"{what}: {other} over fp32", "times", factors))
    return rows


def each_model(doc: str | None, measure: Callable[[Sizes, str], list[figures.Row]]) -> None:
    """The command of a benchmark: measure each model with each number of threads, and write."""
    given = figures.arguments(doc).parse_args()
    facts, chosen, rows = figures.environment("torch"), sizes(small=given.small), []
    for count in threads():
        torch.set_num_threads(count)
        for name in chosen.models:
            rows += measure(chosen, name)
    figures.write(given.out, facts, rows)
