"""One trial in this process, without Ray: to try a method in a debugger, to replay or export what a ledger holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.numpy import save

from cu_ray import __version__, checks, plugins
from cu_ray.config import MethodPlan, Sweep
from cu_ray.errors import CuRayError, FieldFault, UserError, did_you_mean
from cu_ray.lazy import torch
from cu_ray.places import Place, at
from cu_ray.report.terminal import cells_of, rows_of
from cu_ray.stages.pipeline import Workbench, arrays_of
from cu_ray.store import open_store
from cu_ray.sweep import hardware, ledger, status, weights
from cu_ray.sweep.plan import typical_point
from cu_ray.sweep.runner import load_datasets, make_plan
from cu_ray.types import Dataset, Record, TrialSpec


def try_method(sweep: Sweep, method: MethodPlan, fraction: float, seed: int) -> Record:
    """The record of one trial on the sweep's first setting: fixed values, and the defaults or middles of ranges."""
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction}: a deletion fraction is above 0 and at most 1")
    sweep = replace(sweep, methods=(method,), fractions=(fraction,), seeds=(seed,))
    sweep = hardware.here(sweep).settle(sweep)
    datasets = load_datasets(sweep)
    made = make_plan(sweep, datasets)
    if sweep.original.path is not None:
        weights.deposit(weights.read(sweep.original.path), made, open_store(sweep.runtime.storage))
    study = next(each for each in made.studies if each.method is method)
    defaults = {name: fact.default for name, fact in plugins.facts(method.cls).items()}
    point = {**typical_point(study), **{name: defaults[name] for name in method.space if defaults[name] is not None}}
    try:
        spec = study.trial(point, study.settings[0], fraction if study.fractions else None)
    except FieldFault as error:
        raise UserError(f"{error.field}: {error}") from error
    return _bench(datasets[study.settings[0].dataset], sweep.runtime.storage, sweep.runtime.device).run_trial(spec)


def replay(folder: Place | Path, key: str) -> tuple[Record, Record]:
    """The recorded trial whose key starts so, and its record when run again. Raises UserError where there is no such trial."""
    recorded, spec, bench = _recorded(folder, key)
    return recorded, bench.run_trial(spec)


@dataclass(frozen=True)
class Export:
    """A corrected model on disk."""

    folder: Place
    trial_key: str
    same_scores: bool  # as recorded, to the bit


def export(folder: Place | Path, key: str, target: Place | Path | None) -> Export:
    """The unlearned model of a trial, made again and written as weights with a loader. Raises UserError where it cannot be."""
    recorded, spec, bench = _recorded(folder, key)
    if not recorded.ok:
        raise UserError(f"trial {recorded.key[:16]} {recorded.status} ({recorded.error}): there is no model to export")
    try:
        model = bench.unlearned(spec).model
    except CuRayError as error:
        raise UserError(f"trial {recorded.key[:16]} cannot be made again: {error}") from error
    same = recorded.scores.items() <= bench.scores(spec, model).items()  # newer versions measure more
    place = at(target or at(folder) / "export" / recorded.key[:16])
    made_by = {"trial_key": recorded.key, "cu_ray_version": __version__}
    place.write("model.safetensors", save(arrays_of(model), metadata=made_by))
    place.write("trial.json", json.dumps({"trial_key": recorded.key, **recorded.to_json()}, indent=2).encode())
    place.write("load.py", _loader(spec, bench.dataset).encode())
    return Export(place, recorded.key, same)


def chosen(folder: Place | Path, rule: str | None, method: str | None, fraction: float | None) -> str:
    """The key of the trial that a selection rule holds for the best of a finished sweep, of one method or fraction if given.

    Controls are no candidates: they are there to compare with. Raises UserError where no trial was chosen.
    """
    rows = [
        row for row in rows_of(at(folder) / "tables") if row["trial_keys"] and row["score"] is not None and not row["control"]
    ]
    rule = rule or next((row["search_objective"] for row in rows if row["search_objective"]), "oracle_validation")
    for name, wish in (("rule", rule), ("method", method), ("deletion_fraction", fraction)):
        there = list(dict.fromkeys(row[name] for row in rows))
        rows = [row for row in rows if wish is None or row[name] == wish]
        if not rows:
            raise UserError(f"{folder} has nothing chosen with {name} {wish!r}. {did_you_mean(str(wish), map(str, there))}")
    cells = list(dict.fromkeys(cells_of(rows)))
    if len(cells) > 1:
        raise UserError(f"{folder} has several settings ({'; '.join(cells)}): give the key of a trial, from best.parquet")
    best = max(rows, key=lambda row: row["score"])
    return str(best["trial_keys"][0])


def _loader(spec: TrialSpec, dataset: Dataset) -> str:
    setting, normalisation = spec.original.setting, dataset.normalisation
    described = {name: value for name, value in plugins.describe(setting.model).items() if name not in ("name", "version")}
    cls = type(setting.model)
    settings = ", ".join(f"{name}={value!r}" for name, value in described.items())
    classes = ", ".join(name if name.isprintable() else repr(name) for name in dataset.class_names)  # stay within their comment
    return (
        f"# images: float32 [B, {dataset.image_shape[2]}, {dataset.image_shape[0]}, {dataset.image_shape[1]}], "
        f"(pixel / 255 - {list(normalisation.mean)}) / {list(normalisation.std)} by channel\n"
        f"# classes: {classes}\n"
        "from pathlib import Path\n\n"
        "from safetensors.torch import load_file\n\n"
        f"from {cls.__module__} import {cls.__name__}\n\n"
        f"model = {cls.__name__}({settings}).build({dataset.image_shape}, {dataset.num_classes})\n"
        'model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))\n'
        "model.eval()\n"
    )


def _recorded(folder: Place | Path, key: str) -> tuple[Record, TrialSpec, Workbench]:
    """The one recorded trial whose key starts so, its spec and the workbench to make it again."""
    known = ledger.read(at(folder) / "ledger").trials
    found = [record for each, record in known.items() if each.startswith(key)]
    if len(found) != 1:
        raise UserError(f"{len(found)} of the {len(known)} trials in {folder} have a key that starts with {key!r}; one is needed")
    try:
        spec = TrialSpec.build(found[0].spec)
    except (TypeError, ValueError, LookupError, AttributeError, FieldFault):  # settings that its plug-ins do not have (any more)
        spec = None
    if spec is None or spec.key != found[0].key:
        raise UserError(f"trial {key} was made by other versions of its plug-ins: the code installed here cannot make it again")
    facts = status.read(folder)
    dataset = checks.loaded(spec.original.setting.dataset)
    return found[0], spec, _bench(dataset, facts["storage"], facts["device"])


def _bench(dataset: Dataset, storage: str, device: str) -> Workbench:
    """A workbench as a worker has it: scores depend on the number of threads in their last bits, so there is one."""
    torch.set_num_threads(1)
    return Workbench(dataset, open_store(storage), device)
