"""Ray itself: started on this machine or joined at an address; the shape of a worker and how many fit."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from cu_ray.config import RuntimeSection
from cu_ray.errors import UserError, in_one_line
from cu_ray.sweep import process
from cu_ray.sweep.shares import trials_in

ASKED = "One that asks for a token takes that of RAY_AUTH_TOKEN or ~/.ray/auth_token, with RAY_AUTH_MODE=token."
ASK_EVERY = 5.0  # seconds between looks at what the cluster has


@contextlib.contextmanager
def connected(runtime: RuntimeSection, console: Console) -> Iterator[None]:
    """Ray, started on this machine or joined, until the end of the context. Raises UserError where no cluster answers.

    A Ray that the process is at already is joined and left as it is. One that is started here lets nobody in but this process
    and its children.
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
    with contextlib.nullcontext() if address else guarded():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                ray.init(log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, getattr(ray.exceptions, "AuthenticationError", ConnectionError)) as error:
            raise UserError(f"no Ray cluster answers at {address}: {in_one_line(error)}. {ASKED}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A Ray that starts in this context takes no client without a token, which is made here and known to children only.

    Its processes listen on all addresses of the machine, and who may speak to them may run code. Left to itself Ray keeps one
    token for good, in the home folder. RAY_AUTH_MODE=disabled is a user's wish.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        yield
        return
    try:
        with process.environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)):
            _look_at_environment()
            yield
    finally:
        _look_at_environment()


def _look_at_environment() -> None:
    """Have Ray read its token and whether one is needed: it remembers what it has read before."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined] # compiled, its stubs do not say
    if hasattr(_raylet, "AuthenticationTokenLoader"):  # Ray before 2.52 knows no tokens
        _raylet.AuthenticationTokenLoader.instance().reset_cache()


def _require_here(address: str | None) -> None:
    """Complain of an address that is not where this process's Ray is."""
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise UserError(f"this process is at the Ray at {here}, not at {address}: leave the address out, or call ray.shutdown()")


def shape(share: float | None) -> dict[str, float]:
    """The one resource shape of all workers: a CPU, and this share of a GPU."""
    return {"cpu": 1.0} if share is None else {"cpu": 1.0, "gpu": share}


class Room:
    """How many workers fit into the cluster, asked anew every few seconds: nodes come and go."""

    def __init__(self, shape: Mapping[str, float], limit: int | None) -> None:
        self._shape, self._limit = shape, limit
        self._asked, self._fit = -math.inf, 0

    def __call__(self) -> int:
        """How many fit, and not more than the limit."""
        if time.monotonic() - self._asked > ASK_EVERY:
            self._asked, self._fit = time.monotonic(), self._count()
        return self._fit if self._limit is None else min(self._fit, self._limit)

    def _count(self) -> int:
        import ray

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        share = self._shape.get("gpu")
        if share is None:
            return cpus
        # a worker is on one GPU: what is left over of two does not make a third
        return min(cpus, int(gpus // share) if share > 1 else gpus * trials_in(share))


def require(room: Room, shape: Mapping[str, float]) -> None:
    """Raise UserError where not one worker of that shape fits."""
    import ray

    if room() < 1:
        gpus = ray.cluster_resources().get("GPU", 0)
        needed = f"{shape['gpu']:g} GPUs" if "gpu" in shape else "1 CPU"
        raise UserError(f"not one worker fits: it needs {needed}, Ray has {gpus:g} GPUs (runtime.device, runtime.gpus_per_trial)")
