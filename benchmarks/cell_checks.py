"""Whether the sides of benchmarks/cell.py did the same: images counted, SSD where nothing is drawn, scores within noise."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures  # noqa: F401  (the repository's own package)
import torch
from alone import Cell, setting_of
from cell_given import sets_of
from published import Run, Sets, dampened, with_plain_layers
from safetensors.numpy import load_file

from cu_ray import plugins
from cu_ray.detections.uniform import Uniform
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect
from cu_ray.store import LocalStore
from cu_ray.types import Augmentation, OriginalSpec, TrialSpec

DEVIATIONS = 4.0  # standard deviations that scores may be apart
JUMP = 1e-4  # of a parameter that one side dampens and the other does not
LEAST_DEVIATION = 0.01  # of a score: what a thousand images can tell apart
SCORES = ("acc_corr", "acc_retain", "asr")
Round = dict[str, Any]


def require_same_work(rounds: list[Round]) -> None:
    """Raise where two sides sent different numbers of images through models in a run."""
    counts = [{number: (each["forward"], each["backward"]) for number, each in this["runs"].items()} for this in rounds]
    for this, found in zip(rounds, counts, strict=True):
        for number, count in found.items():
            if count != counts[0][number]:
                raise AssertionError(f"run {number}: {this['side']} has {count} images, {rounds[0]['side']} {counts[0][number]}")


def difference_of_ssd(cell: Cell) -> dict[str, float]:
    """How far SSD's models are apart where nothing is drawn: no augmentation, importances from one batch.

    weights: of each point the difference that one parameter in a thousand exceeds, and of these the largest: the order of the
    images in a batch is drawn, and its rounding puts one or two parameters on the other side of the threshold, where dampening
    jumps. dampened: the largest difference of any parameter of any point where cu-ray's importances are used on both sides.
    scores: the largest difference of five points in which no parameter jumps. importances: the largest difference, in the
    largest importance of a tensor. The published side runs its layers one by one.
    """
    dataset = replace(plugins.build("datasets", cell["dataset"]).load(), augmentation=Augmentation())
    spec = OriginalSpec(setting_of(cell, dataset.content_hash))
    points = [given for name, given in cell["runs"] if name == "ssd"]
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        store.save("originals", spec.key, load_file(cell["weights"]), {})
        bench = Workbench(dataset, store)
        poisoned, _ = bench.poisoned(spec.setting)
        original, _ = bench.original(spec)
        sets = Sets(**sets_of(poisoned, detect(poisoned, Uniform(), cell["deleted"], None)))
        plain = with_plain_layers(copy.deepcopy(original)).eval()
        run = Run("ssd", {}, sets, cell["recipe"], plain, augmented=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            importances = [run.importances(plain, rows, len(sets.labels)) for rows in (sets.deletion, sets.retain)]
        same: list[list[torch.Tensor]] = []  # cu-ray's importances
        weights, of_same, scores = [], [], []
        for number, point in enumerate(points):
            method = plugins.build("methods", {"name": "ssd", **point, "importance_batch_size": len(sets.labels)})
            given = TrialSpec(spec, Uniform(), cell["deleted"], method)
            own = bench.unlearned(given).model
            same = same or _kept_importances(Path(folder), original)
            how = (point["selection_weight"], point["relative_dampening"])
            other = dampened(copy.deepcopy(plain), *importances, *how)
            apart = _differences(own, other)
            weights.append(apart.quantile(0.999))
            of_same.append(_differences(own, dampened(copy.deepcopy(original), *same, *how)).max())
            if apart.max() <= JUMP and number >= len(scores) * (len(points) // 5):
                ours, theirs = (bench.scores(given, model) for model in (own, other))
                scores.append(max(abs(ours[name] - theirs[name]) for name in SCORES))
        pairs = [pair for both in zip(same, importances, strict=True) for pair in zip(*both, strict=True)]
        least = torch.finfo(torch.float32).tiny
        of_importances = [(ours - theirs).abs().max() / theirs.max().clamp(min=least) for ours, theirs in pairs]
    largest = {"weights": weights, "dampened": of_same, "scores": scores, "importances": of_importances}
    return {name: float(max(values, default=math.inf)) for name, values in largest.items()}


def _kept_importances(folder: Path, model: torch.nn.Module) -> list[list[torch.Tensor]]:
    """Those of the deletion and the retain set that cu-ray's memo has, by parameter."""
    (file,) = (folder / "memos").glob("*.safetensors")
    parameters, kept = list(model.parameters()), load_file(file)
    parts = [torch.from_numpy(kept[name]).split([each.numel() for each in parameters]) for name in ("deletion", "retain")]
    return [[part.view_as(each) for part, each in zip(found, parameters, strict=True)] for found in parts]


@torch.no_grad()
def _differences(model: torch.nn.Module, other: torch.nn.Module) -> torch.Tensor:
    """Of each parameter."""
    own, their = (torch.cat([parameter.flatten() for parameter in each.parameters()]) for each in (model, other))
    return (own - their).abs()


def out_of_noise(cell: Cell, rounds: list[Round]) -> tuple[list[str], float]:
    """Scores of cu-ray further from those of the published procedure than its own seeds are, and the furthest of all.

    The deviation of a score: over the published procedure's seeds, of this run or pooled over the method's runs, whichever is
    larger, and at least 0.01. (SSD's draws of crops and batches move single points by tenths, and others not at all.) A score is
    too far where it is more than four deviations of a difference to a mean of n, sqrt(1 + 1 / n), from the mean.
    """
    others = [this for this in rounds if this["side"] in ("processes", "two")]
    own = next(this for this in rounds if this["side"] == "cu-ray")
    factor = math.sqrt(1 + 1 / len(others))
    too_far, furthest = [], 0.0
    for method in dict.fromkeys(name for name, _ in cell["runs"]):
        numbers = [str(number) for number, (name, _) in enumerate(cell["runs"]) if name == method]
        for score in SCORES:
            drawn = {number: [this["runs"][number]["scores"][score] for this in others] for number in numbers}
            pooled = math.sqrt(statistics.mean(statistics.variance(values) for values in drawn.values()))
            for number, values in drawn.items():
                apart = own["runs"][number]["scores"][score] - statistics.mean(values)
                far = abs(apart) / (factor * max(statistics.stdev(values), pooled, LEAST_DEVIATION))
                furthest = max(furthest, far)
                if far > DEVIATIONS:
                    too_far.append(f"{method} {cell['runs'][int(number)][1]}: {score} is {apart:+.3f} away, {far:.1f} deviations")
    return too_far, furthest
