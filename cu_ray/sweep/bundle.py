"""A sweep's results as one folder to archive and cite: all that others need to read them, check them and make them again.

NAME-bundle/: tables/, sweep.yaml, sets.parquet, evidence/, originals/, code/, code.json, versions.json, README.txt, CITATION.cff,
SHA256SUMS
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import inspect
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cu_ray import __version__, checks, plugins
from cu_ray.config.reader import REQUIRED
from cu_ray.errors import OriginalMissing, UserError, in_one_line
from cu_ray.places import Folder, Place, at, lasting
from cu_ray.report import results
from cu_ray.report.terminal import RESCORED, metrics_in, read_table, rows_of
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import as_safetensors, open_store
from cu_ray.sweep import doctor, foreground, ledger, status, tables
from cu_ray.sweep.ledger.folder import Lock
from cu_ray.types import Dataset, Indices, OriginalSpec, Setting, Store, TrialSpec

SUMS = "SHA256SUMS"
HIDDEN = ".unfinished"  # where a bundle is made
SETS = pa.schema(
    {
        "original_key": pa.string(),
        "set": pa.string(),  # manipulated, selection_half (rows of the test set), deletion, held_out
        "detection": pa.string(),
        "deletion_size": pa.int64(),
        "rows": pa.list_(pa.int32()),
    }
)
README = """Results of the sweep {name}, made by cu-ray {version}.
{unfinished}
tables/            trials, originals, best and curves as Parquet, and what `cu-ray rescore` computed
sweep.yaml         the sweep file: `PYTHONPATH=code cu-ray sweep sweep.yaml` makes all of it again
sets.parquet       which samples were manipulated, found and held out, and which test images choose: row numbers{untold}
evidence/          what each model predicted on the test images, where the sweep kept it: a row an image
originals/         the original models, as safetensors{missing}
models/            corrected models with their loaders, where they were asked for
code/              plug-ins of the user's own: their files as they are now, and those that they import{without}
code.json          the versions of the plug-ins, and fingerprints of their code
versions.json      of Python and packages where this was put together; in tables/ cu_ray_version and torch_version of each trial
{sums}         checked by `sha256sum -c {sums}`
"""


@dataclass(frozen=True)
class Bundle:
    """What was written, and what could not be."""

    folder: Place
    num_files: int
    missing: list[str]  # keys of originals that the store has not
    unfinished: str | None  # how much of the sweep is not there yet
    num_untold: int  # trials whose sets are left out: of other plug-ins than those here, or found by an original that is gone
    lost: list[str]  # plug-ins that are not found here, whose code is not in the bundle


def bundle(where: Place | Path | str, to: Path | None, *, models: bool = False) -> Bundle:
    """The bundle of the sweep in a folder; with `models` also the corrected models that the search's rule chose, made again.

    Raises UserError where there are no tables, where what is there is damaged or not in the ledger, or something is in the way.
    """
    folder = at(where)
    found, facts = results.read(folder), status.read(folder)
    known = ledger.read(folder / "ledger")  # after the tables, which come from it
    _require_known(found, known)
    _require_whole(folder)
    unfinished, chosen = found.unfinished, _chosen(folder) if models else []
    name = at(lasting(folder)).name
    rescored = [RESCORED] if (folder / "tables").has(f"{RESCORED}.parquet") else []
    with _Target(Folder(to or Path(f"{name}-bundle"))) as target:
        for table in ("trials", "originals", "best", "curves", *rescored):
            target.write(f"tables/{table}.parquet", _read(folder / "tables", f"{table}.parquet"))
            read_table(folder / "tables", table)
        target.write("sweep.yaml", _read(folder, "sweep.yaml"))
        described = [record.spec for record in known.trials.values()]
        store, datasets = open_store(facts["storage"]), _Datasets()
        trials = [each for each in map(_without_method, described) if each is not None and datasets.has(each.original.setting)]
        sets, num_gone = _sets(trials, datasets, store)
        target.write("sets.parquet", _as_parquet(sets))
        num_untold = len(described) - len(trials) + num_gone
        kept = ledger.evidence.keys(folder / "ledger")
        for key in sorted(kept & (known.originals.keys() | known.trials.keys())):
            target.write(f"evidence/{key}.parquet", ledger.evidence.read(folder / "ledger", key))
        missing = [key for key in known.originals if known.originals[key].ok and not _copied(key, store, target)]
        metrics = metrics_in(read_table(folder / "tables", RESCORED).column_names) if rescored else []
        files, lost = _own_files(described, metrics)
        for path, file in files.items():
            target.write(f"code/{path}", file.read_bytes())
        target.write("code.json", json.dumps(known.code, indent=1, sort_keys=True).encode())
        target.write("versions.json", json.dumps(doctor.versions(), indent=1).encode())
        for key in chosen:
            made = foreground.export(folder, key, target.place / "models" / key[:16])
            target.take_in(f"models/{key[:16]}", made.files)
        target.write("CITATION.cff", _citation(name).encode())
        target.write("README.txt", _readme(name, missing, unfinished, num_untold, lost).encode())
        target.write(SUMS, "".join(f"{digest}  {path}\n" for path, digest in sorted(target.digests.items())).encode())
        return Bundle(target.finish(), len(target.digests), missing, unfinished, num_untold, lost)


class _Target:
    """The folder that is written, which has to be new or empty; the SHA-256 of each file in it.

    It is made in a hidden one, by one process at a time, and is in its place when it is whole: where the program is killed, the
    same command begins anew. The hidden one is in a folder that is there already, which stays the same one, else beside it.
    """

    def __init__(self, whole: Folder) -> None:
        self._whole, self._path = whole, Path(os.path.realpath(whole))
        with self._failing():
            self._is_there = self._path.is_dir()
            place = self._path / HIDDEN if self._is_there else self._path.with_name(f".{self._path.name}{HIDDEN}")
            self._hidden = Folder(place)
            if not self._is_free():
                raise self._there_already()
            self._lock = Lock(self._hidden, whole, "--to")
        self.place = self._hidden / "bundle"
        self.digests: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._take_away()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._take_away()
        self._hidden.delete("lock")
        with contextlib.suppress(OSError):  # another process is in it already
            self._hidden.path.rmdir()
        self._lock.close()

    def finish(self) -> Folder:
        """The folder, with its name."""
        with self._failing():
            if not self._is_free():
                raise self._there_already()
            if self._is_there:
                for each in sorted(self.place.path.iterdir(), key=lambda path: path.name == SUMS):  # the sums last
                    each.rename(self._path / each.name)
            else:
                self.place.path.rename(self._path)
        return self._whole

    def _is_free(self) -> bool:
        if not self._is_there:
            return not os.path.lexists(self._whole)
        return all(each.name == HIDDEN for each in self._path.iterdir())

    def write(self, path: str, content: bytes) -> None:
        folder, _, name = path.rpartition("/")
        with self._failing():
            (self.place / folder if folder else self.place).write(name, content)
        self.digests[path] = hashlib.sha256(content).hexdigest()

    def take_in(self, path: str, files: Iterable[str]) -> None:
        """Files that are there already."""
        for file in files:
            content = (self.place.path / path / file).read_bytes()
            self.digests[f"{path}/{file}"] = hashlib.sha256(content).hexdigest()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """A context in which UserError takes the place of what the file system says."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise self._there_already() from error
            told = f"{self._whole} cannot be written: {in_one_line(error)}. Give another folder with --to"
            raise UserError(told) from error

    def _there_already(self) -> UserError:
        return UserError(f"{self._whole} is there already: give another folder with --to")

    def _take_away(self) -> None:
        """What is not whole, also of a process that was killed."""
        for path in self._hidden.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "lock":
                path.unlink()


def _readme(name: str, missing: list[str], unfinished: str | None, num_untold: int, code: list[str]) -> str:
    lost = f" ({len(missing)} are in the store no more)" if missing else ""
    why = "whose plug-ins are others here or not found, or whose detection needs an original that is gone"
    untold = f" (without those of {num_untold} trials, {why})" if num_untold else ""
    without = f"; that of {', '.join(code)} was not found" if code else ""
    mark = f"UNFINISHED: {unfinished}.\n" if unfinished else ""
    return README.format(name=name, version=__version__, unfinished=mark, missing=lost, untold=untold, without=without, sums=SUMS)


def _read(folder: Place, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise UserError(f"there is no {folder / name}: the same `cu-ray sweep` command writes it again") from None


def _require_known(found: results.Results, known: ledger.Known) -> None:
    """Raise UserError where tables have what the ledger lacks. Rows of published logs, which have a source, are in no ledger."""
    for what, table, records in (("trial", found.trials, known.trials), ("original", found.originals, known.originals)):
        own = table[table["source"].isna()] if "source" in table else table
        lacking = len(set(own[f"{what}_key"]) - records.keys())
        if lacking:
            raise UserError(
                f"the ledger lacks {lacking} of {len(own)} {what}s that are in {found.folder / 'tables' / f'{what}s.parquet'}: "
                f"files in {found.folder / 'ledger'} are gone or damaged. The same `cu-ray sweep` command makes them again; "
                f"`cu-ray merge {found.folder} OTHER` takes them from a copy"
            )


def _require_whole(folder: Place) -> None:
    """Raise UserError where the sweep file lacks what each one has. What it names may be elsewhere by now, or other code."""
    try:
        value = yaml.safe_load(_read(folder, "sweep.yaml"))
    except (yaml.YAMLError, RecursionError, ValueError):
        value = None
    if not (isinstance(value, dict) and value.keys() >= set(REQUIRED)):
        raise UserError(f"{folder / 'sweep.yaml'} is damaged: the same `cu-ray sweep` command writes it again")


def _without_method(described: Mapping[str, Any]) -> TrialSpec | None:
    """What determines the sets of a recorded trial: all but its method; None where other versions of plug-ins made it."""
    try:
        original = OriginalSpec.build(described["original"])
        detection = plugins.build("detections", described["detection"])
    except (TypeError, ValueError, LookupError, AttributeError, UserError):
        return None
    identity = plugins.describe(detection, locations=False)
    same = original.key == described["original_key"] and identity.items() <= described["detection"].items()
    spec = TrialSpec(original, detection, described["deletion_size"], None, held_out=described["held_out"])
    return spec if same else None


class _Datasets:
    """The images of settings, loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Dataset] = {}

    def has(self, setting: Setting) -> bool:
        """Whether the data set's content still is the setting's."""
        return self.of(setting).content_hash == setting.content_hash

    def of(self, setting: Setting) -> Dataset:
        if setting.content_hash not in self._loaded:
            self._loaded[setting.content_hash] = checks.loaded(setting.dataset)
        return self._loaded[setting.content_hash]


def _copied(key: str, store: Store, target: _Target) -> bool:
    entry = store.load("originals", key)
    if entry is not None:
        target.write(f"originals/{key}.safetensors", as_safetensors(*entry))
    return entry is not None


def _chosen(folder: Place) -> list[str]:
    """The keys of all trials, one a seed, that searches report under their own rule."""
    rows = (row for row in rows_of(folder / "tables") if row["score"] is not None and row["rule"] == row["search_objective"])
    return list(dict.fromkeys(str(key) for row in rows for key in row["trial_keys"]))


def _own_files(trials: Iterable[Mapping[str, Any]], metrics: Iterable[str]) -> tuple[dict[Path, Path], list[str]]:
    """The files of the user's own plug-ins that were used, with what these import, by the paths that their modules ask for.

    And the names of those that are not found here.
    """
    names = {(kind, plugin["name"]) for described in trials for kind, plugin in tables.plugins_of(described)}
    used, lost = set[type](), list[str]()
    for kind, name in sorted(names | {("metrics", each) for each in metrics}):
        try:
            used.add(plugins.find(kind, name))
        except UserError:
            lost.append(name)
    return plugins.own_files(*(_root(cls) for cls in used if not cls.__module__.startswith("cu_ray."))), lost


def _root(cls: type) -> Path:
    """The folder from which the module of a class is imported."""
    file = Path(inspect.getfile(cls))
    return file.parents[cls.__module__.count(".") + (file.name == "__init__.py")]


def _sets(specs: Iterable[TrialSpec], datasets: _Datasets, store: Store) -> tuple[list[dict[str, Any]], int]:
    """A row for each set of row numbers, each once; of how many trials one is not known, which an original found that is gone."""
    benches: dict[str, Workbench] = {}
    originals, found, num_untold = set[str](), list[dict[str, Any]](), 0
    alike = Counter(map(_split_of, specs))
    for spec in {_split_of(spec): spec for spec in specs}.values():
        split_of = original_key, detection, size, _ = _split_of(spec)
        setting = spec.original.setting
        if setting.content_hash not in benches:
            benches[setting.content_hash] = Workbench(datasets.of(setting), store, trains=False)
        bench = benches[setting.content_hash]
        if original_key not in originals:
            originals.add(original_key)
            poisoned, _ = bench.poisoned(setting)
            sets: dict[str, Indices] = {
                "manipulated": poisoned.corruption.indices,
                "selection_half": np.flatnonzero(poisoned.selection_half),
            }
            found += [_row(original_key, name, None, None, rows) for name, rows in sets.items()]
        if size:
            try:
                split = bench.split(spec)
            except OriginalMissing:
                num_untold += alike[split_of]
                continue
            sets = {"deletion": split.deletion} | ({"held_out": split.held_out} if spec.held_out else {})
            found += [_row(original_key, name, detection, size, rows) for name, rows in sets.items()]
    return found, num_untold


def _split_of(spec: TrialSpec) -> tuple[str, str, int, bool]:
    detection = json.dumps(plugins.describe(spec.detection, locations=False), sort_keys=True)
    return spec.original.key, detection, spec.deletion_size, spec.held_out


def _row(original_key: str, name: str, detection: str | None, size: int | None, rows: Indices) -> dict[str, Any]:
    numbers = np.asarray(rows, dtype=np.int32)
    return {"original_key": original_key, "set": name, "detection": detection, "deletion_size": size, "rows": numbers}


def _as_parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SETS), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _citation(name: str) -> str:
    return yaml.safe_dump(
        {
            "cff-version": "1.2.0",
            "message": "Cite these results, the benchmark that defines them, and the tool that made them.",
            "title": f"Results of the corrective unlearning sweep {name}",
            "type": "dataset",
            "authors": [{"name": "EDIT: who ran it"}],
            "date-released": datetime.datetime.now(datetime.UTC).date(),
            "references": [
                {
                    "type": "article",
                    "title": "Corrective Machine Unlearning",
                    "authors": [{"name": "Goel, Prabhu, Torr, Kumaraguru and Sanyal"}],
                    "url": "https://arxiv.org/abs/2402.14015",
                    "year": 2024,
                },
                {"type": "software", "title": "cu-ray", "authors": [{"name": "the cu-ray developers"}], "version": __version__},
            ],
        },
        sort_keys=False,
    )
