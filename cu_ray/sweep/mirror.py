"""The studies as an Optuna journal that `optuna-dashboard` opens, also while the sweep runs.

Nothing is decided by what it holds: it can be deleted at any time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cu_ray.config import Options, Space
from cu_ray.plugins import name_of
from cu_ray.sweep.agenda import StudyState
from cu_ray.sweep.aside import Aside
from cu_ray.sweep.plan import StudySpec

FILE = "optuna-journal.log"
Batch = list[tuple[StudySpec, list[FrozenTrial]]]


class Mirror:
    """Writes finished points into the journal, aside: each takes milliseconds with the disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder.absolute() / FILE
        self._sent: dict[str, int] = {}
        self._writing = Aside[Batch]("optuna journal", self._write)

    def __enter__(self) -> Self:
        for lock in self._path.parent.glob(f"{FILE}.lock*"):  # of a driver that was killed: no other writes into this folder
            lock.unlink(missing_ok=True)
        try:
            _cut_unfinished_line(self._path)
            summaries = optuna.get_all_study_summaries(self._storage(), include_best_trial=False)
            self._sent = {summary.study_name: summary.n_trials for summary in summaries}
        except Exception:  # whatever Optuna makes of a damaged journal: it is written anew
            for path in self._path.parent.glob(f"{FILE}*"):
                path.unlink()
        self._writing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writing.__exit__(kind, error, trace)

    def take(self, studies: Iterable[StudyState]) -> None:
        """Have the points mirrored that were finished since the last time."""
        batch = []
        for study in studies:
            name, finished = name_of_study(study.spec), len(study.results)
            if study.spec.method.has_choice and finished > self._sent.get(name, 0):
                trials = [_as_trial(study, index) for index in range(self._sent.get(name, 0), finished)]
                batch.append((study.spec, trials))
                self._sent[name] = finished
        if batch:
            self._writing.put(batch)

    def _write(self, batches: Iterable[Batch]) -> None:
        storage = self._storage()
        for spec, trials in itertools.chain.from_iterable(batches):
            directions, name = [StudyDirection.MAXIMIZE] * spec.num_objectives, name_of_study(spec)
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            study.add_trials(trials)

    def _storage(self) -> JournalStorage:
        path = str(self._path)
        return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))  # by default it is a link to a relative path


def _cut_unfinished_line(path: Path) -> None:
    """Cut off what a kill left of a last line: Optuna reads past it, but would write the next line behind it."""
    if path.exists():
        with open(path, "rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


def name_of_study(spec: StudySpec) -> str:
    """What a study is, in words, and the first digits of its key."""
    setting = spec.settings[0]
    fractions = ", ".join(f"{fraction:g}" for fraction in spec.fractions)
    seeds = ", ".join(str(each.seed) for each in spec.search_settings)
    manipulation = f"{name_of(setting.manipulation)} {setting.manipulation.size}"
    parts = [
        name_of(spec.method.cls),
        manipulation,
        f"fraction {fractions}",
        f"seed {seeds}",
        name_of(setting.model),
        spec.key[:8],
    ]
    return " | ".join(parts)


def _as_trial(study: StudyState, index: int) -> FrozenTrial:
    point, result = study.points[index], study.results[index]
    searched = study.spec.method.space if study.spec.method.points is None else {}
    return create_trial(
        state=TrialState.FAIL if result is None else TrialState.COMPLETE,
        values=None if result is None else result if isinstance(result, tuple) else (result,),
        params={name: _shown(space, point[name]) for name, space in searched.items()},
        distributions={name: _distribution(space) for name, space in searched.items()},
        user_attrs={"trial_keys": list(study.trial_keys[index]), **{name: _plain(value) for name, value in point.items()}},
    )


def _distribution(space: Space) -> BaseDistribution:
    if isinstance(space, Options):
        return CategoricalDistribution([_plain(value) for value in space.values])
    if space.integer:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def _shown(space: Space, value: Any) -> Any:
    return _plain(value) if isinstance(space, Options) else value


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
