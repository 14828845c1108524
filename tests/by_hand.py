"""A sweep as the driver and a worker make it, one job after another in this process: real models, no Ray."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import yaml

from cu_ray import config
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import open_store
from cu_ray.sweep import runner, tables
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.ledger import Ledger, evidence
from cu_ray.sweep.ready import Job
from cu_ray.types import TrialSpec

METHODS = {"no_unlearning": {}, "catastrophic_forgetting": {"steps": 2}, "gradient_ascent": {"steps": 2, "trials": 2}}
SWEEP = {
    "name": "small",
    "dataset": "fashion_mnist_small",
    "model": {"name": "resnet9", "width": 2},
    "manipulation": {"name": "backdoor", "size": 60},
    "train": {"steps": 8, "lr": 0.05, "batch_size": 64, "precision": "fp32"},
    "deletion_fractions": [0.5],
    "seeds": [0, 1],
    "methods": METHODS,
    "search": {"sampler": "random"},
}


def sweep(folder: Path, **sections) -> config.Sweep:
    """The sweep of these sections, with results and models in the folder."""
    runtime = {"output": str(folder / "results"), "storage": str(folder / "store"), "device": "cpu"}
    return config.parse(yaml.safe_dump({**SWEEP, "runtime": runtime, **sections}))


def run(wanted: config.Sweep) -> list[Job]:
    """Run what of it is not done; the jobs that it took."""
    datasets = runner.load_datasets(wanted)
    made = runner.make_plan(wanted, datasets)
    store, jobs = open_store(wanted.runtime.storage), []
    benches = {each.content_hash: Workbench(each, store) for each in datasets.values()}
    with Ledger(wanted.folder / "ledger") as book:
        lacking = runner.without_evidence(wanted, book.known)
        agenda = Agenda(made, book, original_cached=lambda key: store.has("originals", key), lacking=lacking)
        while (job := agenda.next()) is not None:
            jobs.append(job)
            setting = job.spec.original.setting if isinstance(job.spec, TrialSpec) else job.spec.setting
            bench = benches[setting.content_hash]
            record = bench.run_trial(job.spec) if isinstance(job.spec, TrialSpec) else bench.run_original(job.spec)
            assert record.ok, record.error
            file = evidence.packed(record, setting.content_hash) if wanted.evidence else None
            agenda.write(record, file).result()
            agenda.complete(type(record)(**record.to_json()))
        tables.write(wanted.folder / "tables", made, book.known)
        done = Counter(job.kind for job in jobs)
        status = {"running": False, "process": 1, "host": "here", "storage": wanted.runtime.storage, "device": "cpu"}
        status |= dict.fromkeys(("trials", "trials_done"), done["trial"]) | dict.fromkeys(("originals", "originals_done"), 2)
        wanted.folder.write("status.json", json.dumps(status | {"trials_failed": 0, "studies": 3}).encode())
        wanted.folder.write("sweep.yaml", wanted.text.encode())
    return jobs
