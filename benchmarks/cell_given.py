"""What the sides of benchmarks/cell.py are given: the runs, the original's weights, the same rows, a sweep file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import figures  # noqa: F401  (the repository's own package)
import numpy as np
from alone import Cell, setting_of
from safetensors.numpy import save_file

from cu_ray import plugins
from cu_ray.detections.uniform import Uniform
from cu_ray.stages.pipeline import Workbench, arrays_of
from cu_ray.stages.poison import detect
from cu_ray.store import LocalStore
from cu_ray.types import DeletionSplit, OriginalSpec, PoisonedDataset


def runs(steps: int) -> list[tuple[str, dict[str, Any]]]:
    """The 65 of the published grid; `steps`: of the original's training and of retraining, a quarter for all others."""
    short = {"steps": max(1, steps // 4)}
    alphas, weights = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0), (0.1, 1.0, 10.0, 50.0, 100.0, 500.0, 1e3, 1e4, 1e5, 1e6)
    scrub = {**short, "lr": 0.005, "msteps": max(1, short["steps"] // 10)}
    return [
        ("exact_unlearning", {"k": None, "steps": steps}),
        *(("exact_unlearning", {"k": k, **short}) for k in (2, 4)),
        *(("catastrophic_forgetting", {"k": k, **short}) for k in (None, 2, 4)),
        *(("scrub", {"alpha": alpha, **scrub}) for alpha in alphas),
        ("bad_teaching", short),
        *(
            ("ssd", {"selection_share": None, "selection_weight": alpha, "relative_dampening": relative})
            for alpha in weights
            for relative in (0.1, 0.5, 1.0, 5.0, 10.0)
        ),
    ]


def describe(steps: int, width: int, folder: Path, *, small: bool) -> Cell:
    """The cell as plain JSON values. small: a run of each method on few images."""
    chosen, dataset = runs(steps), {"name": "fashion_mnist_small"}
    if small:
        chosen = [chosen[number] for number in (1, 3, 8, 14, 20, 36)]
        dataset = {"name": "npz", "file": str(few_images(folder))}
    return {
        "runs": chosen,
        "dataset": dataset,
        "width": width,
        "manipulated": 12 if small else 300,
        "deleted": 6 if small else 150,
        "fraction": 0.5,
        "target": 0,
        "recipe": {"steps": steps, "lr": 0.05, "batch_size": 64},
        "sets": str(folder / "sets.npz"),
        "weights": str(folder / "original.safetensors"),
    }


def few_images(folder: Path) -> Path:
    """A file of some of the embedded images."""
    whole, file = plugins.build("datasets", {"name": "fashion_mnist_small"}).load(), folder / "few.npz"
    if not file.exists():
        parts = {"train": whole.train, "test": whole.test}
        pixels = {f"{name}_pixels": images.pixels[::25] for name, images in parts.items()}
        np.savez(file, **pixels, **{f"{name}_labels": images.labels[::25] for name, images in parts.items()})
    return file


def prepare(cell: Cell, folder: Path) -> None:
    """Train the original that all sides start from, and write what the published procedure is given."""
    dataset = plugins.build("datasets", cell["dataset"]).load()
    cell["num_classes"] = dataset.num_classes
    spec = OriginalSpec(setting_of(cell, dataset.content_hash, given=False))
    bench = Workbench(dataset, LocalStore(folder / "original"))
    model, _ = bench.original(spec)
    save_file(arrays_of(model), cell["weights"])
    poisoned, _ = bench.poisoned(spec.setting)
    np.savez(cell["sets"], **sets_of(poisoned, detect(poisoned, Uniform(), cell["deleted"], None)))
    (folder / "cell.json").write_text(json.dumps(cell))
    (folder / "cell.yaml").write_text(json.dumps(sweep_file(cell)))


def sets_of(poisoned: PoisonedDataset, split: DeletionSplit) -> dict[str, Any]:
    """The fields of `published.Sets`."""
    dataset, stamp = poisoned.dataset, poisoned.corruption.stamp
    return {
        "train_pixels": dataset.train.pixels,
        "labels": poisoned.labels,
        "stamped": poisoned.stamped,
        "deletion": split.deletion,
        "retain": split.retain,
        "manipulated": poisoned.corruption.indices,
        "test_pixels": dataset.test.pixels,
        "test_labels": dataset.test.labels,
        "mean": dataset.normalisation.mean,
        "std": dataset.normalisation.std,
        "padding": dataset.augmentation.crop_padding,
        "patch": round(math.sqrt(stamp.mask.sum())),
        "value": float(stamp.values[0]),
        "target": poisoned.domains.target,
    }


def sweep_file(cell: Cell) -> dict[str, Any]:
    """The sweep file: YAML takes JSON."""
    methods: dict[str, dict[str, Any]] = {}
    for name, given in cell["runs"]:
        methods.setdefault(name, {"points": []})["points"].append(given)
    return {
        "name": "cell",
        "dataset": cell["dataset"],
        "model": {"name": "resnet9", "width": cell["width"]},
        "manipulation": {"name": "backdoor", "size": cell["manipulated"], "target": cell["target"]},
        "train": {**cell["recipe"], "precision": "fp32"},
        "original": {"weights": cell["weights"]},
        "deletion_fractions": [cell["fraction"]],
        "methods": methods,
        "search": {"objective": "published"},
        "runtime": {"device": "cpu"},
    }
