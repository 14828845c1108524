"""Commands on sweeps and nodes of a cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from cu_ray import config
from cu_ray.cli.group import PLACE, console, main
from cu_ray.errors import UserError
from cu_ray.places import Place, at
from cu_ray.report.printing import show


@main.command()
@click.argument("folder", type=PLACE)
def attach(folder: Place) -> None:
    """Follow the sweep that was sent to a cluster and whose results come into FOLDER (results/NAME)."""
    from cu_ray.remote.away import Away

    sys.exit(Away.of(folder).follow(console()))


@main.command(hidden=True)
@click.argument("folder", type=PLACE)
@click.option("--log", type=click.Path(path_type=Path), required=True)
@click.option("--process", type=int, required=True)
def watch(folder: Place, log: Path, process: int) -> None:
    """Show the sweep in FOLDER, whose driver is a process of this machine: what `attach` runs on a head."""
    from cu_ray.remote.viewer import watch
    from cu_ray.sweep.frame import file_in

    try:
        watch(log, file_in(config.scratch_of(folder)), process, console())
    except KeyboardInterrupt:  # it is not the sweep that is left
        sys.exit(130)


@main.command()
@click.argument("folder", type=PLACE)
def stop(folder: Place) -> None:
    """Stop the sweep that was sent to a cluster and whose results come into FOLDER, as Ctrl-C would."""
    from cu_ray.remote.away import Away

    sent, out = Away.of(folder), console()
    if sent.status != "running":
        raise UserError(f"it does not run on {sent.cluster.name}: cu-ray fetch {folder} brings home what it has done")
    sent.stop()
    out.print(
        f"Stopping on {sent.cluster.name}; cu-ray attach {folder} shows its end and brings the results home.", soft_wrap=True
    )


@main.command()
@click.argument("folder", type=PLACE)
def fetch(folder: Place) -> None:
    """Bring home what the sweep that was sent to a cluster has done until now, into FOLDER (results/NAME)."""
    from cu_ray.remote.away import Away

    sent, out = Away.of(folder), console()
    state = {"running": "still runs", "lost": "was killed"}.get(sent.fetch(), "has ended")
    out.print(f"Results until now are in {folder}; the sweep {state} on {sent.cluster.name}.", soft_wrap=True)


@main.command()
@click.option("--address", help="the Ray to look at  [default: RAY_ADDRESS, or one that is started here]")
@click.option("--cluster", type=click.Path(), help="the cluster.yaml of a cluster that `ray up` started, to look at that")
@click.option("--storage", help="the folder or URI that all nodes are to see  [default: CU_RAY_STORAGE, or ~/.cache/cu-ray]")
@click.option("--nodes", type=click.IntRange(min=1), help="how many nodes there should be  [default: as --cluster says]")
@click.option("--named", multiple=True, hidden=True, help="the address of a node that there should be")
def doctor(address: str | None, cluster: str | None, storage: str | None, nodes: int | None, named: tuple[str, ...]) -> None:
    """Look at every node of a Ray: versions, GPUs, disk, clock, the shared folder. Exit code 1 where something is wrong."""
    from cu_ray.sweep.cluster import connected
    from cu_ray.sweep.doctor import examine, table_of

    out = console()
    at(storage or config.default_storage())  # is said before a Ray is started
    if cluster is not None:
        sys.exit(_doctor_there(cluster, storage, nodes))
    runtime = config.RuntimeSection(address=address)
    log = Path("/tmp/ray/session_latest/logs")  # noqa: S108
    with connected(runtime, out, own_files={}, log=log, last_words=lambda said: print(f"cu-ray: {said}", file=sys.stderr)):
        found, faults = examine(storage or config.default_storage(), nodes, named)
    show(table_of(found), out)
    faults += [f"{node.host} ({node.address}) {fault}" for node in found for fault in node.faults]
    for fault in faults:
        out.print(f"Fault: {fault}.", soft_wrap=True)
    out.print("No fault found." if not faults else f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'} found.")
    sys.exit(bool(faults))


def _doctor_there(file: str, storage: str | None, nodes: int | None) -> int:
    from cu_ray.remote.launcher import Cluster

    there = Cluster.of(file)
    where = "" if storage is None else f" --storage {shlex.quote(storage)}"  # else what the head's environment says
    named = "".join(f" --named {shlex.quote(address)}" for address in there.addresses)
    command = f"cu-ray doctor --address auto{where} --nodes {nodes or there.num_nodes}{named}"
    said, _, code = there.ask(f"{command}; echo code:$?").rpartition("code:")
    print(said, end="")
    return int(code)
