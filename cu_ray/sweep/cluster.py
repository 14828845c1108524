"""Ray itself: started on this machine or joined at an address; the shape of a trial and how many fit."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from cu_ray.config import RuntimeSection
from cu_ray.errors import UserError


@contextlib.contextmanager
def connected(runtime: RuntimeSection, console: Console) -> Iterator[None]:
    """Ray, started on this machine or joined, until the end of the context. Raises UserError where no cluster answers.

    A Ray that the process is at already is joined and left as it is.
    """
    import ray

    if ray.is_initialized():
        _require_here(runtime.address)
        console.print("Joining the Ray of this process ...")
        yield
        return
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    console.print(f"Joining Ray at {address} ..." if address else "Starting Ray on this machine ...")
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": runtime.workers}
    if not address:
        options["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_here(address: str | None) -> None:
    """Complain of an address that is not where this process's Ray is."""
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise UserError(f"this process is at the Ray at {here}, not at {address}: leave the address out, or call ray.shutdown()")


def shape(runtime: RuntimeSection, device: str) -> tuple[dict[str, float], int]:
    """The one resource shape of all trials, and how many of them fit at once. Raises UserError where none does."""
    import ray

    available: Mapping[str, float] = ray.cluster_resources()
    if device == "cpu":
        slots = int(available.get("CPU", 1))
        return {"cpu": 1.0}, min(slots, runtime.workers or slots)
    share = 1.0 if runtime.gpus_per_trial == "auto" else float(runtime.gpus_per_trial)
    slots = int(available.get("GPU", 0) / share)
    if slots < 1:
        raise UserError(f"runtime.device is cuda, but Ray has {available.get('GPU', 0):g} GPUs and a trial needs {share:g}")
    return {"cpu": 1.0, "gpu": share}, min(slots, runtime.workers or slots)
