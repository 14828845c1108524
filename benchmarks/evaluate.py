"""Evaluation on a processor beside a large matrix product of the same precision and threads; bf16 beside fp32.

    python benchmarks/evaluate.py --out benchmarks/results/evaluate.json      # about four minutes

As benchmarks/step.py. Besides, what `evaluate` takes over predicting the images that it reports on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import figures
import torch
from gpu import Bench, Sizes
from processor import Product, bench, compared, each_model, precisions

from cu_ray.detections.uniform import Uniform
from cu_ray.stages.evaluate import evaluate, images_evaluated, predict
from cu_ray.stages.poison import detect


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(given: Sizes, name: str) -> list[figures.Row]:
    """Images a second in each precision, and the whole evaluation over predicting alone."""
    benches = {precision: bench(given, precision) for precision in precisions()}
    models = {precision: each.model(name).eval() for precision, each in benches.items()}
    rows = torch.arange(given.test)

    def predicted(precision: str) -> None:
        predict(models[precision], benches[precision].data.test, rows, precision)

    rates: dict[str, list[float]] = {precision: [] for precision in benches}
    products: dict[str, list[float]] = {precision: [] for precision in benches}
    over: list[float] = []
    for number in range(given.repeats + 1):  # the first warms up
        for precision in benches:
            product, taken = Product(given.product, precision).rate(), seconds(lambda precision=precision: predicted(precision))
            if number:
                products[precision].append(product)
                rates[precision].append(given.test / taken)
        if number:
            over.append(whole(benches["fp32"], models["fp32"]) * rates["fp32"][-1])
    what = f"{name}, evaluation, threads: {torch.get_num_threads()}"
    found = compared(what, rates, products, benches["fp32"].flops(name, backward=False))
    return [*found, figures.row(f"{what}: `evaluate` over predicting its images, fp32", "times", over)]


def whole(given: Bench, model: torch.nn.Module) -> float:
    """Seconds an image of what a trial's evaluation takes."""
    split = detect(given.poisoned, Uniform(), given.sizes.deleted, None)
    taken = seconds(lambda: evaluate(model, given.poisoned, given.data, split, given.precision))
    return taken / images_evaluated(given.poisoned, split)


if __name__ == "__main__":
    each_model(__doc__, measure)
