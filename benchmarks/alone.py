"""Runs of the cell by the package's stages without Ray: rungs of the ladder in benchmarks/cell.py.

python benchmarks/alone.py CELL.json OUT.json --only 3      # one run, in a process of its own
python benchmarks/alone.py CELL.json OUT.json --anew        # all, in one process, SSD's importances computed in each run
python benchmarks/alone.py CELL.json OUT.json               # all, in one process, what they share computed once
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures  # noqa: F401  (the repository's own package)
import torch
from safetensors.numpy import load_file

from cu_ray import plugins
from cu_ray.detections.uniform import Uniform
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.models.resnet9 import ResNet9
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import LocalStore, checksum
from cu_ray.types import OriginalSpec, Record, Setting, TrainRecipe, TrialSpec

Cell = dict[str, Any]


def setting_of(cell: Cell, content_hash: str, *, given: bool = True) -> Setting:
    """The cell's setting; given: with the weights of its original, as the sweep file names them."""
    weights = checksum(load_file(cell["weights"]), {}) if given else None
    recipe = TrainRecipe(**cell["recipe"], precision="fp32")
    dataset, backdoor = plugins.build("datasets", cell["dataset"]), Backdoor(size=cell["manipulated"], target=cell["target"])
    return Setting(dataset, content_hash, ResNet9(width=cell["width"]), backdoor, recipe, seed=0, weights=weights)


def trial(cell: Cell, original: OriginalSpec, number: int) -> TrialSpec:
    """The run with that number."""
    name, hyperparameters = cell["runs"][number]
    return TrialSpec(original, Uniform(), cell["deleted"], plugins.build("methods", {"name": name, **hyperparameters}))


def records(cell: Cell, numbers: list[int], folder: str, *, anew: bool) -> dict[int, Record]:
    """What comes of these runs on one workbench. anew: with an unlearning seed each, so that they share nothing."""
    dataset = plugins.build("datasets", cell["dataset"]).load()
    original, store = OriginalSpec(setting_of(cell, dataset.content_hash)), LocalStore(folder)
    store.save("originals", original.key, load_file(cell["weights"]), {})
    bench = Workbench(dataset, store)
    trials = {number: trial(cell, original, number) for number in numbers}
    seeded = {number: replace(each, unlearning_seed=number + 1) if anew else each for number, each in trials.items()}
    return {number: bench.run_trial(each) for number, each in seeded.items()}


def facts(record: Record) -> dict[str, Any]:
    """Of a trial's record what benchmarks/published.py tells of a run."""
    if not record.ok:
        raise RuntimeError(f"{record.spec['method']}: {record.status}: {record.error}")
    seconds = {name: record.facts[name] for name in ("unlearn_seconds", "unlearn_seconds_spent", "eval_seconds")}
    counts = {"forward": record.facts["images_forward"], "backward": record.facts["images_backward"]}
    return {"scores": record.scores, **counts, **seconds}


def main() -> None:
    """Make the runs and write what came of them, by their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", type=int)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cell: Cell = json.loads(given.cell.read_text())
    numbers = list(range(len(cell["runs"]))) if given.only is None else [given.only]
    with tempfile.TemporaryDirectory(prefix="cu-ray-alone-") as folder:
        found = records(cell, numbers, folder, anew=given.anew)
    given.out.write_text(json.dumps({number: facts(record) for number, record in found.items()}))


if __name__ == "__main__":
    main()
