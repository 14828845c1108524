"""Commands that run a sweep, or say what running it comes to."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cu_ray import collector, config
from cu_ray.cli.group import console, main
from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.report.printing import show


def sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a sweep file is read."""
    for option in (
        click.option("--output", help="where results go, instead of the file's runtime.output"),
        click.option("--seeds", default="", help="further seeds besides the file's, like +3,4"),
        click.option("--only", multiple=True, help="run only these, like method=ssd,fraction=0.1"),
        click.option("--shard", help="only this part of so many, like 3/16; its results go to OUTPUT/shard-3-of-16"),
        click.argument("files", metavar="FILE...", type=click.Path(), nargs=-1, required=True),
    ):
        command = option(command)
    return command


def load_sweeps(files: Iterable[str], only: tuple[str, ...], seeds: str, shard: str | None, **runtime: Any) -> list[Sweep]:
    """The sweeps of the files and the options, each with a folder of its own."""
    try:
        further = [int(seed) for seed in seeds.lstrip("+").split(",") if seed]
    except ValueError:
        raise UserError(f"--seeds {seeds}: whole numbers are needed, like --seeds +3,4") from None
    by_folder: dict[str, Sweep] = {}
    for file in files:
        sweep = config.with_runtime(config.load(file, only=only, seeds=further), **runtime)
        sweep = sweep if shard is None else config.sharded(sweep, shard)
        if (other := by_folder.setdefault(str(sweep.folder), sweep)) is not sweep:
            raise UserError(
                f"{sweep.source}: its results would go to {sweep.folder}, as those of {other.source}: name it otherwise"
            )
        if len(by_folder) > 1:
            _require_own_modules(sweep)
    return [*by_folder.values()]


def _require_own_modules(sweep: Sweep) -> None:
    """Complain where a file before has a plug-in of the same module name, which stands for this one's in this process."""
    for cls in sweep.plugin_classes:
        name = cls.__module__.partition(".")[0]
        given = Path(getattr(sys.modules[name], "__file__", None) or "none").resolve()
        places = (folder / place for folder in sweep.import_path for place in (f"{name}.py", f"{name}/__init__.py"))
        found = next((place.resolve() for place in places if place.exists()), given)
        if name != "cu_ray" and found != given:
            raise UserError(
                f"{sweep.source}: {found} has the name of {given}, which is imported already: give the files one by one"
            )


@main.command()
@sweep_options
@click.option("--address", help="the Ray cluster to join, instead of starting Ray here (also RAY_ADDRESS)")
@click.option("--cluster", type=click.Path(), help="the cluster.yaml of a cluster that `ray up` started, to run it there")
@click.option("--local", is_flag=True, help="start Ray on this machine, whatever clusters there are")
@click.option("--detach", is_flag=True, help="on a cluster: start it and do not follow it")
@click.option("--workers", type=click.IntRange(min=1), help="how many trials run at once at most")
@click.option("--retry-failed", is_flag=True, help="run failed trials again, and methods that were set aside")
@click.option("--time-limit", help="start nothing more after this time, like 8h, 90m or 1h30m; exit code 3 if not all was done")
def sweep(
    files: tuple[str, ...],
    only: tuple[str, ...],
    seeds: str,
    shard: str | None,
    output: str | None,
    address: str | None,
    cluster: str | None,
    local: bool,
    detach: bool,
    workers: int | None,
    retry_failed: bool,
    time_limit: str | None,
) -> None:
    """Run the sweep of FILE, or what of it is not done yet; of several files one after the other.

    On the Ray at --address, the cluster of --cluster or, with --local, this machine. Without these on the Ray of
    runtime.address or RAY_ADDRESS; else on the cluster of ./cluster.yaml, if `ray up` has started it from this machine; else
    on a Ray that is started here.
    """
    out, deadline = console(), time.monotonic() + config.seconds_of(time_limit)
    if (address is not None) + (cluster is not None) + local > 1:
        raise UserError("--address, --cluster and --local exclude each other")
    if shard is not None and cluster is not None:
        raise UserError("--shard is for machines without a Ray between them: a cluster (--cluster) does the whole sweep")
    if detach and len(files) > 1:
        raise UserError("--detach is for one file at a time: nobody stays to begin the next")
    codes = [0]
    for wanted in load_sweeps(files, only, seeds, shard, output=output, address=address, workers=workers):
        if len(files) > 1:
            out.print(f"{wanted.source}:", soft_wrap=True)
        if local:
            wanted = replace(wanted, runtime=replace(wanted.runtime, address="local"))
        there = None if local or shard is not None else _cluster_for(wanted, cluster, out)
        if there is None and detach:
            raise UserError("--detach is for a sweep that goes to a cluster (--cluster): here the driver has to stay")
        if there is None:
            codes.append(_run(wanted, retry_failed, deadline, out))
        else:
            codes.append(_send(wanted, there, detach, deadline, out))
        if codes[-1] not in (0, 1) or not (there is None or detach or _has_ended(wanted)):
            break  # the time is up, it was interrupted, or goes on there
    sys.exit(max(codes))


def _run(wanted: Sweep, retry_failed: bool, deadline: float, out: Console) -> int:
    """Run a sweep from here, and show what came of it; the exit code."""
    from cu_ray.report.terminal import best_table

    with collector.at_rest():
        from cu_ray.sweep import runner

    outcome = runner.run(wanted, out, retry_failed=retry_failed, seconds=deadline - time.monotonic())
    counts = outcome.estimate
    if counts.trials_done:
        show(best_table(outcome.tables), out)
    for remark in outcome.remarks:
        out.print(f"Note: {remark}.")
    out.print(f"Tables: {outcome.tables / '{trials,originals,best,curves}.parquet'}", soft_wrap=True)
    if outcome.interrupted:
        out.print(f"Interrupted: {counts.trials_done} of {counts.trials} trials are done. The same command goes on from there.")
        return 130
    for method, reason in outcome.set_aside.items():
        out.print(f"{method} was set aside after {reason}. --retry-failed takes it up again.", soft_wrap=True)
    if outcome.time_is_up:
        out.print(f"Time is up: {counts.trials_done} of {counts.trials} trials are done. The same command goes on from there.")
        return 3
    if outcome.num_failed or outcome.set_aside:
        out.print(f"{outcome.num_failed} failed: see the columns status and error; --retry-failed runs them again.")
        return 1
    return 0


def _cluster_for(wanted: Sweep, given: str | None, out: Console) -> Any:
    """The cluster that a sweep is to be sent to; None where it is to run here. Raises UserError where the user has to say."""
    from cu_ray.remote.away import Away
    from cu_ray.remote.launcher import Cluster

    if given is not None:
        return Cluster.of(given)
    if wanted.runtime.address or os.environ.get("RAY_ADDRESS"):
        return None
    sent = Away.open_at(wanted.folder)  # first: the launcher gets back what it knew
    found = _cluster_here(out)
    if found is not None and found.was_launched():
        said = f"`ray up` has started {found.name} (cluster.yaml) from this machine: the sweep goes there. --local runs it here."
        out.print(said)
        return found
    if sent is not None:
        raise UserError(
            f"{wanted.name} was sent to {sent.cluster.name}, and not all of it has come home: --cluster {sent.cluster.path} "
            "goes on there, --local runs it here"
        )
    return None


def _cluster_here(out: Console) -> Any:
    """The cluster of ./cluster.yaml; None where there is none."""
    from cu_ray.remote.launcher import Cluster

    if not Path("cluster.yaml").exists():
        return None
    try:
        return Cluster.of("cluster.yaml")
    except UserError as error:
        out.print(f"Not asked for and passed over: {error}.", soft_wrap=True)
        return None


def _has_ended(sent: Sweep) -> bool:
    from cu_ray.remote.away import Away

    return Away.of(sent.folder).ended


def _send(wanted: Sweep, cluster: Any, detach: bool, deadline: float, out: Console) -> int:
    """Run this very command on a cluster's head, less what says where it runs; its exit code."""
    from cu_ray.remote import away

    given = click.get_current_context().params
    options = [part for each in given["only"] for part in ("--only", each)]
    for name in ("seeds", "output", "workers"):
        if given[name]:
            options += [f"--{name}", str(given[name])]
    if given["retry_failed"]:
        options.append("--retry-failed")
    started = away.start(wanted, cluster, options, out, deadline - time.monotonic())
    if detach:
        out.print(f"{wanted.name} runs on {cluster.name}: cu-ray attach {started.home} follows it.", soft_wrap=True)
        return 0
    return started.follow(out)


@main.command()
@sweep_options
@click.option("--json", "as_json", is_flag=True, help="one JSON object a file, each on a line")
@click.option("--price", type=click.FloatRange(min=0), help="of an hour of a GPU, or of a worker on CPUs: what is left costs")
@click.option("--measure", is_flag=True, help="first run a little of each kind of trial here, to know how long all will take")
def plan(
    files: tuple[str, ...],
    only: tuple[str, ...],
    seeds: str,
    shard: str | None,
    output: str | None,
    as_json: bool,
    price: float | None,
    measure: bool,
) -> None:
    """Say what the sweep of FILE comes to and what of it is done; of several files each. Starts nothing."""
    if price is not None and not math.isfinite(price):
        raise UserError(f"--price {price} is not allowed. Allowed: a number, at least 0.")
    for sweep in load_sweeps(files, only, seeds, shard, output=output):
        if len(files) > 1 and not as_json:
            console().print(f"{sweep.source}:", soft_wrap=True)
        _plan(sweep, as_json, price, measure)


def _plan(sweep: Sweep, as_json: bool, price: float | None, measure: bool) -> None:
    with collector.at_rest():
        from cu_ray.sweep.frame import clock
        from cu_ray.sweep.preview import preview

    def measuring(number: int) -> None:
        if not as_json:
            console().print(f"Measuring a few steps of training and unlearning, kinds: {number} ...")

    found = preview(sweep, measuring if measure else None)
    counts, wall = found.estimate, found.wall_seconds
    cost = None if price is None or counts.hours is None else price * counts.hours
    if as_json:
        facts = {"cost": cost, "datasets_not_here": found.absent, "device": found.device, "precisions": found.precisions}
        facts |= {"wall_seconds": wall}
        print(json.dumps({**counts.to_json(), **facts}))
        return
    table = Table(show_header=False, box=None)
    for name, value in counts.to_json().items():
        if name != "by_method" and (value or name != "evidence_bytes"):
            table.add_row(name, "unknown" if value is None else f"{value:,.2f}" if name == "hours" else f"{value:,.0f}")
    for method, count in counts.by_method.items():
        table.add_row(f"  {method}", f"{count:,}")
    if price is not None:
        unknown = "unknown" if measure else "unknown until a trial is done, or with --measure"
        table.add_row("cost", unknown if cost is None else f"{cost:,.2f}")
    console().print(table)
    if wall:
        lane = "GPU" if found.device == "cuda" else "worker"
        console().print(f"About {clock(wall)} on {found.lanes:g} {lane}{'s' if found.lanes != 1 else ''} of this machine.")
    for remark in found.remarks("`cu-ray sweep`"):
        console().print(remark, soft_wrap=True)
