"""The commands: parse, call, print.

Exit codes: 0 all done, 1 some trials failed, 2 wrong use, 3 the time limit came first, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cu_ray import __version__, collector, config, plugins, yaml_file
from cu_ray.config import SAMPLERS, Sweep
from cu_ray.errors import CuRayError, UserError, did_you_mean
from cu_ray.places import Folder, Place, at, lasting
from cu_ray.selection import RULES

WATCHED_EVERY = 30  # seconds
SILENT_AFTER = 7200  # seconds without a word, after which a driver on another machine is taken to have ended
MOST_FACTS = 30  # in which two results differ, a line each
QUICKSTART = """
name: try
dataset: fashion_mnist_small
model: {name: resnet9, width: 8}
manipulation: {name: backdoor, size: 300}
train: {steps: 600, lr: 0.05, batch_size: 64, precision: fp32}
methods: {no_unlearning: {}}
"""


class Terminal(Console):
    """Where commands print. What is printed after the reader of a pipe has gone is lost: that ends no sweep."""

    def on_broken_pipe(self) -> None:
        """Go on."""
        _to_nowhere(self.file)


def _to_nowhere(stream: IO[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def console() -> Console:
    """The terminal, on which a text stands as it is; a plain text stream has lines of 140 characters."""
    return Terminal(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


class PlaceParameter(click.ParamType):  # type: ignore[type-arg]
    """A folder or a URI as an argument."""

    name = "path or URI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """The place."""
        return at(value)


PLACE = PlaceParameter()


class Commands(click.Group):
    """Commands whose wrong use ends in one message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        sys.path.insert(0, "")  # plug-ins in the current folder
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"cu-ray: {error}", file=sys.stderr)
            ctx.exit(2)
        except CuRayError as error:
            print(f"cu-ray: {error}", file=sys.stderr)
            ctx.exit(1)
        except KeyboardInterrupt:
            print("cu-ray: interrupted. What a sweep has finished is kept; the same command goes on from there.", file=sys.stderr)
            ctx.exit(130)
        except BrokenPipeError:
            _to_nowhere(sys.stdout)
            ctx.exit(1)
        except OSError as error:  # a full disk, no permission
            where = f" ({error.filename})" if error.filename else ""
            print(f"cu-ray: {error.strerror or error}{where}", file=sys.stderr)
            ctx.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command named, or a complaint with the nearest name."""
        shown = [name for name, command in self.commands.items() if not command.hidden]
        if args and args[0] not in self.commands:
            raise click.UsageError(f"there is no command {args[0]!r}. {did_you_mean(args[0], shown)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cu-ray")
def main() -> None:
    """Distributed sweeps for corrective machine unlearning."""


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
            out.print(Text(f"{wanted.source}:"), soft_wrap=True)
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
        out.print(best_table(outcome.tables))
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
    """The cluster that a sweep is to be sent to; None where it is to run from here."""
    from cu_ray.remote.launcher import Cluster

    if given is not None:
        return Cluster.of(given)
    if wanted.runtime.address or os.environ.get("RAY_ADDRESS") or not Path("cluster.yaml").exists():
        return None
    try:
        found = Cluster.of("cluster.yaml")
    except UserError as error:
        out.print(f"Not asked for and passed over: {error}.", soft_wrap=True)
        return None
    if not found.was_launched():
        return None
    out.print(f"`ray up` has started {found.name} (cluster.yaml) from this machine: the sweep goes there. --local runs it here.")
    return found


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
    if math.isfinite(deadline):
        options += ["--time-limit", f"{max(0, round(deadline - time.monotonic()))}s"]
    if given["retry_failed"]:
        options.append("--retry-failed")
    started = away.start(wanted, cluster, options, out)
    if detach:
        out.print(f"{wanted.name} runs on {cluster.name}: cu-ray attach {started.home} follows it.", soft_wrap=True)
        return 0
    return started.follow(out)


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
@click.argument("folder", type=PLACE)
@click.argument("others", type=PLACE, nargs=-1, required=True)
def merge(folder: Place, others: tuple[Place, ...]) -> None:
    """Take into the sweep in FOLDER (results/NAME) what the sweeps in OTHERS have done."""
    from cu_ray.sweep import ledger

    for other in others:
        if lasting(other) == lasting(folder):
            raise UserError(f"{other} is {folder} itself: give the folders of other sweeps after it")
        if not (other / "ledger").files():
            raise UserError(f"there is no {other / 'ledger'}: is {other} the folder of a sweep (results/NAME)?")
    with ledger.Ledger(folder / "ledger") as book:
        count = sum(book.take_over(other / "ledger") for other in others)
    console().print(f"{count} records came in. The `cu-ray sweep` command takes them as done, and writes the tables.")


@main.command("import")
@click.argument("logs", type=click.Path(path_type=Path))
@click.option("--into", type=PLACE, required=True, help="the folder to write, like results/published")
def import_command(logs: Path, into: Place) -> None:
    """Write the tables of what the published benchmark's code has logged in LOGS, to be shown and compared like a sweep's."""
    from cu_ray.sweep.published import rows

    found, out = rows.take(logs, into), console()
    for name, why in found.passed_over.items():
        out.print(f"Passed over: {name}: {why}", soft_wrap=True)
    for name, why in found.failed.items():
        out.print(f"No scores: {name}: {why}", soft_wrap=True)
    out.print(f"{found.num_trials} trials on {found.num_originals} originals are in {into / 'tables'}.", soft_wrap=True)
    sys.exit(bool(found.failed or found.passed_over))


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
    if cluster is not None:
        sys.exit(_doctor_there(cluster, storage, nodes))
    runtime = config.RuntimeSection(address=address)
    log = Path("/tmp/ray/session_latest/logs")  # noqa: S108
    with connected(runtime, out, own_files={}, log=log, last_words=lambda said: print(f"cu-ray: {said}", file=sys.stderr)):
        found, faults = examine(storage or config.default_storage(), nodes, named)
    out.print(table_of(found))
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
    for sweep in load_sweeps(files, only, seeds, shard, output=output):
        if len(files) > 1 and not as_json:
            console().print(Text(f"{sweep.source}:"), soft_wrap=True)
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


@main.command()
@click.argument("folder", type=PLACE)
def status(folder: Place) -> None:
    """Say how far the sweep in FOLDER (results/NAME) is, also where it runs on a cluster."""
    from cu_ray.remote.away import MARK, Away
    from cu_ray.remote.launcher import HeadFailed
    from cu_ray.sweep import status as statuses

    if isinstance(folder, Folder) and folder.has(MARK) and not (sent := Away.of(folder)).ended:
        try:
            print(f"On {sent.cluster.name}: {sent.report()}", end="")
            return
        except HeadFailed as error:
            if not folder.has("status.json"):
                raise
            print(f"cu-ray: {error}. What is here, as it was brought home or run:", file=sys.stderr)
    facts = statuses.read(folder)
    running = facts["running"] and _alive(facts)
    state = "running" if running else "stopped before its end" if facts["running"] else "not running"
    out = console()
    out.print(f"{folder.name}: {state}; {facts['trials_done']} of {facts['trials']} trials done, {facts['trials_failed']} failed")
    out.print(f"originals: {facts['originals_done']} of {facts['originals']}; studies: {facts['studies']}")
    if folder.has("optuna-journal.log"):
        out.print(f"The searches, to look at in a browser: optuna-dashboard {folder / 'optuna-journal.log'}", soft_wrap=True)
    if not running and facts["trials_done"] < facts["trials"]:
        out.print("The same `cu-ray sweep` command goes on from there.")


def _is_running(folder: Place) -> bool:
    from cu_ray.sweep import status as statuses

    try:
        facts = statuses.read(folder)
    except UserError:  # tables alone can be reported
        return False
    return bool(facts["running"]) and _alive(facts)


def _alive(facts: dict[str, Any]) -> bool:
    """Whether the driver of which status.json tells goes on: one on another machine, as long as it writes that anew."""
    import os
    import platform

    if facts["host"] != platform.node():
        return bool(time.time() - facts.get("updated_at", 0.0) < SILENT_AFTER)
    try:
        os.kill(facts["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@main.command()
@click.argument("folder", type=PLACE)
@click.option("--rule", help=f"the selection rule: {', '.join(RULES)}")
@click.option("--latex", type=click.Choice(["acc_corr", "acc_retain", "recovered"]), help="one metric as a LaTeX table")
def table(folder: Place, rule: str | None, latex: str | None) -> None:
    """Print the table of the sweep in FOLDER (results/NAME)."""
    from cu_ray.report.results import unfinished_in
    from cu_ray.report.terminal import best_table

    if latex is not None:
        from cu_ray.report.latex import table_of

        print(table_of(folder, rule, latex), end="")
        return
    console().print(best_table(folder / "tables", rule))
    if (said := unfinished_in(folder)) is not None:
        console().print(f"Note: unfinished: {said}.")


@main.command()
@click.argument("folders", metavar="FOLDER...", type=PLACE, nargs=-1, required=True)
@click.option("--rule", help=f"the selection rule  [default: that of the search]: {', '.join(RULES)}")
@click.option("--to", type=click.Path(path_type=Path), help="the folder to write  [default: FOLDER/report]")
@click.option("--watch", is_flag=True, help=f"write it anew every {WATCHED_EVERY} seconds until the sweep has ended")
def report(folders: tuple[Place, ...], rule: str | None, to: Path | None, watch: bool) -> None:
    """Write a page on the sweep in FOLDER (results/NAME), with figures and tables for print; of several, a comparison."""
    from cu_ray.report.write import write

    out = console()
    while watch and any(map(_is_running, folders)):
        if any(_is_running(folder) and not (folder / "tables").has("best.parquet") for folder in folders):
            out.print("Waiting for the first tables ...")
        else:
            page, _ = write(folders, to, rule, refresh=WATCHED_EVERY)
            out.print(f"{page} as of {time.strftime('%H:%M:%S')}", soft_wrap=True)
        time.sleep(WATCHED_EVERY)
    page, remarks = write(folders, to, rule)
    for remark in remarks:
        out.print(f"Note: {remark}", soft_wrap=True)
    figures = "figures as PDF and PNG, " if any(page.parent.glob("*.pdf")) else ""
    out.print(f"{page}: open it in a browser. Beside it: {figures}tables as LaTeX and CSV.", soft_wrap=True)


@main.command()
@click.argument("folder", type=PLACE)
@click.argument("trial_key")
def explain(folder: Place, trial_key: str) -> None:
    """Say where a trial of the sweep in FOLDER comes from, its cost, how to make it again. TRIAL_KEY: or its first digits."""
    from cu_ray.report import lineage, results

    listing = Table(show_header=False, box=None)
    for name, text in lineage.explain(results.read(folder), trial_key).items():
        listing.add_row(name, Text(text, overflow="fold"))
    console().print(listing)


@main.command()
@click.argument("one", type=PLACE)
@click.argument("other", type=PLACE)
@click.option("--rule", help=f"the selection rule  [default: that of the search]: {', '.join(RULES)}")
def diff(one: Place, other: Place, rule: str | None) -> None:
    """Say what differs between the sweeps in ONE and OTHER, and whether scores do beyond the noise of seeds: exit code 1."""
    from cu_ray.report import contents, difference, results
    from cu_ray.sweep import ledger

    (here, there), out = results.read_all([one, other]), console()
    rule = contents.rule_of([here, there], rule)
    facts = difference.facts(here, there, [ledger.read(each.folder / "ledger").code for each in (here, there)])
    for name, said in list(facts.items())[:MOST_FACTS]:
        out.print(f"{name}: {said[0]} | {said[1]}", soft_wrap=True)
    if len(facts) > MOST_FACTS:
        out.print(f"... and {len(facts) - MOST_FACTS} more")
    shared, rows = difference.num_shared(here, there, rule), difference.scores(here, there, rule)
    for label, cells in difference.alone(here, there, rule).items():
        out.print(f"Only in {label}: {'; '.join(cells)}", soft_wrap=True)
    if rows:
        listing = Table("cell", "method", "fraction", "metric", "n", "difference", "p, Holm", box=None)
        for row in rows:
            p = "-" if row["p"] is None else f"{row['p']:.3f}{' *' if row['beyond'] else ''}"
            shown = [f"{row['fraction']:g}", row["metric"], str(row["n"]), f"{row['difference']:+.4f}", p]
            listing.add_row(row["cell"], row["method"], *shown)
        out.print(listing)
    beyond = sum(row["beyond"] for row in rows)
    counts = f"{shared} scores in common; {len(rows)} means differ, {beyond} of them beyond the noise of seeds (*)."
    out.print(f"Chosen by {rule}: {counts}")
    sys.exit(bool(beyond))


LISTED = (*plugins.KINDS, "samplers", "rules")


@main.command("list")
@click.argument("kind", required=False)
@click.argument("name", required=False)
def list_command(kind: str | None, name: str | None) -> None:
    """List the plug-ins of a KIND, or the settings of the one called NAME."""
    out = console()
    if kind is None:
        for each in LISTED:
            out.print(f"{each}: {', '.join(_names(each))}", soft_wrap=True)
        return
    if kind not in LISTED:
        raise UserError(f"{kind!r} cannot be listed. {did_you_mean(kind, LISTED)}")
    if kind in ("samplers", "rules") or name is None:
        if name not in (None, *_names(kind)):
            raise UserError(f"there is no {name!r} among the {kind}. {did_you_mean(str(name), _names(kind))}")
        listing = Table("name", "what it is", box=None)
        for each in _names(kind) if name is None else [name]:
            listing.add_row(each, _summary(kind, each))
        out.print(listing)
        return
    cls = plugins.find(kind, name)
    out.print(f"{name} (version {cls.version}): {cls.summary}\n\n{(cls.__doc__ or '').strip()}\n")
    listing = Table("setting", "default", "searched by default", "allowed", box=None)
    for fact in plugins.facts(cls).values():
        search = fact.search and f"{fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}"
        default = "required" if fact.required else "null" if fact.default is None else str(fact.default)
        listing.add_row(fact.name, default, search or "", fact.describe())
    out.print(listing)


def _names(kind: str) -> list[str]:
    return list(SAMPLERS) if kind == "samplers" else list(RULES) if kind == "rules" else plugins.names(kind)


def _summary(kind: str, name: str) -> str:
    if kind == "samplers":
        return {"grid": "all combinations of listed values"}.get(
            name, "drawn in the ranges; reproducible whatever runs in parallel"
        )
    return RULES[name].summary if kind == "rules" else str(plugins.find(kind, name).summary)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a sweep file, by which editors complete and check it: docs/sweep-file.md says how."""
    from cu_ray.schema import schema as schema_of_sweeps

    print(json.dumps(schema_of_sweeps()))


@main.command("try")
@click.argument("method")
@click.option("--set", "settings", multiple=True, help="a hyperparameter, like --set alpha=0.1")
@click.option("--sweep", "file", help="take data, model and manipulation from this sweep file [default: the quickstart's]")
@click.option("--fraction", type=float, default=0.5, show_default=True, help="deletion fraction")
@click.option("--seed", type=int, default=0, show_default=True)
def try_command(method: str, settings: tuple[str, ...], file: str | None, fraction: float, seed: int) -> None:
    """Run one trial of METHOD in the foreground, without Ray: a debugger works."""
    from cu_ray.sweep import foreground

    given = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: NAME=VALUE is needed")
        given[name] = yaml_file.parse(value, f"--set {setting}").value
    sweep = config.load(file) if file else config.parse(QUICKSTART, "try")
    text = yaml.safe_dump({method: given})
    record = foreground.try_method(sweep, config.parse_methods(text, f"cu-ray try {method}", sweep), fraction, seed)
    _print_record(record, console())
    sys.exit(not record.ok)


@main.command()
@click.argument("folder", type=PLACE)
@click.argument("trial_key")
def replay(folder: Place, trial_key: str) -> None:
    """Run a trial of the sweep in FOLDER again, without Ray, and compare its scores. TRIAL_KEY: or its first digits."""
    from cu_ray.sweep import foreground

    found = foreground.replay(folder, trial_key)
    recorded, again, out = found.recorded, found.again, console()
    _print_record(again, out)
    if found.same:
        out.print("The scores are the same to the bit." if again.ok else f"It {again.status} in the same way as before.")
        return
    if recorded.ok != again.ok or not again.ok:
        out.print(f"recorded {_outcome(recorded)}, now {_outcome(again)}", soft_wrap=True)
    for name in sorted(recorded.scores or again.scores):
        if recorded.scores.get(name) != again.scores.get(name):
            out.print(f"{name}: recorded {recorded.scores.get(name)}, now {again.scores.get(name)}")
    out.print(f"{found.cause}.", soft_wrap=True)
    sys.exit(1)


@main.command()
@click.argument("folder", type=PLACE)
@click.argument("trial_key", required=False)
@click.option("--rule", help=f"without TRIAL_KEY: the selection rule that chooses: {', '.join(RULES)}")
@click.option("--method", help="without TRIAL_KEY: the best of this method")
@click.option("--fraction", type=float, help="without TRIAL_KEY: the best at this deletion fraction")
@click.option("--to", type=PLACE, help="the folder to write  [default: FOLDER/export/KEY]")
def export(
    folder: Place, trial_key: str | None, rule: str | None, method: str | None, fraction: float | None, to: Place | None
) -> None:
    """Write the corrected model of a trial of the sweep in FOLDER: weights and a loader.

    TRIAL_KEY: or its first digits; without it, the trial that a selection rule holds for the best.
    """
    from cu_ray.sweep import foreground

    key = foreground.chosen(folder, rule, method, fraction) if trial_key is None else trial_key
    made = foreground.export(folder, key, to)
    out = console()
    out.print(f"{made.folder}: {', '.join(made.files)} of trial {made.trial_key[:16]}", soft_wrap=True)
    if not made.same_scores:
        out.print(f"Its scores are not those that were recorded, to the bit. {made.cause}.", soft_wrap=True)


@main.command()
@click.argument("folder", type=PLACE)
@click.option("--to", type=click.Path(path_type=Path), help="the folder to write  [default: NAME-bundle]")
@click.option("--models", is_flag=True, help="also the corrected models that the search's rule chose, one a seed, made again")
def bundle(folder: Place, to: Path | None, models: bool) -> None:
    """Write the sweep in FOLDER (results/NAME) as one folder to archive: tables, sets, originals, citation, checksums."""
    from cu_ray.sweep.bundle import SUMS
    from cu_ray.sweep.bundle import bundle as write
    from cu_ray.sweep.foreground import plugins_of

    with plugins_of(folder):
        made, out = write(folder, to, models=models), console()
    out.print(f"{made.folder}: {made.num_files} files; `sha256sum -c {SUMS}` there checks them.", soft_wrap=True)
    if made.unfinished is not None:
        out.print(f"Note: unfinished: {made.unfinished}.")
    if made.missing:
        out.print(f"{len(made.missing)} originals are in the store no more, and not in the bundle.")
    if made.num_untold:
        told = "their sets are not in sets.parquet"
        out.print(f"{made.num_untold} trials were made by other versions of their plug-ins: {told}.", soft_wrap=True)
    if made.lost:
        remedy = "Run this in the folder of their files, or with PYTHONPATH set to that folder"
        out.print(f"The code of {', '.join(made.lost)} is not in the bundle, as it is not found here. {remedy}.", soft_wrap=True)
    out.print("CITATION.cff has one place to edit: who ran it.")


@main.command()
@click.argument("folder", type=PLACE)
@click.option(
    "--metric", "metrics", multiple=True, help="one of `cu-ray list metrics`, or your own as file:Class  [default: all]"
)
def rescore(folder: Place, metrics: tuple[str, ...]) -> None:
    """Compute metrics of the sweep in FOLDER (results/NAME) from the evidence that it kept. Runs no model again."""
    from cu_ray.sweep import rescore as rescoring

    made, out = rescoring.rescore(folder, metrics), console()
    out.print(f"{made.table}: {', '.join(made.metrics)} of {made.num_rows} trials and originals", soft_wrap=True)
    if made.dropped:
        names = ", ".join(made.dropped)
        out.print(f"Left out: {names}, of which models came since and which cannot be found: name it again", soft_wrap=True)
    if made.num_without:
        out.print(f"{made.num_without} are without evidence. {rescoring.KEPT_BY}.", soft_wrap=True)


@main.command()
@click.option("--storage", help="the folder or URI of originals and memos  [default: CU_RAY_STORAGE, or ~/.cache/cu-ray]")
@click.option("--unused-for", "days", type=click.IntRange(min=1), default=90, show_default=True, help="days")
@click.option("--yes", is_flag=True, help="delete without asking")
def clean(storage: str | None, days: int, yes: bool) -> None:
    """Delete original models and memos that no sweep has used for a while: at a URI, that were written so long ago.

    A sweep that needs them again makes them again, or puts them there again where their weights were given.
    """
    from cu_ray.store import unused

    where, out = storage or config.default_storage(), console()
    found = unused(where, days)
    if not found:
        out.print(Text(f"{where}: everything was used within {days} days."), soft_wrap=True)
    for kind, files in found.items():
        size = sum(file.size for file in files) / 2**30
        out.print(Text(f"{where}: {kind} unused for {days} days: {len(files)}, {size:.2f} GiB"), soft_wrap=True)
    if found and (yes or click.confirm("Delete them?")):
        kept = sum(not _deleted(at(where) / kind, file.name) for kind, files in found.items() for file in files)
        if kept:
            raise CuRayError(f"{kept} of them could not be deleted: they may be another user's")


def _deleted(folder: Place, name: str) -> bool:
    try:
        folder.delete(name)
    except OSError:
        return False
    return True


def _print_record(record: Any, out: Console) -> None:
    out.print(f"{record.kind} {record.key[:16]}: {_outcome(record)}", soft_wrap=True)
    values = {**record.scores, **record.notes, **{name: record.facts.get(name) for name in ("unlearn_seconds", "eval_seconds")}}
    listing = Table(show_header=False, box=None)
    for name, value in values.items():
        listing.add_row(name, "-" if value is None else f"{value:.4g}")
    out.print(listing)


def _outcome(record: Any) -> str:
    return f"{record.status}, {record.error}" if record.error else str(record.status)


def command() -> None:
    """`main` in a process of its own."""
    collector.as_command()
    main()


if __name__ == "__main__":
    command()
