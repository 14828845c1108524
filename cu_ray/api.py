"""Sweeps from Python, in a notebook or a script: what the commands do, with results as pandas DataFrames."""

from __future__ import annotations

import functools
import gc
import html
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console

from cu_ray import config
from cu_ray.places import Place, at, lasting
from cu_ray.report.frame import best_frame
from cu_ray.report.printing import show
from cu_ray.report.terminal import best_table, read_table

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.sweep.estimate import Estimate
    from cu_ray.sweep.runner import Outcome

Where = str | os.PathLike[str]  # a path, or for results and models also a URI
WIDTH = 140  # characters of a line
_console = functools.partial(Console, force_jupyter=False, highlight=False, markup=False, emoji=False, width=WIDTH)


@dataclass(frozen=True, repr=False)
class Sweep:
    """A sweep file, checked, to be planned and run. All methods raise UserError for wrong use, before anything starts."""

    file: config.Sweep

    @classmethod
    def load(
        cls,
        path: Where,
        *,
        seeds: Iterable[int] = (),
        only: Sequence[str] = (),
        output: Where | None = None,
        storage: Where | None = None,
    ) -> Self:
        """The sweep of a YAML file; its plug-ins may lie beside it.

        seeds: further seeds besides the file's. only: restrictions, like `["method=ssd", "fraction=0.1"]`. output, storage:
        where results and original models go, instead of what the file says under `runtime`.
        """
        return cls._placed(config.load(Path(path), only=_listed(only), seeds=seeds), output, storage)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        seeds: Iterable[int] = (),
        only: Sequence[str] = (),
        output: Where | None = None,
        storage: Where | None = None,
    ) -> Self:
        """The sweep of a YAML text; its plug-ins may lie in the current folder. Otherwise as `load`."""
        return cls._placed(config.parse(text, only=_listed(only), seeds=seeds), output, storage)

    @classmethod
    def _placed(cls, sweep: config.Sweep, output: Where | None, storage: Where | None) -> Self:
        places = {name: place and os.fspath(place) for name, place in (("output", output), ("storage", storage))}
        return cls(config.with_runtime(sweep, **places))

    @property
    def folder(self) -> Place:
        """Where its results go: `<output>/<name>`."""
        return self.file.folder

    def plan(self, *, measure: bool = False) -> Estimate:
        """What the sweep comes to and what of it is done. Starts and downloads nothing.

        measure: first run a few steps of each kind of trial in this process, to know how long all will take.
        """
        from cu_ray.sweep.preview import preview

        found = preview(self.file, (lambda _: None) if measure else None)
        for remark in found.remarks("`run`"):
            warnings.warn(remark, stacklevel=2)
        return found.estimate

    def run(
        self,
        *,
        workers: int | None = None,
        address: str | None = None,
        retry_failed: bool = False,
        time_limit: str | None = None,
        quiet: bool = False,
    ) -> Results:
        """The results, after running what of the sweep is not done yet.

        workers: how many trials run at once at most. address: the Ray cluster to join; without one (and RAY_ADDRESS) the Ray
        that the process is at already, else one is started for the run. retry_failed: run failed trials again, and methods that
        were set aside. time_limit: start nothing more after this time, like `8h` or `1h30m`. quiet: print nothing.

        Raises Interrupted after Ctrl-C or the interruption of a notebook's kernel, with the tables written; RayStopped where
        Ray ends or the disk is full. The same call goes on from there.
        """
        from cu_ray.sweep import runner

        seconds = config.seconds_of(time_limit)
        wanted = config.with_runtime(self.file, workers=workers, address=address)
        console = _console(quiet=quiet, force_terminal=False)
        try:
            outcome = runner.run(wanted, console, retry_failed=retry_failed, seconds=seconds)
        finally:
            gc.collect()  # Tune's workers, which would hold the CPUs of a Ray that stays up
        results = Results(at(lasting(wanted.folder)), outcome)
        if outcome.interrupted:
            raise Interrupted(results)
        return results

    def __repr__(self) -> str:
        return f"<Sweep {self.file.name} of {self.file.source}, results in {self.folder}>"


@dataclass(frozen=True, repr=False)
class Results:
    """The tables of a sweep (docs/tables.md), each read when it is first asked for. It shows itself as `cu-ray table` does."""

    folder: Place
    outcome: Outcome | None = None  # how the run ended that these are of; None where they were read from a folder

    @classmethod
    def read(cls, folder: Where) -> Self:
        """The results in the folder of a sweep (results/NAME). Raises UserError where there are none."""
        place = at(lasting(os.fspath(folder)))
        read_table(place / "tables", "best")
        return cls(place)

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """A row for each unlearned model."""
        return self._frame("trials")

    @functools.cached_property
    def originals(self) -> pd.DataFrame:
        """A row for each original model."""
        return self._frame("originals")

    @functools.cached_property
    def best(self) -> pd.DataFrame:
        """A row for each search, selection rule and deletion fraction."""
        return self._frame("best")

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """The same with a row for each metric, ready to plot."""
        return self._frame("curves")

    def table(self, rule: str | None = None) -> pd.DataFrame:
        """Means and standard deviations by method and fraction, under a selection rule: by default that of the search."""
        return best_frame(self.folder / "tables", rule)

    def _frame(self, name: str) -> pd.DataFrame:
        frame: pd.DataFrame = read_table(self.folder / "tables", name).to_pandas()
        return frame

    def __repr__(self) -> str:
        text = io.StringIO()
        show(best_table(self.folder / "tables"), _console(file=text, color_system=None))
        return "\n".join([text.getvalue().rstrip(), *([] if self.outcome is None else _notes(self.outcome))])

    def _repr_html_(self) -> str:
        return f'<pre style="line-height: normal">{html.escape(repr(self))}</pre>'


class Interrupted(KeyboardInterrupt):
    """A sweep was interrupted; the tables of what was done until then are in `results`."""

    def __init__(self, results: Results) -> None:
        self.results = results
        super().__init__("the tables hold what was done until then; the same call goes on from there")


def _notes(outcome: Outcome) -> list[str]:
    """What to know of how a run ended, a line each."""
    counts = outcome.estimate
    end = "Interrupted: " if outcome.interrupted else "Time is up: " if outcome.time_is_up else ""
    lines = [f"{end}{counts.trials_done} of {counts.trials} trials are done."]
    if outcome.num_failed:
        lines.append(f"{outcome.num_failed} failed: see the columns status and error; retry_failed=True runs them again.")
    lines += [f"{method} was set aside after {reason}." for method, reason in outcome.set_aside.items()]
    return lines + [f"Note: {remark}." for remark in outcome.remarks]


def _listed(only: Sequence[str]) -> Sequence[str]:
    return [only] if isinstance(only, str) else only
