"""The published code's arrays, and the scores read off them: which rows were drawn, what a model said of which image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cu_ray import plugins
from cu_ray.errors import Diverged, UserError, in_one_line
from cu_ray.metrics import Outcome, share
from cu_ray.sweep.published.layout import ORIGINAL, SettingFolder
from cu_ray.types import Indices, Scores

TARGET = 0  # of its backdoor


@dataclass(frozen=True)
class Drawn:
    """What was manipulated in a setting: rows of the training set, their true labels and those that were given [M]."""

    rows: Indices
    true: Indices
    given: Indices
    classes: tuple[int, int] | None  # that were confused


def drawn(setting: SettingFolder) -> Drawn:
    """What was manipulated. Raises UserError for files that are missing or do not fit together."""
    rows = _rows(setting.path.parent / f"{setting.drawn}_manip.npy", setting.size)
    labels = _train_labels(setting)
    if rows.max() >= len(labels):
        raise UserError(f"{setting.drawn}_manip.npy has row {rows.max()}, and the training set {len(labels)}")
    true = labels[rows]
    if setting.manipulation == "backdoor":
        return Drawn(rows, true, np.full_like(true, TARGET), None)
    if setting.manipulation == "random_label_swap":  # the labels in the order drawn went to the rows in ascending order
        given = np.empty_like(true)
        given[np.argsort(rows)] = true
        return Drawn(rows, true, given, None)
    classes = np.unique(true)
    if len(classes) != 2:
        raise UserError(f"{setting.drawn}_manip.npy has rows of {len(classes)} classes, where two were confused")
    first, second = int(classes[0]), int(classes[1])
    return Drawn(rows, true, first + second - true, (first, second))


def scores(setting: SettingFolder, run: Path, made: Drawn, deletion_size: int) -> Scores:
    """The scores of the model of a run, those of the training set where they can be told.

    Raises UserError for files that are missing or do not fit together, Diverged for predictions that are not finite.
    """
    predicted, true = _predictions(run, "test")
    affected, retain = np.full(len(true), True), np.full(len(true), True)
    if made.classes is not None:
        affected = np.isin(true, made.classes)
        retain = ~affected
    harmed = predicted[affected], true[affected]
    if setting.manipulation == "backdoor":
        harmed = _predictions(run, "adv_test")
        if sorted(harmed[1]) != sorted(true):
            raise UserError("targetsadv_test.npy and targetstest.npy are not of the same images")
    target = TARGET if setting.manipulation == "backdoor" else None
    outcome = Outcome(*harmed, predicted[retain], true[retain], target, made.classes)
    found: Scores = {name: plugins.find("metrics", name)().measure(outcome) for name in plugins.names("metrics")}
    return found | _training_scores(setting, run, made, deletion_size)


def _training_scores(setting: SettingFolder, run: Path, made: Drawn, deletion_size: int) -> Scores:
    """Accuracy on the deletion set and on what nobody found. Of a backdoor the order of the images is not known."""
    if setting.manipulation == "backdoor" or not deletion_size:
        return {}
    predicted, true = _predictions(run, "train")
    if made.rows.max() >= len(true):
        raise UserError(f"preds_train.npy has {len(true)} rows, and row {made.rows.max()} was manipulated")
    deleted = np.isin(made.rows, _rows(setting.path.parent / f"{setting.drawn}_{deletion_size}_deletion.npy", deletion_size))
    if deleted.sum() != deletion_size:
        raise UserError(f"{setting.drawn}_{deletion_size}_deletion.npy is no part of the manipulated set")
    right = {"given": predicted[made.rows] == made.given, "true": predicted[made.rows] == made.true}
    parts = {"deletion": deleted, "unidentified": ~deleted}
    return {f"{part}_{labels}": share(hits[mask]) for part, mask in parts.items() for labels, hits in right.items()}


def _train_labels(setting: SettingFolder) -> Indices:
    """The true labels of the training set, from the original's folder or else from a run's."""
    folders = [setting.path / ORIGINAL, *sorted(setting.path.iterdir())]
    known = next((folder for folder in folders if (folder / "targetstrain.npy").is_file()), None)
    if known is None:
        raise UserError("no run has targetstrain.npy")
    return _integers(known / "targetstrain.npy")


def _predictions(run: Path, name: str) -> tuple[Indices, Indices]:
    """The predicted and the true class of each image [N]."""
    logits, true = _array(run / f"preds_{name}.npy"), _integers(run / f"targets{name}.npy")
    if logits.ndim != 2 or logits.dtype.kind != "f" or len(logits) != len(true):
        given, needed = f"{logits.dtype} {list(logits.shape)}", f"float [{len(true)}, classes]"
        raise UserError(f"preds_{name}.npy is {given}, where targets{name}.npy needs {needed}")
    if true.max() >= logits.shape[1]:
        raise UserError(f"targets{name}.npy has class {true.max()}, and preds_{name}.npy {logits.shape[1]} classes")
    if not np.isfinite(logits).all():
        raise Diverged(f"preds_{name}.npy has logits that are not finite")
    return logits.argmax(axis=1), true


def _rows(path: Path, count: int) -> Indices:
    rows = _integers(path)
    if len(np.unique(rows)) != count or len(rows) != count:
        raise UserError(f"{path.name} has {len(np.unique(rows))} different rows, where its name says {count}")
    return rows


def _integers(path: Path) -> Indices:
    array = _array(path)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        raise UserError(f"{path.name} is {array.dtype} {list(array.shape)}, where a list of whole numbers from 0 is needed")
    return array.astype(np.int64)


def _array(path: Path) -> npt.NDArray[np.generic]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a false header claims no memory
    except FileNotFoundError:
        raise UserError(f"there is no {path.name}") from None
    except Exception as problem:  # whatever NumPy makes of a damaged header
        raise UserError(f"{path.name} cannot be read: {in_one_line(problem)}") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path.name} is no single array")
    return found
