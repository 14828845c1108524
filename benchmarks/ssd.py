"""50 points of SSD on one deletion set, beside their floor: importances once, and 50 evaluations of what is reported.

    python benchmarks/ssd.py --out benchmarks/results/ssd.json      # about four minutes

A ResNet-9 of width 8 on images of 32 x 32 x 3, fp32, with one thread, as a worker of a sweep has. The goal: 1.3 times the floor.
"""

from __future__ import annotations

from dataclasses import replace

import figures
import torch
from gpu import ssd_cell
from processor import bench, sizes

from cu_ray.models.resnet9 import ResNet9

GOAL = 1.3


def main() -> None:
    """Measure and write."""
    given = figures.arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    chosen = sizes(small=given.small)
    if not given.small:
        chosen = replace(
            chosen, train=6000, manipulated=300, deleted=150, original=(20, 20), models={"ResNet-9": ResNet9(width=8)}
        )
    facts = figures.environment("torch")
    rows = [{**each, "count": 2} for each in ssd_cell(bench(chosen, "fp32"))]
    rows[-1]["what"] += f" (goal {GOAL:g})"
    figures.write(given.out, facts, rows)


if __name__ == "__main__":
    main()
