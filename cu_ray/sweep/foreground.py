"""One trial in this process, without Ray: to try a method in a debugger, to replay or export what a ledger holds."""

from __future__ import annotations

import contextlib
import inspect
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cu_ray import __version__, checks, plugins
from cu_ray.config import MethodPlan, Sweep
from cu_ray.errors import CuRayError, FieldFault, UserError, did_you_mean, in_one_line
from cu_ray.lazy import torch
from cu_ray.places import Folder, Place, at, is_this_users
from cu_ray.report.terminal import cells_of, rows_of
from cu_ray.stages.pipeline import Workbench, arrays_of
from cu_ray.store import as_safetensors, open_store
from cu_ray.sweep import hardware, ledger, status, weights
from cu_ray.sweep.breaker import without_place
from cu_ray.sweep.plan import typical_point
from cu_ray.sweep.runner import load_datasets, make_plan
from cu_ray.types import Dataset, Record, TrialSpec

CODE = "code"  # the folder of the user's own files beside an exported model
MACHINE = {"host": "the machine", "device": "the device", "torch_version": "torch", "cu_ray_version": "cu-ray"}


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


@dataclass(frozen=True)
class Replay:
    """A recorded trial, the record of it run again, and what a difference may come from."""

    recorded: Record
    again: Record
    cause: str

    @property
    def same(self) -> bool:
        """Whether it came to the same scores, to the bit, or failed in the same way."""
        then, now = self.recorded, self.again
        alike = (then.status, without_place(then.error)) == (now.status, without_place(now.error))
        return alike and then.scores.items() <= now.scores.items()  # newer versions measure more


def replay(folder: Place | Path, key: str) -> Replay:
    """The recorded trial whose key starts so, run again. Raises UserError where there is no such trial."""
    trial = _recorded(folder, key)
    return Replay(trial.record, trial.bench.run_trial(trial.spec), trial.cause())


@dataclass(frozen=True)
class Export:
    """A corrected model on disk."""

    folder: Place
    trial_key: str
    files: list[str]
    same_scores: bool  # as recorded, to the bit
    cause: str  # what a difference may come from


def export(folder: Place | Path, key: str, target: Place | Path | None) -> Export:
    """The unlearned model of a trial, made again and written as weights with a loader. Raises UserError where it cannot be."""
    trial = _recorded(folder, key)
    recorded, spec, bench = trial.record, trial.spec, trial.bench
    if not recorded.ok:
        raise UserError(f"trial {recorded.key[:16]} {recorded.status} ({recorded.error}): there is no model to export")
    place = at(target or at(folder) / "export" / recorded.key[:16])
    _require_free(place, recorded.key)
    try:
        model = bench.unlearned(spec).model
    except CuRayError as error:
        raise UserError(f"trial {recorded.key[:16]} cannot be made again: {error}") from error
    same = recorded.scores.items() <= bench.scores(spec, model).items()  # newer versions measure more
    own = {f"{CODE}/{path}": file.read_bytes() for path, file in _files_of(type(spec.original.setting.model)).items()}
    made_by = {"trial_key": recorded.key, "cu_ray_version": __version__}
    files = {
        "trial.json": json.dumps({"trial_key": recorded.key, **recorded.to_json()}, indent=2).encode(),  # first: whose it is
        "model.safetensors": as_safetensors(arrays_of(model), made_by),
        "load.py": _loader(spec, bench.dataset, brings_code=bool(own)).encode(),
        **own,
    }
    try:
        for path, content in files.items():
            within, _, name = path.rpartition("/")
            (place / within if within else place).write(name, content)
    except OSError as error:
        raise UserError(f"the model cannot be written to {place}: {in_one_line(error)}. Give another folder with --to") from error
    return Export(place, recorded.key, list(files), same, trial.cause())


def _require_free(place: Place, key: str) -> None:
    """Raise UserError where a folder holds anything but an export of that trial."""
    try:
        content = any(place.path.glob("[!.]*")) if isinstance(place, Folder) else place.files()
        if content and not _is_export_of(place, key):
            raise UserError(f"{place} is not empty: give another folder with --to")
    except OSError as error:
        raise UserError(f"{place} cannot be read: {in_one_line(error)}. Give another folder with --to") from error


def _is_export_of(place: Place, key: str) -> bool:
    try:
        said = json.loads(place.read("trial.json"))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("trial_key") == key


def _files_of(cls: type) -> dict[Path, Path]:
    """The user's own files that a plug-in of theirs may need, by the paths that their modules ask for."""
    if cls.__module__.startswith("cu_ray."):
        return {}
    file = Path(inspect.getfile(cls))
    return plugins.own_files(file.parents[cls.__module__.count(".") + (file.name == "__init__.py")])


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


def _loader(spec: TrialSpec, dataset: Dataset, *, brings_code: bool = False) -> str:
    setting, normalisation = spec.original.setting, dataset.normalisation
    described = {name: value for name, value in plugins.describe(setting.model).items() if name not in ("name", "version")}
    cls = type(setting.model)
    settings = ", ".join(f"{name}={value!r}" for name, value in described.items())
    classes = ", ".join(name if name.isprintable() else repr(name) for name in dataset.class_names)  # stay within their comment
    return (
        f"# images: float32 [B, {dataset.image_shape[2]}, {dataset.image_shape[0]}, {dataset.image_shape[1]}], "
        f"(pixel / 255 - {list(normalisation.mean)}) / {list(normalisation.std)} by channel\n"
        f"# classes: {classes}\n" + ("import sys\n" if brings_code else "") + "from pathlib import Path\n\n"
        "from safetensors.torch import load_file\n\n"
        + (f'sys.path.insert(0, str(Path(__file__).with_name("{CODE}")))\n' if brings_code else "")
        + f"from {cls.__module__} import {cls.__name__}\n\n"
        f"model = {cls.__name__}({settings}).build({dataset.image_shape}, {dataset.num_classes})\n"
        'model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))\n'
        "model.eval()\n"
    )


@contextlib.contextmanager
def plugins_of(folder: Place | Path) -> Iterator[dict[str, Any]]:
    """A context in which the plug-ins of the sweep in a folder are found as the sweep found them; gives its status.

    Of another machine's sweep nothing is imported from where it says: these may be anybody's files here.

    Raises UserError where it is no sweep's folder; of one about a module that is not found, it says what to do.
    """
    facts = status.read(folder)
    said = facts.get("import_path")
    paths = [path for path in said if isinstance(path, str) and Path(path).is_absolute()] if isinstance(said, list) else []
    if facts["host"] == platform.node() and is_this_users(at(folder), "status.json"):
        sys.path += [path for path in paths if path not in sys.path]
    try:
        yield facts
    except UserError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError) or f"'{missing.name}:" not in str(error):
            raise  # another module that it needs, say
        known = f"; on {facts['host']} the sweep looked in {' and '.join(paths)}" if paths else ""
        remedy = f"run this in the folder of its file, or with PYTHONPATH set to that folder{known}"
        raise UserError(f"{error}: {remedy}") from error


@dataclass(frozen=True)
class _Trial:
    """A recorded trial, and what it takes to make it again."""

    record: Record
    spec: TrialSpec
    bench: Workbench
    code: Mapping[str, Mapping[str, Any]]  # by which it and its original were made, as far as the ledger knows

    def cause(self) -> str:
        """What scores that are not as recorded may come from: what has changed since then, as far as that is recorded."""
        used = _used(self.record.spec)
        known = {name: cls for name, (_, cls) in used.items() if "fingerprint" in self.code.get(name, {})}
        unknown = sorted(used.keys() - known.keys())
        changed = [name for name, cls in known.items() if self.code[name]["fingerprint"] != plugins.fingerprint(cls)]
        found = [f"the code of the {name} is another, its version is not" for name in changed]
        then, now = self.record.facts, self.bench.machine()
        found += [
            f"{what} was {then[name]} and is {now[name]}"
            for name, what in MACHINE.items()
            if then.get(name, now[name]) != now[name]
        ]
        if found:
            return f"What changed since then: {'; '.join(found)}"
        if unknown:
            return f"Machine and versions are as recorded; by what code of the {', '.join(unknown)} it was made is not"
        return (
            "Machine, versions and the code of plug-ins are as recorded: "
            "another number of threads may be why, or code that draws numbers elsewhere than from task.generator"
        )


def _recorded(folder: Place | Path, key: str) -> _Trial:
    """The one recorded trial whose key starts so, with the workbench to make it again."""
    if not key:
        raise UserError("the key of the trial is empty: its first digits are needed")
    with plugins_of(folder) as facts:
        known = ledger.read(at(folder) / "ledger")
        found = [record for each, record in known.trials.items() if each.startswith(key)]
        if len(found) != 1:
            count = f"{len(found)} of the {len(known.trials)} trials in {folder}"
            raise UserError(f"{count} have a key that starts with {key!r}; one is needed")
        try:
            spec = TrialSpec.build(found[0].spec)
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            FieldFault,
        ):  # settings that its plug-ins do not have (any more)
            spec = None
        if spec is None or spec.key != found[0].key:
            others = f"trial {key} was made by other versions of its plug-ins{_other_versions(found[0].spec)}"
            raise UserError(f"{others}: the code installed here cannot make it again")
    dataset = checks.loaded(spec.original.setting.dataset)
    code = known.made_by.get(spec.original.key, {}) | known.made_by.get(spec.key, {})
    return _Trial(found[0], spec, _bench(dataset, facts["storage"], facts["device"]), code)


def _other_versions(described: Mapping[str, Any]) -> str:
    """In brackets, the plug-ins of a recorded trial that have another version here; nothing where that is not known."""
    with contextlib.suppress(TypeError, LookupError, AttributeError, UserError):
        found = [f"{name}: {then}, here {cls.version}" for name, (then, cls) in _used(described).items() if then != cls.version]
        return f" ({'; '.join(found)})" if found else ""
    return ""


def _used(described: Mapping[str, Any]) -> dict[str, tuple[int, type[Any]]]:
    """The plug-ins of a recorded trial, named as ledgers do: the version that each had, and its class as it is here."""
    setting = described["original"]["setting"]
    parts = {
        **{kind: (f"{kind}s", described[kind]) for kind in ("method", "detection")},
        **{kind: (f"{kind}s", setting[kind]) for kind in ("model", "manipulation")},
        "data set": ("datasets", setting["dataset"]),
    }
    return {f"{what} {part['name']}": (part["version"], plugins.find(kind, part["name"])) for what, (kind, part) in parts.items()}


def _bench(dataset: Dataset, storage: str, device: str) -> Workbench:
    """A workbench as a worker has it: scores depend on the number of threads in their last bits, so there is one."""
    torch.set_num_threads(1)
    return Workbench(dataset, open_store(storage), device)
