"""One trial in this process, without Ray: to try a method in a debugger, and to replay what a ledger holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cu_ray import plugins
from cu_ray.config import MethodPlan, Sweep
from cu_ray.errors import FieldFault, UserError
from cu_ray.lazy import torch
from cu_ray.learning.precision import local_device_kind
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import LocalStore
from cu_ray.sweep import ledger
from cu_ray.sweep.plan import typical_point
from cu_ray.sweep.runner import load_datasets, make_plan
from cu_ray.types import Dataset, Record, TrialSpec


def try_method(sweep: Sweep, method: MethodPlan, fraction: float, seed: int) -> Record:
    """The record of one trial on the sweep's first setting: fixed values, and the defaults or middles of ranges."""
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction}: a deletion fraction is above 0 and at most 1")
    sweep = replace(sweep, methods=(method,), fractions=(fraction,), seeds=(seed,))
    datasets = load_datasets(sweep)
    study = make_plan(sweep, datasets).studies[0]
    defaults = {name: fact.default for name, fact in plugins.facts(method.cls).items()}
    point = {**typical_point(study), **{name: defaults[name] for name in method.space if defaults[name] is not None}}
    try:
        spec = study.trial(point, study.settings[0], fraction if study.fractions else None)
    except FieldFault as error:
        raise UserError(f"{error.field}: {error}") from error
    device = local_device_kind() if sweep.runtime.device == "auto" else sweep.runtime.device
    return _bench(datasets[study.settings[0].dataset], sweep.runtime.storage, device).run_trial(spec)


def replay(folder: Path, key: str) -> tuple[Record, Record]:
    """The recorded trial whose key starts so, and its record when run again. Raises UserError where there is no such trial."""
    known = ledger.read(folder / "ledger").trials
    found = [record for each, record in known.items() if each.startswith(key)]
    if len(found) != 1:
        raise UserError(f"{len(found)} of the {len(known)} trials in {folder} have a key that starts with {key!r}; one is needed")
    spec = TrialSpec.build(found[0].spec)
    if spec.key != found[0].key:
        raise UserError(
            f"trial {key} was made by other versions of its plug-ins: it cannot be replayed with the code installed here"
        )
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    dataset = spec.original.setting.dataset.load()
    return found[0], _bench(dataset, status["storage"], status["device"]).run_trial(spec)


def _bench(dataset: Dataset, storage: str, device: str) -> Workbench:
    """A workbench as a worker has it: scores depend on the number of threads in their last bits, so there is one."""
    torch.set_num_threads(1)
    return Workbench(dataset, LocalStore(storage), device)
