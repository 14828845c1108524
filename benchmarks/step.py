"""Training steps on a processor beside a large matrix product of the same precision and threads; bf16 beside fp32.

    python benchmarks/step.py --out benchmarks/results/step.json      # about three minutes

The published ResNet-9 and a narrow one, images of 32 x 32 x 3, with one thread, as a worker of a sweep has, and with all
cores. Precisions and the product are interleaved.
"""

from __future__ import annotations

import time

import figures
import torch
from gpu import Sizes, Training
from processor import Product, bench, compared, each_model, precisions


def measure(given: Sizes, name: str) -> list[figures.Row]:
    """Images a second in each precision."""
    benches = {precision: bench(given, precision) for precision in precisions()}
    runs = {precision: Training(each, name, "plain") for precision, each in benches.items()}
    for run in runs.values():
        run.run(2)
    flops, steps = benches["fp32"].flops(name, backward=True), given.steps[name]
    rates: dict[str, list[float]] = {precision: [] for precision in runs}
    products: dict[str, list[float]] = {precision: [] for precision in runs}
    for _ in range(given.repeats):
        for precision, run in runs.items():
            products[precision].append(Product(given.product, precision).rate())
            began = time.perf_counter()
            run.run(steps)
            rates[precision].append(steps * given.batches[name] / (time.perf_counter() - began))
    what = f"{name}, training, batches of {given.batches[name]}, threads: {torch.get_num_threads()}"
    return compared(what, rates, products, flops)


if __name__ == "__main__":
    each_model(__doc__, measure)
