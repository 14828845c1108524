"""Training steps on a processor beside a large matrix product of the same precision and threads; bf16 beside fp32.

    python benchmarks/step.py --out benchmarks/results/step.json      # about four minutes

The published ResNet-9 and a narrow one, images of 32 x 32 x 3, with one thread, as a worker of a sweep has, and with all
cores. Precisions, fp32 as torch.compile makes it where there is a C++ compiler, and the product are interleaved.
"""

from __future__ import annotations

import shutil
import time

import figures
import torch
from gpu import Sizes, Training
from processor import Product, bench, compared, each_model, precisions

COMPILED = "fp32 compiled"


def measure(given: Sizes, name: str) -> list[figures.Row]:
    """Images a second in each precision, and compiled."""
    benches = {precision: bench(given, precision) for precision in precisions()}
    runs = {precision: Training(each, name, "plain") for precision, each in benches.items()}
    if shutil.which("g++"):
        benches[COMPILED], runs[COMPILED] = benches["fp32"], Training(benches["fp32"], name, "compiled")
    firsts: dict[str, float] = {}
    for kind, run in runs.items():
        began = time.perf_counter()
        run.run(2)
        firsts[kind] = time.perf_counter() - began
    flops, steps = benches["fp32"].flops(name, backward=True), given.steps[name]
    rates: dict[str, list[float]] = {kind: [] for kind in runs}
    products: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(given.repeats):
        for kind, run in runs.items():
            products[kind].append(Product(given.product, benches[kind].precision).rate())
            began = time.perf_counter()
            run.run(steps)
            rates[kind].append(steps * given.batches[name] / (time.perf_counter() - began))
    what = f"{name}, training, batches of {given.batches[name]}, threads: {torch.get_num_threads()}"
    rows = compared(what, rates, products, flops)
    if COMPILED in runs:
        rows.append(figures.row(f"{what}, {COMPILED}: its first two steps", "s", [firsts[COMPILED]]))
    return rows


if __name__ == "__main__":
    each_model(__doc__, measure)
