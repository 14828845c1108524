"""A sweep's time at Ray: what is changed in this process meanwhile, and where the output goes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from cu_ray.config import Sweep
from cu_ray.errors import RayStopped
from cu_ray.sweep import cluster, process
from cu_ray.sweep.vigil import Vigil

PRESTART, PRESTART_FOR_DRIVER = "RAY_enable_worker_prestart", "RAY_prestart_worker_first_driver"  # as Ray spells them


@contextlib.contextmanager
def at_ray(
    sweep: Sweep, console: Console, own_files: Mapping[Path, Path], last_words: Callable[[str], object]
) -> Iterator[Vigil]:
    """Ray until the end of the context, with everything that Ray and Tune print in the log."""
    variables = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the ledger remembers; snapshots would be rewritten whole all the time
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune starts a worker whose node was taken away anew, silently
        PRESTART: _prestart(),
        "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # workers start side by side, as many as our searcher asks for
        "PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT", ""),  # which Ray takes for itself: put back at the end
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        **process.memory_held(),
    }
    console.file = console.file  # held: it would follow the output into the log
    with (
        process.signals_interrupt(),
        process.environment(**variables),
        process.output_in(log_of(sweep)),
        process.only_errors_of("ray"),
        cluster.connected(sweep.runtime, console, own_files=own_files, log=log_of(sweep), last_words=last_words) as vigil,
        _rays_errors_told(log_of(sweep)),
    ):
        yield vigil


def _prestart() -> str:
    """Whether a Ray that is started here starts processes, of which the desk takes one, with its node and not for its driver.

    It does not where the user lets it start none at all before they are needed.
    """
    return os.environ.get(PRESTART, os.environ.get(PRESTART_FOR_DRIVER, "1"))


@contextlib.contextmanager
def _rays_errors_told(log: Path) -> Iterator[None]:
    """A context in which an error of Ray's own, a full object store say, is one message; all of it is in the log."""
    try:
        yield
    except Exception as error:
        import ray

        if not isinstance(error, ray.exceptions.RayError):
            raise
        traceback.print_exc()
        told = [type(error).__name__, *str(error).strip().splitlines()][-1]
        raise RayStopped(f"Ray: {told} (see {log}). Nothing is lost; the same command goes on.") from error


def log_of(sweep: Sweep) -> Path:
    """Where the output of Ray and Tune goes."""
    return sweep.scratch / "logs" / "tune.log"


def say(message: str) -> None:
    """Print it where a user sees it, also while output goes into the log."""
    print(f"cu-ray: {message}", file=sys.__stderr__, flush=True)
