"""What the published code's folder names say: LOGS/SETTING/RUN, and beside the settings the rows that were drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cu_ray import plugins
from cu_ray.errors import UserError, did_you_mean
from cu_ray.types import TrainRecipe

# /CIFAR10_poisoning_500_manip.npy               rows of the manipulated set
# /CIFAR10_poisoning_500_250_deletion.npy        rows of the deletion set, here of 250
# /CIFAR10_resnet9_poisoning_500_3_4000_0.025    data set, model, manipulation, size, patch, steps, lr
# Naive_pretrainmodel                            the original
# 250_EU_unlearn_4000_-1                         deletion size, method, a name of the user's, steps, k (-1: all)
# 250_CF_..., 250_BadT_...                       the same
# 250_Scrub_unlearn_1000_-1_4_0.05_100           and temperature, alpha, msteps
# 250_SSD_unlearn_1000_-1_50.0_10.0              and lambda, alpha

DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "PCAM": "pcam"}
MODELS: dict[str, dict[str, Any]] = {
    "resnet9": {"name": "resnet9"},
    "resnetwide28x10": {"name": "wide_resnet"},
    **{f"resnet{depth}": {"name": "cifar_resnet", "depth": depth} for depth in (20, 32, 44, 56, 110)},
}
MANIPULATIONS = {
    "poisoning": "backdoor",
    "interclasslabelswap": "interclass_confusion",
    "labeltargeted": "interclass_confusion",  # in its scripts and its table maker
    "randomlabelswap": "random_label_swap",
    "labelrandom": "random_label_swap",
}
METHODS = {"EU": "exact_unlearning", "CF": "catastrophic_forgetting", "Scrub": "scrub", "BadT": "bad_teaching", "SSD": "ssd"}
FURTHER = {"Scrub": ("temperature", "alpha", "msteps"), "SSD": ("dampening", "selection_weight")}

ORIGINAL = "Naive_pretrainmodel"
SETTING = re.compile(r"([^_]+)_([^_]+)_([^_]+)_(\d+)_(\d+)_(\d+)_([\d.e+-]+)")


@dataclass(frozen=True)
class SettingFolder:
    """The runs on one original model, and what its name says of that."""

    path: Path
    drawn: str  # what the names of the files of drawn rows begin with
    dataset: str
    model: dict[str, Any]
    manipulation: str
    size: int
    patch: int
    train: TrainRecipe


@dataclass(frozen=True)
class RunFolder:
    """One unlearned model, and what its name says of it."""

    path: Path
    method: str
    deletion_size: int
    hyperparameters: dict[str, Any]


def settings(logs: Path) -> tuple[list[SettingFolder], dict[str, str]]:
    """The settings in a folder of logs; why others are passed over, by name. Raises UserError where there is no setting."""
    if not logs.is_dir():
        raise UserError(f"there is no folder {logs}")
    found, passed_over = [], {}
    for path in _folders(logs):
        try:
            found.append(_setting(path))
        except UserError as problem:
            passed_over[path.name] = str(problem)
    if not found:
        seen = "".join(f"\n  {name}: {why}" for name, why in list(passed_over.items())[:3]) or " nothing"
        raise UserError(
            f"{logs} holds no logs of the published code. Its folders are called DATASET_MODEL_MANIPULATION_SIZE_PATCH_STEPS_LR, "
            f"like CIFAR10_resnet9_poisoning_500_3_4000_0.025; here are:{seen}"
        )
    return found, passed_over


def runs(setting: SettingFolder) -> tuple[list[RunFolder], dict[str, str]]:
    """The runs of a setting, the original's apart; why others are passed over, by name."""
    found, passed_over = [], {}
    for path in _folders(setting.path):
        try:
            if path.name != ORIGINAL:
                found.append(_run(path, setting.size))
        except UserError as problem:
            passed_over[f"{setting.path.name}/{path.name}"] = str(problem)
    return found, passed_over


def _folders(within: Path) -> Iterator[Path]:
    return (path for path in sorted(within.iterdir()) if path.is_dir() and not path.name.startswith((".", "__")))


def _setting(path: Path) -> SettingFolder:
    parts = SETTING.fullmatch(path.name)
    if parts is None:
        raise UserError("the name has another form")
    dataset, model, manipulation, size, patch, steps, lr = parts.groups()
    for given, known in ((dataset, DATASETS), (model, MODELS), (manipulation, MANIPULATIONS)):
        if given not in known:
            raise UserError(f"{given!r} is not known here. {did_you_mean(given, known)}")
    train = TrainRecipe(steps=int(steps), lr=_number(lr), keep="best_on_test", precision="fp16")
    drawn = f"{dataset}_{manipulation}_{size}"
    place = DATASETS[dataset], MODELS[model], MANIPULATIONS[manipulation]
    return SettingFolder(path, drawn, *place, int(size), int(patch), train)


def _run(path: Path, manipulation_size: int) -> RunFolder:
    size, _, rest = path.name.partition("_")
    method, _, rest = rest.partition("_")
    if not size.isdecimal():
        raise UserError("the name does not begin with the size of a deletion set")
    if method not in METHODS:
        raise UserError(f"{method!r} is no method of the published code. {did_you_mean(method, METHODS)}")
    if not 0 < int(size) <= manipulation_size:
        raise UserError(f"a deletion set of {size} is not part of {manipulation_size} manipulated samples")
    names = ("steps", "k", *FURTHER.get(method, ()))
    _, *values = rest.rsplit("_", len(names))  # before them a name of the user's, which may have underscores
    if len(values) < len(names):
        raise UserError(f"after the method there should be a name and {', '.join(names)}")
    return RunFolder(
        path, METHODS[method], int(size), _hyperparameters(method, dict(zip(names, map(_number, values), strict=True)))
    )


def _hyperparameters(method: str, given: dict[str, float]) -> dict[str, Any]:
    """In our names, those that a run's name says. The learning rate is not among them."""
    k = None if given["k"] == -1 else int(given["k"])
    if method == "SSD":
        weight = given["selection_weight"]
        if not weight:
            raise UserError("a selection weight (alpha) of 0 is not possible")
        known: dict[str, Any] = {"selection_weight": weight, "relative_dampening": float(f"{given['dampening'] / weight:.12g}")}
    else:
        known = {"steps": int(given["steps"])}
    if method == "Scrub":
        known |= {"temperature": given["temperature"], "alpha": given["alpha"], "msteps": int(given["msteps"])}
    return known | ({"k": k} if method in ("EU", "CF") or k is not None else {})


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{text!r} stands where a number is needed")
    return number


def manipulation_of(setting: SettingFolder, classes: tuple[int, int] | None) -> Any:
    """The manipulation as a plug-in of ours; `classes`: those that were confused."""
    known: dict[str, dict[str, Any]] = {"backdoor": {"patch": setting.patch}, "interclass_confusion": {"classes": classes}}
    return plugins.find("manipulations", setting.manipulation)(size=setting.size, **known.get(setting.manipulation, {}))
