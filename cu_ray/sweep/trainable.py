"""The Tune trainable: take a job, call the stages, report the record. No learning code here.

A Tune trial is a worker, and each of its results is the record of one of our trials. So a worker stays warm whatever it does
next, no worker starves another, and a trial costs Tune a result and not an actor, two folders and an entry in its memory.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
from typing import Any

import ray
from ray import tune

from cu_ray import plugins
from cu_ray.lazy import torch
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.warm import MOST_DATASETS
from cu_ray.store import open_store
from cu_ray.sweep.desk import Packed
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.ready import Job
from cu_ray.sweep.watchdog import at_most
from cu_ray.types import OriginalSpec, Record, TrialSpec


def pack(job: Job) -> Packed:
    """A job as it travels to a worker."""
    setting = job.spec.setting if isinstance(job.spec, OriginalSpec) else job.spec.original.setting
    return {"kind": job.kind, "key": job.key, "data": setting.content_hash, "spec": json.dumps(job.spec.describe())}


def unpack(result: dict[str, Any]) -> Record | None:
    """The record that a worker reported; None where it has only arrived, or leaves."""
    return None if result["record"] is None else Record(**json.loads(result["record"]))


def evidence_in(result: dict[str, Any]) -> evidence.File | None:
    """The evidence of that record, where it is kept."""
    content = result.get("evidence")
    return None if content is None else evidence.File(json.loads(result["record"])["key"], content)


class StageTrainable(tune.Trainable):
    """One warm worker: it makes a record an iteration, and keeps data, originals and memos on the device in between."""

    def setup(
        self,
        config: dict[str, Any],
        desk: Any,
        storage: str,
        device: str,
        trial_seconds: float,
        import_path: list[str],
        own_code: dict[str, tuple[str, str]],
        keeps_evidence: bool,
    ) -> None:
        """Once a worker. desk: the handle of a Desk; own_code: files and fingerprints of the user's own plug-ins."""
        sys.path[:0] = [path for path in import_path if path not in sys.path]  # plug-ins beside the sweep file
        torch.set_num_threads(1)
        self._changed = [name for name, known in own_code.items() if _is_other(name, *known)]
        self._desk, self._store, self._device = desk, open_store(storage), device
        self._benches: dict[str, Workbench] = {}  # by data set, the last used last
        self._trial_seconds, self._keeps_evidence, self._arrived = trial_seconds, keeps_evidence, False

    def step(self) -> dict[str, Any]:
        """The record of the next job; of the first iteration none: it says that the worker is there."""
        if not self._arrived:
            self._arrived = True
            node = ray.get_runtime_context().get_node_id()
            return {"record": None, "node": node, "host": platform.node(), "process": os.getpid(), "changed": self._changed}
        job = ray.get(self._desk.take.remote(self.trial_id))
        if job is None:
            return {"record": None, "done": True}
        record = self._record(job)
        file = evidence.packed(record, job["data"]) if self._keeps_evidence else None
        return {"record": json.dumps(record.to_json()), "evidence": None if file is None else file.content}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the ledger is what remembers."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

    def _record(self, job: Packed) -> Record:
        described = json.loads(job["spec"])
        try:
            spec = (OriginalSpec if job["kind"] == "original" else TrialSpec).build(described)
        except Exception as error:  # a plug-in that is not on this machine, or another version of it
            reason = f"{platform.node()} cannot build this job: {type(error).__name__}: {error}"
            return Record(job["kind"], job["key"], described, "failed", reason)
        bench = self._bench(job["data"])
        with at_most(self._trial_seconds, spec):
            return bench.run_original(spec) if isinstance(spec, OriginalSpec) else bench.run_trial(spec)

    def _bench(self, content_hash: str) -> Workbench:
        """The workbench of a data set, which is warm where it was used lately."""
        bench = self._benches.pop(content_hash, None)
        if bench is None:
            if len(self._benches) >= MOST_DATASETS:
                self._benches.pop(next(iter(self._benches))).forget()
            shared = ray.get(self._desk.datasets.remote())
            bench = Workbench(ray.get(shared[content_hash]), self._store, self._device)
        self._benches[content_hash] = bench
        return bench


def _is_other(name: str, file: str, fingerprint: str) -> bool:
    """Whether a plug-in, imported now from that file, has another fingerprint.

    One that was sent is a copy, in another place, of what was needed; one that is not here fails where it is used.
    """
    module, _, cls = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), cls)
        return inspect.getfile(found) == file and plugins.fingerprint(found) != fingerprint
    except (Exception, SystemExit):  # whatever a user's file raises when it is imported
        return False
