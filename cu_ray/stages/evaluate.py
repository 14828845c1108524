"""Stage 4: the scores of a model. Also what `keep: best_on_test` needs while a model is still learning."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from cu_ray.errors import ContractBroken
from cu_ray.identity import generator_for
from cu_ray.lazy import torch
from cu_ray.learning.batches import DeviceImages
from cu_ray.learning.precision import autocast
from cu_ray.stages.measure import halves, measure, metrics
from cu_ray.stages.poison import OnDevice
from cu_ray.stages.reasons import is_out_of_memory, reason_of
from cu_ray.types import DeletionSplit, Indices, Mask, PoisonedDataset, Predictions, Scores

BATCH_SIZES = {
    "cpu": 125,  # so that a processor has the activations in its cache: docs/speed.md
    "cuda": 2000,  # twice as fast as 500, on an H200
}
RETAIN_SAMPLE = 1000  # images of the retain set on which `retain_given` is measured


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a model, each between 0 and 1 or None where it has no meaning, and the predictions behind its metrics."""

    scores: Scores
    predictions: Predictions


def evaluate(
    model: torch.nn.Module, poisoned: PoisonedDataset, data: OnDevice, split: DeletionSplit, precision: str
) -> Evaluation:
    """All scores of a model.

    The metrics on the whole test set, and on its selection (`val_`) and report half (`report_`); accuracies on the deletion
    set, on the manipulated samples nobody found, on a sample of the retain set, on the held-out part of the deletion set and
    on the owner's validation samples. `_given`: against the labels as given; `_true`: against the true ones.
    """
    test = TestPredictions(model, poisoned, data, precision)
    counted = halves(poisoned.selection_half)
    scores = {prefix + name: score for prefix, rows in counted.items() for name, score in test.metrics(rows).items()}
    scores |= _training_scores(model, poisoned, data, split, precision)
    validation = poisoned.validation
    scores["validation_given"] = float((test.seen(validation.rows, validation.stamped) == validation.labels).mean())
    return Evaluation(scores, test.predictions)


def training_sets(poisoned: PoisonedDataset, split: DeletionSplit) -> dict[str, Indices]:
    """The training rows on which accuracies are reported, by name."""
    found = np.concatenate([split.deletion, split.held_out])
    rng = generator_for("retain sample", poisoned.key)
    sample = rng.permutation(len(poisoned.labels))
    return {
        "deletion": split.deletion,
        "unidentified": np.setdiff1d(poisoned.corruption.indices, found),
        "held_out": split.held_out,
        "retain": sample[~np.isin(sample, found)][:RETAIN_SAMPLE],
    }


def images_evaluated(poisoned: PoisonedDataset, split: DeletionSplit) -> int:
    """How many images `evaluate` sends through a model."""
    views = 2 if poisoned.corruption.stamp is not None else 1
    return views * len(poisoned.selection_half) + sum(map(len, training_sets(poisoned, split).values()))


def _training_scores(
    model: torch.nn.Module, poisoned: PoisonedDataset, data: OnDevice, split: DeletionSplit, precision: str
) -> Scores:
    scores: Scores = {}
    truth = poisoned.dataset.train.labels if poisoned.corruption.truth_known else None
    for name, rows in training_sets(poisoned, split).items():
        predicted = predict(model, data.train, data.rows(rows), precision)
        for labels_name, labels in (("given", poisoned.labels), ("true", truth)):
            score = float((predicted == labels[rows]).mean()) if labels is not None and len(rows) else None
            scores[f"{name}_{labels_name}"] = score
    return scores


class TestPredictions:
    """A model's predictions on the test images without the trigger, and with it where the manipulation has one."""

    def __init__(self, model: torch.nn.Module, poisoned: PoisonedDataset, data: OnDevice, precision: str) -> None:
        self._poisoned = poisoned
        rows = torch.arange(len(poisoned.selection_half), device=data.device)
        plain = predict(model, data.test, rows, precision)
        has_stamp = poisoned.corruption.stamp is not None
        self.predictions = Predictions(plain, predict(model, data.test, rows, precision, stamp_all=True) if has_stamp else None)

    def seen(self, rows: Indices, stamped: Mask) -> Indices:
        """The predictions for these rows, each with or without the trigger."""
        return np.where(stamped, self.predictions.seen(True)[rows], self.predictions.plain[rows])

    def metrics(self, counted: Mask) -> Scores:
        """Every metric over those test images that are counted."""
        return measure(metrics(), self.predictions, self._poisoned.domains, self._poisoned.dataset.test.labels, counted)


def predict(
    model: torch.nn.Module, images: DeviceImages, rows: torch.Tensor, precision: str, *, stamp_all: bool = False
) -> Indices:
    """The predicted classes [N] of these rows, without augmentation. The model's mode is left as it was.

    Raises ContractBroken where the model cannot be run.
    """
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.inference_mode(), autocast(precision, images.device):
        chunks = rows.split(BATCH_SIZES[images.device.type]) if len(rows) else ()
        predicted = [_classes(model, images.load(chunk, stamp_all=stamp_all)) for chunk in chunks]
    for module in was_training:
        module.training = True
    return np.asarray(torch.cat(predicted).cpu(), dtype=np.int64) if len(rows) else np.empty(0, dtype=np.int64)


def _classes(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    try:
        classes: torch.Tensor = model(images).argmax(dim=1)
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise ContractBroken(f"the model cannot be run: {reason_of(problem)}") from problem
    return classes


class Keeper:
    """Keeps the last model offered, or a copy of the one that did best on the test set (`keep: best_on_test`)."""

    def __init__(self, keep: str, poisoned: PoisonedDataset, data: OnDevice, precision: str) -> None:
        self.looks, self._poisoned, self._data, self._precision = keep != "last", poisoned, data, precision
        self._best: tuple[float, dict[str, torch.Tensor]] | None = None

    def offer(self, model: torch.nn.Module) -> None:
        """Look at a model at the end of an epoch."""
        if not self.looks:
            return
        score = self._score(model)
        if self._best is None or score > self._best[0]:
            self._best = (score, copy.deepcopy(model.state_dict()))

    def keep(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with the weights to keep."""
        if self._best is not None:
            model.load_state_dict(self._best[1])
        return model.eval()

    def _score(self, model: torch.nn.Module) -> float:
        test = TestPredictions(model, self._poisoned, self._data, self._precision)
        metrics = test.metrics(np.ones(len(self._poisoned.selection_half), dtype=bool))
        return float(np.mean([metrics[name] or 0.0 for name in ("acc_corr", "acc_retain")]))
