"""The Tune trainable: unpack a job, call the stages, report the record. No learning code here."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import ray
from ray import tune

from cu_ray.lazy import torch
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import LocalStore
from cu_ray.sweep.agenda import Job
from cu_ray.types import OriginalSpec, Record, TrialSpec


def pack(job: Job) -> dict[str, Any]:
    """A job as a Tune configuration."""
    setting = job.spec.setting if isinstance(job.spec, OriginalSpec) else job.spec.original.setting
    return {"kind": job.kind, "key": job.key, "data": setting.content_hash, "spec": json.dumps(job.spec.describe())}


def unpack(result: dict[str, Any]) -> Record:
    """The record that a trainable reported."""
    return Record(**json.loads(result["record"]))


class StageTrainable(tune.Trainable):
    """One warm worker: it makes one record a trial, and keeps data, originals and memos on the device in between."""

    def setup(self, config: dict[str, Any], datasets: dict[str, Any], storage: str, device: str, import_path: list[str]) -> None:
        """Once a worker. datasets: references to the data sets in the object store, by content hash."""
        sys.path[:0] = [path for path in import_path if path not in sys.path]  # plug-ins beside the sweep file
        torch.set_num_threads(1)
        self._config = config
        self._datasets, self._store, self._device = datasets, LocalStore(storage), device
        self._benches: dict[str, Workbench] = {}

    def step(self) -> dict[str, Any]:
        """The job's record."""
        config = self._config
        described = json.loads(config["spec"])
        try:
            spec = (OriginalSpec if config["kind"] == "original" else TrialSpec).build(described)
        except Exception as error:  # a plug-in that is not on this machine, or another version of it
            reason = f"{platform.node()} cannot build this job: {type(error).__name__}: {error}"
            record = Record(config["kind"], config["key"], described, "failed", reason)
        else:
            bench = self._bench(config["data"])
            record = bench.run_original(spec) if isinstance(spec, OriginalSpec) else bench.run_trial(spec)
        return {"record": json.dumps(record.to_json()), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job and stay warm."""
        self._config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the ledger is what remembers."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

    def _bench(self, content_hash: str) -> Workbench:
        if content_hash not in self._benches:
            dataset = ray.get(self._datasets[content_hash])
            self._benches[content_hash] = Workbench(dataset, self._store, self._device)
        return self._benches[content_hash]
