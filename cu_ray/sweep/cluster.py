"""Ray itself: started on this machine or joined at an address, and watched while a sweep is at it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

import cu_ray
from cu_ray import collector
from cu_ray.config import RuntimeSection
from cu_ray.errors import RayStopped, UserError, in_one_line
from cu_ray.sweep import process, remains
from cu_ray.sweep.remains import Remains
from cu_ray.sweep.tokens import guarded
from cu_ray.sweep.vigil import Server, Vigil

ASKED = "One that asks for a token takes that of RAY_AUTH_TOKEN or ~/.ray/auth_token, with RAY_AUTH_MODE=token."
REACHED_IN = 10.0  # seconds
ENDS_AFTER = 1.0  # seconds of silence of a server whose end is the end of this process: two looks
MAY_COME_BACK = 30.0  # of the gcs of a cluster, which may be restarted; after 60 Ray ends this process


@contextlib.contextmanager
def connected(
    runtime: RuntimeSection,
    console: Console,
    *,
    own_files: Mapping[Path, Path],
    log: Path,
    last_words: Callable[[str], object],
) -> Iterator[Vigil]:
    """Ray, started on this machine or joined, until the end of the context, and the vigil over it.

    own_files: of plug-ins, for every node of a cluster that is joined, by the paths that their modules' names ask for. A Ray
    that the process is at already is joined and left as it is. Raises UserError where no cluster answers; RayStopped where Ray
    ends, having called last_words where that had to be the end of the process.
    """
    with collector.at_rest():
        import ray

    if ray.is_initialized():
        _require_here(runtime.address)
        console.print("Joining the Ray of this process ...")
        with _vigil_of_joined(log, _nothing, last_words) as vigil:
            yield vigil
        return
    address = address_of(runtime)
    console.print(f"Joining Ray at {address} ..." if address else "Starting Ray on this machine ...")
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": runtime.workers}
    if not address:
        options["include_dashboard"] = False
    with contextlib.nullcontext() if address else guarded(), contextlib.ExitStack() as there:
        there.push(functools.partial(_leave_no_half, address, last_words))
        with _watched_while_joined(address, log, last_words):
            context = _init(address, options, own_files, log)
            if address:
                made = _vigil_of_joined(log, ray.shutdown, last_words)
            else:
                made = _vigil_of_started(Path(context.address_info["session_dir"]), last_words)
            vigil = there.enter_context(made)
        yield vigil


def _leave_no_half(
    address: str | None,
    last_words: Callable[[str], object],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Leave a Ray that was not joined or started to its end; one that was has been left already, and this does nothing."""
    import ray

    if kind is None or issubclass(kind, UserError):
        return
    rest = remains.of_this_process() if not address else None
    try:
        vigil = Vigil([], remains=rest, leave=ray.shutdown, last_words=last_words)
        vigil.__enter__()
        vigil.__exit__(kind, error, trace)
    finally:
        if rest is not None:
            rest.end()


def address_of(runtime: RuntimeSection) -> str | None:
    """Where the Ray is that is to be joined; None where one is started here."""
    named = runtime.address or os.environ.get("RAY_ADDRESS")
    return None if named == "local" else named


def is_joined(runtime: RuntimeSection) -> bool:
    """Whether a sweep joins a Ray that is there, with nodes that may be unlike this machine."""
    ray = sys.modules.get("ray")  # not imported for this: it takes a second
    return address_of(runtime) is not None or (ray is not None and ray.is_initialized())


def num_nodes() -> int:
    """How many nodes the Ray has that this process is at."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _init(address: str | None, options: Mapping[str, Any], own_files: Mapping[Path, Path], log: Path) -> Any:
    """What ray.init gives. Raises UserError where no cluster answers, RayStopped where Ray does not come up here."""
    import ray

    if not (address and own_files):
        _require_own_code()
    try:
        with process.handlers_kept(), warnings.catch_warnings(), contextlib.ExitStack() as until_sent:
            warnings.simplefilter("ignore", FutureWarning)
            files = {}
            if address and own_files:
                folder = until_sent.enter_context(tempfile.TemporaryDirectory(prefix="cu-ray-"))
                files = {"runtime_env": {"working_dir": copied(own_files, Path(folder))}}
            return ray.init(log_to_driver=False, logging_level="ERROR", **options, **files)
    except SystemExit as error:  # what Ray makes of a SIGTERM while it starts
        raise KeyboardInterrupt from error
    except Exception as error:  # of any class, where one of its processes dies while it starts
        if isinstance(error, RuntimeError) and "ray.init twice" in str(error):
            raise UserError("another thread of this process has started Ray meanwhile: the same call joins it") from error
        refusals = (ConnectionError, ValueError, getattr(ray.exceptions, "AuthenticationError", ConnectionError))
        if address and isinstance(error, refusals):
            raise UserError(f"no Ray cluster answers at {address}: {in_one_line(error)}. {ASKED}") from error
        raise RayStopped(
            f"Ray did not start: {in_one_line(error)} (see {log}). Nothing is lost; the same command goes on from there."
        ) from error


def _watched_while_joined(
    address: str | None, log: Path, last_words: Callable[[str], object]
) -> contextlib.AbstractContextManager[object]:
    """A context in which a gcs at HOST:PORT that dies is noticed: Ray itself would try for a minute, and sometimes for ever.

    Raises UserError where nothing listens there now.
    """
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        return contextlib.nullcontext()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_IN).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {in_one_line(error)}") from error
    gcs = Server(f"gcs_server at {address}", f"{host}:{port}", str(log), REACHED_IN)
    return Vigil([gcs], remains=None, leave=_nothing, last_words=last_words)


def _vigil_of_started(session: Path, last_words: Callable[[str], object]) -> Vigil:
    import ray

    def leave() -> None:
        rest.end_autoscaler()
        ray.shutdown()

    rest = Remains(session.name)
    gcs, raylet = _addresses()
    servers = (
        Server("gcs_server", gcs, f"{session}/logs/gcs_server.out", ENDS_AFTER),
        Server("raylet", raylet, f"{session}/logs/raylet.out", ENDS_AFTER),
    )
    return Vigil(servers, remains=rest, leave=leave, last_words=last_words)


def _vigil_of_joined(log: Path, leave: Callable[[], object], last_words: Callable[[str], object]) -> Vigil:
    gcs, raylet = _addresses()
    servers = (
        Server(f"gcs_server at {gcs}", gcs, str(log), MAY_COME_BACK),
        Server(f"raylet at {raylet}", raylet, str(log), ENDS_AFTER),
    )
    return Vigil(servers, remains=None, leave=leave, last_words=last_words)


def _addresses() -> tuple[str, str]:
    """Where the gcs and the raylet of this process listen."""
    import ray

    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    return here.gcs_address, f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _nothing() -> None:
    pass


def _require_own_code() -> None:
    """Complain of other code of cu-ray in the working directory: workers look there before they look for what is installed."""
    package, here = Path(cu_ray.__file__).parent, Path.cwd() / "cu_ray"
    if not (here / "__init__.py").is_file() or here.samefile(package):
        return
    for file in sorted(here.rglob("[!.]*.py")):
        own = package / file.relative_to(here)
        if not own.is_file() or own.read_bytes() != file.read_bytes():
            raise UserError(
                f"{file} differs from {own}, which this command runs, and workers would take it: install it "
                f"(`{sys.executable} -m pip install {here.parent}`), or give the command in another folder"
            )


def copied(files: Mapping[Path, Path], folder: Path) -> str:
    """The folder with these files and folders in it, each under its name there; a link as what it leads to."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, folder / name)
    return str(folder)


def _require_here(address: str | None) -> None:
    """Complain of an address that is not where this process's Ray is."""
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise UserError(f"this process is at the Ray at {here}, not at {address}: leave the address out, or call ray.shutdown()")
