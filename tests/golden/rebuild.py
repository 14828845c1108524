"""Keys of fixed specs, and the file that holds what they must be.

A changed key makes results in people's ledgers be done again. Where that is meant, run `python tests/golden/rebuild.py`,
look at what it changed in `keys.json` and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

from cu_ray import config
from cu_ray.datasets.cifar10 import Cifar10
from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.detections.uniform import Uniform
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.interclass_confusion import InterclassConfusion
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.methods.bad_teaching import BadTeaching
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.exact_unlearning import ExactUnlearning
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.scrub import Scrub
from cu_ray.methods.ssd import Ssd
from cu_ray.models.resnet9 import ResNet9
from cu_ray.sweep.plan import StudySpec
from cu_ray.types import OriginalSpec, Setting, TrainRecipe, TrialSpec

FILE = Path(__file__).with_name("keys.json")
CONTENT_HASH = "0" * 64

SWEEP = """
name: golden
dataset: fashion_mnist_small
model: resnet9
manipulation: {name: backdoor, size: 100}
methods:
  no_unlearning: {}
  exact_unlearning: {}
  catastrophic_forgetting: {k: [1, 2, 4], sampler: grid}
  scrub: {alpha: {low: 0.001, high: 10.0, log: true}, steps: 200}
  bad_teaching: {points: [{steps: 100}, {steps: 200, lr: 0.01}]}
  ssd: {selection_weight: [1.0, 10.0], relative_dampening: {low: 0.1, high: 1.0, log: true}, sampler: random, keep: best_on_test}
search: {sampler: tpe, objective: oracle_validation, lag: 4}
"""


def setting(manipulation=None, *, model=None, dataset=None, seed: int = 0, **recipe) -> Setting:
    """A setting whose data set has the content hash 000...; precision fp32 unless given."""
    train = TrainRecipe(**{"precision": "fp32", **recipe})
    return Setting(
        dataset or FashionMnistSmall(), CONTENT_HASH, model or ResNet9(), manipulation or Backdoor(100, target=0), train, seed
    )


def settings() -> dict[str, Setting]:
    """The settings by name."""
    return {
        "backdoor": setting(),
        "backdoor, target 3, patch 5": setting(Backdoor(300, 5, 3), seed=1),
        "confusion": setting(InterclassConfusion(200, (3, 5)), model=ResNet9(width=8), steps=800, lr=0.05, batch_size=64),
        "swap": setting(RandomLabelSwap(500), dataset=Cifar10(), precision="bf16", seed=5),
        "backdoor, best on test": setting(keep="best_on_test", momentum=0, weight_decay=0),
    }


def trials() -> dict[str, TrialSpec]:
    """The trials by name."""
    by_name = settings()

    def trial(name: str, size: int, method, **more) -> TrialSpec:
        return TrialSpec(OriginalSpec(by_name[name]), Uniform(), size, method, **more)

    return {
        "no unlearning": trial("backdoor", 0, NoUnlearning()),
        "exact unlearning": trial("backdoor", 10, ExactUnlearning()),
        "exact unlearning, k 4": trial("backdoor", 100, ExactUnlearning(k=4, steps=500, lr=0.1)),
        "catastrophic forgetting": trial("backdoor, target 3, patch 5", 30, CatastrophicForgetting(steps=200)),
        "catastrophic forgetting, k 2": trial("confusion", 200, CatastrophicForgetting(k=2)),
        "scrub": trial("confusion", 20, Scrub()),
        "scrub, held out": trial("confusion", 40, Scrub(alpha=2, msteps=10, steps=300), held_out=True),
        "bad teaching": trial("swap", 250, BadTeaching()),
        "bad teaching, best on test": trial("swap", 500, BadTeaching(steps=100, lr=0.01), keep="best_on_test"),
        "ssd": trial("swap", 50, Ssd()),
        "ssd by weight": trial("backdoor", 10, Ssd(selection_share=None, selection_weight=10, relative_dampening=0.5)),
        "ssd, original best on test": trial("backdoor, best on test", 100, Ssd(importance_batch_size=64)),
    }


def studies() -> dict[str, StudySpec]:
    """One study for each method of a sweep file, named after it; and one over several fractions and seeds."""
    sweep = config.parse(SWEEP)
    seeds = tuple(setting(seed=seed) for seed in (0, 1))
    names = ["no_unlearning", "exact_unlearning", "catastrophic_forgetting", "scrub", "bad_teaching", "ssd"]
    found = {
        name: StudySpec(seeds, Uniform(), (0.1,) if method.cls.uses_deletion_set else (), method, sweep.search)
        for name, method in zip(names, sweep.methods, strict=True)
    }
    scope = config.parse(SWEEP.replace("lag: 4", "lag: 2, scope: across_fractions, aggregate: min, seeds: all, defender: true"))
    return {**found, "scrub across fractions": StudySpec(seeds, Uniform(), (0.1, 0.5), scope.methods[3], scope.search)}


def keys() -> dict[str, dict[str, str]]:
    """All keys by kind and name."""
    return {
        "originals": {name: OriginalSpec(each).key for name, each in settings().items()},
        "trials": {name: spec.key for name, spec in trials().items()},
        "studies": {name: study.key for name, study in studies().items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(keys(), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")
