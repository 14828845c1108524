"""The stages in order: a workbench that makes originals and trials, and keeps what the next one may need.

Works in a plain prompt: `Workbench(dataset, store, device).run_trial(spec)`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import functools
import math
import platform
import resource
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from cu_ray import __version__, plugins
from cu_ray.errors import ContractBroken, CuRayError, Diverged, OriginalMissing, StoreFailed
from cu_ray.identity import key_of, seed_for
from cu_ray.lazy import torch
from cu_ray.learning.batches import as_tensor
from cu_ray.learning.precision import require
from cu_ray.places import patiently
from cu_ray.plugins import name_of
from cu_ray.stages.evaluate import Evaluation, evaluate, images_evaluated, predict
from cu_ray.stages.evidence import Array, OriginalsEvidence
from cu_ray.stages.poison import OnDevice, detect, nothing_found, poison, upload
from cu_ray.stages.process import device_is_lost, is_from_signal, seed_generators, state_kept
from cu_ray.stages.reasons import blamed, is_out_of_memory, reason_of
from cu_ray.stages.seen import Seen
from cu_ray.stages.train import build_model, train
from cu_ray.stages.unlearn import Unlearned, now, unlearn
from cu_ray.stages.warm import Warm
from cu_ray.types import (
    LEARNING_VERSION,
    Dataset,
    DeletionSplit,
    OriginalSpec,
    PoisonedDataset,
    Record,
    Scores,
    Setting,
    Store,
    Tensors,
    TrialSpec,
)

PAUSES = (1.0, 10.0, 30.0)  # seconds after which the store of the originals is tried again
Done = TypeVar("Done")


class Workbench:
    """Runs the stages for one data set on one device; what trials share stays warm in between, oldest dropped first."""

    def __init__(self, dataset: Dataset, store: Store, device: str = "cpu", *, trains: bool = True) -> None:
        """trains: whether originals are trained that the store has not; else they are missing."""
        self.dataset, self._store, self._trains = dataset, store, trains
        self._device = torch.device(device)
        self._warm = Warm(store, self._device)
        self._last_split: tuple[str, DeletionSplit] | None = None
        self._last_before: tuple[str, float | None] | None = None
        self._seen = Seen()
        self._evidence: tuple[str, OriginalsEvidence] | None = None  # of the last original

    def run_original(self, spec: OriginalSpec) -> Record:
        """The record of an original model, which is then in the store; trained only where it is not there yet."""
        return self._recorded("original", spec.key, spec.describe(), lambda facts: self._original_evaluated(spec, facts))

    def run_trial(self, spec: TrialSpec) -> Record:
        """The record of a trial; its original is trained first where the store has none.

        Raises for no failed trial, only for a signal that ends this process.
        """
        return self._recorded("trial", spec.key, spec.describe(), lambda facts: self._trial_evaluated(spec, facts))

    def forget(self) -> None:
        """Drop what is warm, and give its memory back: all of it can be made again."""
        self._warm.forget()
        self._last_split, self._last_before, self._evidence, self._seen = None, None, None, Seen()

    def poisoned(self, setting: Setting) -> tuple[PoisonedDataset, OnDevice]:
        """The manipulated data of a setting, here and on the device."""
        if setting.content_hash != self.dataset.content_hash:
            raise CuRayError(f"data set {self.dataset.name} has changed: its content is not the one this trial was planned for")

        def make() -> tuple[PoisonedDataset, OnDevice]:
            poisoned = poison(self.dataset, setting.manipulation, seed=setting.seed, control=setting.control)
            kept = self._warm.data.last()
            return poisoned, upload(poisoned, self._device, kept and kept[1])

        return self._warm.data.get(str(setting.poison_identity), make)

    def original(self, spec: OriginalSpec) -> tuple[torch.nn.Module, bool]:
        """The original model on the device, and whether it was trained just now."""
        trained = False

        def make() -> torch.nn.Module:
            nonlocal trained
            poisoned, data = self.poisoned(spec.setting)
            if (model := self._stored(spec, poisoned)) is not None:
                return model
            if spec.setting.weights is not None:
                raise CuRayError(
                    "the original's weights are not in the store: `cu-ray sweep` puts them there, workers share runtime.storage"
                )
            if not self._trains:
                raise OriginalMissing(f"the original model {spec.key} is not in the store")
            require(spec.setting.train.precision, self._device)
            with self._store.claimed("originals", spec.key):
                if (model := self._stored(spec, poisoned)) is not None:  # another sweep has made it meanwhile
                    return model
                with state_kept():
                    seed_generators(seed_for("global", spec.key))
                    model = train(spec, poisoned, data)
                _patiently(lambda: self._store.save("originals", spec.key, arrays_of(model), {}))
            trained = True
            return model

        return self._warm.originals.get(spec.key, make), trained

    def _stored(self, spec: OriginalSpec, poisoned: PoisonedDataset) -> torch.nn.Module | None:
        entry = _patiently(lambda: self._store.load("originals", spec.key))
        if entry is None:
            return None
        model = build_model(spec.setting.model, poisoned, self._device, seed=0)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in entry[0].items()})
        return model.eval()

    def unlearned(self, spec: TrialSpec, facts: dict[str, Any] | None = None) -> Unlearned:
        """What the method makes of the original; facts of it are put into `facts`."""
        facts = {} if facts is None else facts
        require(spec.original.setting.train.precision, self._device)
        poisoned, data = self.poisoned(spec.original.setting)
        original, _ = self.original(spec.original)
        split = self.split(spec)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        with state_kept():
            seed_generators(seed_for("global", spec.key))
            result = unlearn(spec, original, poisoned, data, split, self._warm)
        facts |= {
            "unlearn_seconds": result.seconds,
            "unlearn_seconds_spent": result.seconds_spent,
            "effective_size": poisoned.effective_size,
            "deletion_size": len(split.deletion) + len(split.held_out),
            "detection_precision": split.precision,
            "detection_recall": split.recall if spec.deletion_size else None,
            "images_forward": result.cost.forward,
            "images_backward": result.cost.backward,
            "images_forward_spent": result.spent.forward,
            "images_backward_spent": result.spent.backward,
            "images_evaluated": images_evaluated(poisoned, split),
            "changed_share": result.changed_share,
        }
        return result

    def _original_evaluated(self, spec: OriginalSpec, facts: dict[str, Any]) -> tuple[Evaluation, dict[str, float]]:
        poisoned, data = self.poisoned(spec.setting)
        started = now(self._device)
        model, trained = self.original(spec)
        facts |= {
            "train_seconds": now(self._device) - started if trained else None,
            "effective_size": poisoned.effective_size,
            "num_affected": poisoned.num_affected,
        }
        run = copy.deepcopy(model)  # the one that trials share is never run
        precision = spec.setting.train.precision
        return self._timed(facts, lambda: evaluate(run, poisoned, data, nothing_found(poisoned), precision)), {}

    def _trial_evaluated(self, spec: TrialSpec, facts: dict[str, Any]) -> tuple[Evaluation, dict[str, float]]:
        name = name_of(spec.method)
        try:
            result = self.unlearned(spec, facts)
            with blamed(name, ContractBroken):
                return self._evaluated_trial(spec, result.model, facts), result.notes
        finally:
            if not device_is_lost(self._device):
                with blamed(name, ContractBroken):
                    self._leave_clean(spec.original.setting)

    def scores(self, spec: TrialSpec, model: torch.nn.Module) -> Scores:
        """The scores of an unlearned model of this trial, and one of the original: what it was to forget."""
        return self._evaluated_trial(spec, model, {}).scores

    def _evaluated_trial(self, spec: TrialSpec, model: torch.nn.Module, facts: dict[str, Any]) -> Evaluation:
        poisoned, data = self.poisoned(spec.original.setting)
        original, split, precision = self.original(spec.original)[0], self.split(spec), spec.original.setting.train.precision

        def run() -> Evaluation:
            return evaluate(model, poisoned, data, split, precision)

        evaluation = self._timed(facts, lambda: self._seen.evaluation(_split_key(spec), model, original, run))
        before = {"deletion_given_before": self._given_before(spec)}
        return dataclasses.replace(evaluation, scores=evaluation.scores | before)

    def _given_before(self, spec: TrialSpec) -> float | None:
        """How often the original gives the deletion set its labels as given; None where nothing was found. The last is kept."""
        rows, key = self.split(spec).deletion, _split_key(spec)
        if self._last_before is None or self._last_before[0] != key:
            poisoned, data = self.poisoned(spec.original.setting)
            original = copy.deepcopy(self.original(spec.original)[0])  # the one that trials share is never run
            predicted = predict(original, data.train, data.rows(rows), spec.original.setting.train.precision)
            self._last_before = key, float((predicted == poisoned.labels[rows]).mean()) if len(rows) else None
        return self._last_before[1]

    def split(self, spec: TrialSpec) -> DeletionSplit:
        """What detection found; the last of it is kept, as the next trial often has the same.

        It may look at the original, which is then run once for all trials in a row.
        """
        poisoned, data = self.poisoned(spec.original.setting)
        key = _split_key(spec)
        if self._last_split is None or self._last_split[0] != key:
            if self._evidence is None or self._evidence[0] != spec.original.key:
                kept = functools.partial(self._kept, spec.original.key)
                evidence = OriginalsEvidence(spec.original.setting.model, lambda: self.original(spec.original)[0], data, kept)
                self._evidence = spec.original.key, evidence
            with blamed(name_of(spec.detection)):
                split = detect(poisoned, spec.detection, spec.deletion_size, self._evidence[1], held_out=spec.held_out)
            self._last_split = key, split
        return self._last_split[1]

    def _kept(self, original_key: str, name: str, compute: Callable[[], Array]) -> Array:
        """What is computed of an original once: all workers, and who asks later, rank by the same numbers."""
        key = key_of({"evidence": name, "original": original_key, "learning": LEARNING_VERSION})
        try:
            with self._store.claimed("memos", key):
                entry = self._store.load("memos", key)
                if entry is None:
                    entry = {name: compute()}, {}
                    self._store.save("memos", key, *entry)
                return entry[0][name]
        except StoreFailed:  # others compute it again
            return compute()

    def _timed(self, facts: dict[str, Any], evaluated: Callable[[], Evaluation]) -> Evaluation:
        started = now(self._device)
        evaluation = evaluated()
        facts["eval_seconds"] = now(self._device) - started
        return evaluation

    def _recorded(
        self,
        kind: str,
        key: str,
        spec: dict[str, Any],
        run: Callable[[dict[str, Any]], tuple[Evaluation, dict[str, float]]],
    ) -> Record:
        facts: dict[str, Any] = {"started_at": _timestamp(), "num_classes": self.dataset.num_classes, **self.machine()}
        scores: Scores = {}
        notes: dict[str, float] = {}
        predictions, cut_off = None, False
        try:
            with state_kept():
                evaluation, noted = run(facts)
            _require_finite_scores(evaluation.scores)
            scores, predictions, notes = evaluation.scores, evaluation.predictions, noted
            status, error = "ok", None
        except Diverged as problem:
            status, error = "diverged", reason_of(problem)
        except BaseException as problem:  # whatever a plug-in raises becomes a row, and the sweep goes on
            if is_from_signal(problem):
                raise
            status, error = "failed", reason_of(problem)
            facts |= {"out_of_memory": True} if is_out_of_memory(problem) else {}
            facts |= {"store_failed": True} if isinstance(problem, StoreFailed) else {}
            cut_off = is_out_of_memory(problem) or not isinstance(problem, Exception)
        facts["finished_at"] = _timestamp()
        if device_is_lost(self._device):
            facts["device_lost"] = True  # of no use to any other trial: this process has to end
            return Record(kind, key, spec, status, error, scores, facts, notes, predictions)
        facts["peak_memory_bytes"] = self._peak_memory()
        if cut_off:  # at any place, and with the frames gone there is memory to free
            self.forget()
        self._warm.give_back_spare()
        return Record(kind, key, spec, status, error, scores, facts, notes, predictions)

    def _leave_clean(self, setting: Setting) -> None:
        """Raise ContractBroken where a trial wrote into what trials share; all of that is then made again."""
        try:
            self._warm.require_untouched()
        except Exception:
            self.forget()
            with contextlib.suppress(Exception):  # the data set may be gone from here: later trials then say that it has changed
                self._mend_images(setting)
            raise

    def _mend_images(self, setting: Setting) -> None:
        """Put back images that were written to, in place: on a CPU all workers of a machine see them in the same memory."""
        self.dataset = dataclasses.replace(self.dataset)  # whose content hash is not known yet
        if self.dataset.content_hash == setting.content_hash:
            return
        loaded = setting.dataset.load()
        for damaged, whole in ((self.dataset.train, loaded.train), (self.dataset.test, loaded.test)):
            as_tensor(damaged.pixels).copy_(as_tensor(whole.pixels))
            as_tensor(damaged.labels).copy_(as_tensor(whole.labels))
        self.dataset = dataclasses.replace(self.dataset)

    def machine(self) -> dict[str, Any]:
        """What a record says of where it was made, and with which versions."""
        cuda = self._device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "host": platform.node(),
            "cu_ray_version": __version__,
            "torch_version": torch.__version__,
        }

    def _peak_memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _split_key(spec: TrialSpec) -> str:
    return key_of([spec.original.key, plugins.describe(spec.detection), spec.deletion_size, spec.held_out])


def _patiently(act: Callable[[], Done]) -> Done:
    """What a store does, tried again where it fails: an original has taken long."""
    return patiently(act, StoreFailed, PAUSES)


def arrays_of(model: torch.nn.Module) -> Tensors:
    """The model's parameters and buffers as contiguous arrays."""
    return {name: np.asarray(tensor.detach().cpu().numpy(), order="C") for name, tensor in model.state_dict().items()}


def _require_finite_scores(scores: Scores) -> None:
    for name, score in scores.items():
        if score is not None and not math.isfinite(score):
            raise ContractBroken(f"the metric {name} gave {score}: a number between 0 and 1 or None is needed")


def _timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
