"""The stages in order: a workbench that makes originals and trials, and keeps what the next one may need.

Works in a plain prompt: `Workbench(dataset, store, device).run_trial(spec)`.
"""

from __future__ import annotations

import datetime
import math
import platform
import resource
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from cu_ray import __version__
from cu_ray.errors import ContractBroken, CuRayError, Diverged
from cu_ray.lazy import torch
from cu_ray.learning.precision import require
from cu_ray.stages.evaluate import evaluate, images_evaluated
from cu_ray.stages.poison import OnDevice, detect, nothing_found, poison, upload
from cu_ray.stages.train import build_model, train
from cu_ray.stages.unlearn import Memo, Unlearned, now, unlearn
from cu_ray.types import Cost, Dataset, OriginalSpec, PoisonedDataset, Record, Scores, Setting, Store, Tensors, TrialSpec

KEPT = {"data": 4, "originals": 4, "memos": 4}  # how many of each stay on the device between trials

Value = TypeVar("Value")


class Workbench:
    """Runs the stages for one data set on one device; what trials share stays warm in between, oldest dropped first."""

    def __init__(self, dataset: Dataset, store: Store, device: str = "cpu") -> None:
        self.dataset, self._store = dataset, store
        self._device = torch.device(device)
        self._data: _Recent[tuple[PoisonedDataset, OnDevice]] = _Recent(KEPT["data"])
        self._originals: _Recent[torch.nn.Module] = _Recent(KEPT["originals"])
        self._memos = _KeptMemos(store, self._device)

    def run_original(self, spec: OriginalSpec) -> Record:
        """The record of an original model, which is then in the store; trained only where it is not there yet."""
        return self._recorded("original", spec.key, spec.describe(), lambda facts: self._original_scores(spec, facts))

    def run_trial(self, spec: TrialSpec) -> Record:
        """The record of a trial; its original is trained first where the store has none. Never raises for a failed trial."""
        return self._recorded("trial", spec.key, spec.describe(), lambda facts: self._trial_scores(spec, facts))

    def poisoned(self, setting: Setting) -> tuple[PoisonedDataset, OnDevice]:
        """The manipulated data of a setting, here and on the device."""
        if setting.content_hash != self.dataset.content_hash:
            raise CuRayError(f"data set {self.dataset.name} has changed: its content is not the one this trial was planned for")

        def make() -> tuple[PoisonedDataset, OnDevice]:
            poisoned = poison(self.dataset, setting.manipulation, seed=setting.seed, control=setting.control)
            return poisoned, upload(poisoned, self._device)

        return self._data.get(str(setting.poison_identity), make)

    def original(self, spec: OriginalSpec) -> tuple[torch.nn.Module, bool]:
        """The original model on the device, and whether it was trained just now."""
        trained = False

        def make() -> torch.nn.Module:
            nonlocal trained
            poisoned, data = self.poisoned(spec.setting)
            entry = self._store.load("originals", spec.key)
            if entry is not None:
                model = build_model(spec.setting.model, poisoned, self._device, seed=0)
                model.load_state_dict({name: torch.from_numpy(array) for name, array in entry[0].items()})
                return model.eval()
            if spec.setting.weights is not None:
                raise CuRayError(
                    "the original's weights are not in the store: `cu-ray sweep` puts them there, workers share runtime.storage"
                )
            require(spec.setting.train.precision, self._device)
            model = train(spec, poisoned, data)
            self._store.save("originals", spec.key, arrays_of(model), {})
            trained = True
            return model

        return self._originals.get(spec.key, make), trained

    def unlearned(self, spec: TrialSpec, facts: dict[str, Any] | None = None) -> Unlearned:
        """What the method makes of the original; facts of it are put into `facts`."""
        facts = {} if facts is None else facts
        require(spec.original.setting.train.precision, self._device)
        poisoned, data = self.poisoned(spec.original.setting)
        split = detect(poisoned, spec.detection, spec.deletion_size, held_out=spec.held_out)
        original, _ = self.original(spec.original)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        result = unlearn(spec, original, poisoned, data, split, self._memos)
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

    def _original_scores(self, spec: OriginalSpec, facts: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, float]]:
        poisoned, data = self.poisoned(spec.setting)
        started = now(self._device)
        model, trained = self.original(spec)
        facts |= {"train_seconds": now(self._device) - started if trained else None, "effective_size": poisoned.effective_size}
        return self._timed_scores(model, poisoned, data, nothing_found(poisoned), spec.setting, facts), {}

    def _trial_scores(self, spec: TrialSpec, facts: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, float]]:
        result = self.unlearned(spec, facts)
        return self.scores(spec, result.model, facts), result.notes

    def scores(self, spec: TrialSpec, model: torch.nn.Module, facts: dict[str, Any] | None = None) -> Scores:
        """The scores of an unlearned model of this trial."""
        poisoned, data = self.poisoned(spec.original.setting)
        split = detect(poisoned, spec.detection, spec.deletion_size, held_out=spec.held_out)
        return self._timed_scores(model, poisoned, data, split, spec.original.setting, {} if facts is None else facts)

    def _timed_scores(
        self,
        model: torch.nn.Module,
        poisoned: PoisonedDataset,
        data: OnDevice,
        split: Any,
        setting: Setting,
        facts: dict[str, Any],
    ) -> dict[str, float | None]:
        started = now(self._device)
        scores = evaluate(model, poisoned, data, split, setting.train.precision)
        facts["eval_seconds"] = now(self._device) - started
        return scores

    def _recorded(
        self,
        kind: str,
        key: str,
        spec: dict[str, Any],
        run: Callable[[dict[str, Any]], tuple[dict[str, float | None], dict[str, float]]],
    ) -> Record:
        facts: dict[str, Any] = {"started_at": _timestamp(), "num_classes": self.dataset.num_classes, **self._machine()}
        try:
            scores, notes = run(facts)
            _require_finite_scores(scores)
            status, error = "ok", None
        except Diverged as problem:
            scores, notes, status, error = {}, {}, "diverged", str(problem)
        except Exception as problem:  # whatever a plug-in raises becomes a row, and the sweep goes on
            scores, notes, status, error = {}, {}, "failed", _one_line(problem)
        facts |= {"finished_at": _timestamp(), "peak_memory_bytes": self._peak_memory()}
        return Record(kind, key, spec, status, error, scores, facts, notes)

    def _machine(self) -> dict[str, Any]:
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


class _Recent(Generic[Value]):
    """The most recently used values by key."""

    def __init__(self, limit: int) -> None:
        self._limit, self._values = limit, OrderedDict[str, Value]()

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """The value, made where it is not there."""
        if key not in self._values:
            while len(self._values) >= self._limit:  # first, so that the device never holds one more
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def find(self, key: str) -> Value | None:
        """The value, or None."""
        return self._values.get(key)


class _KeptMemos:
    """Memos on the device for this worker, in the store for others."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store, self._device = store, device
        self._recent: _Recent[Memo] = _Recent(KEPT["memos"])

    def load(self, key: str) -> Memo | None:
        """The memo, or None where nobody computed it yet."""
        known = self._recent.find(key) or self._from_store(key)
        return known and self._recent.get(key, lambda: known)

    def save(self, key: str, memo: Memo) -> None:
        """Keep a memo here and in the store."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in memo.tensors.items()}
        facts = {"forward": memo.cost.forward, "backward": memo.cost.backward, "seconds": memo.seconds}
        self._store.save("memos", key, arrays, {name: str(fact) for name, fact in facts.items()})
        self._recent.get(key, lambda: memo)

    def _from_store(self, key: str) -> Memo | None:
        entry = self._store.load("memos", key)
        if entry is None:
            return None
        arrays, facts = entry
        if not {"forward", "backward", "seconds"} <= facts.keys():  # not written by this code
            return None
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return Memo(tensors, Cost(int(facts["forward"]), int(facts["backward"])), float(facts["seconds"]))


def arrays_of(model: torch.nn.Module) -> Tensors:
    """The model's parameters and buffers as contiguous arrays."""
    return {name: np.asarray(tensor.detach().cpu().numpy(), order="C") for name, tensor in model.state_dict().items()}


def _require_finite_scores(scores: Scores) -> None:
    for name, score in scores.items():
        if score is not None and not math.isfinite(score):
            raise ContractBroken(f"the metric {name} gave {score}: a number between 0 and 1 or None is needed")


def _timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _one_line(problem: Exception) -> str:
    where = traceback.extract_tb(problem.__traceback__)[-1]
    place = "" if isinstance(problem, ContractBroken) else f" ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
    return f"{type(problem).__name__}: {problem}{place}"
