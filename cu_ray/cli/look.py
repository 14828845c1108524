"""Commands that show what there is: of results, and of plug-ins."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from cu_ray import plugins
from cu_ray.cli.group import PLACE, console, main
from cu_ray.config import SAMPLERS
from cu_ray.errors import CuRayError, UserError, did_you_mean
from cu_ray.places import Folder, Place, is_locked
from cu_ray.report.printing import show
from cu_ray.selection import RULES

WATCHED_EVERY = 30  # seconds
SILENT_AFTER = 7200  # seconds without a word, after which a driver on another machine is taken to have ended
MOST_FACTS = 30  # in which two results differ, a line each


@main.command()
@click.argument("folder", type=PLACE)
def status(folder: Place) -> None:
    """Say how far the sweep in FOLDER (results/NAME) is, also where it runs on a cluster."""
    from cu_ray.remote.away import MARK, Away
    from cu_ray.sweep import status as statuses

    if isinstance(folder, Folder) and folder.has(MARK):
        try:
            if not (sent := Away.of(folder)).ended:
                print(f"On {sent.cluster.name}: {sent.report()}", end="")
                return
        except CuRayError as error:
            if not folder.has("status.json"):
                raise
            print(f"cu-ray: {error}. What is here, as it was brought home or run:", file=sys.stderr)
    facts = statuses.now(folder)
    running = facts["running"] and _alive(folder, facts)
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
    return bool(facts["running"]) and _alive(folder, facts)


def _alive(folder: Place, facts: dict[str, Any]) -> bool:
    """Whether the driver of which status.json tells goes on: one on another machine, as long as it writes that anew."""
    import platform

    if facts["host"] != platform.node():
        return bool(time.time() - facts.get("updated_at", 0.0) < SILENT_AFTER)
    if isinstance(folder, Folder) and (locked := is_locked(folder.path / "ledger" / "lock")) is not None:
        return locked  # the number of its process may be another's by now
    try:
        os.kill(facts["process"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return int(facts["process"]) > 0


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
    show(best_table(folder / "tables", rule), console())
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
        listing = Table("cell", "method", "fraction", "metric", "n", "difference", "p", "p, Holm", box=None)
        for row in rows:
            alone, p = ("-" if each is None else f"{each:.3f}" for each in (row["alone"], row["p"]))
            shown = [f"{row['fraction']:g}", row["metric"], str(row["n"]), f"{row['difference']:+.4f}", alone]
            shown.append(f"{p}{' *' if row['beyond'] else ''}")
            listing.add_row(row["cell"], row["method"], *shown)
        show(listing, out)
    beyond = sum(row["beyond"] for row in rows)
    counts = f"{shared} scores in common; {len(rows)} means differ, {beyond} of them beyond the noise of seeds (*)."
    out.print(f"Chosen by {rule}: {counts}", soft_wrap=True)
    if len(rows) > beyond:
        out.print("The others may differ as well: with few seeds and many rows only large differences stand out.")
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
        show(listing, out)
        return
    cls = plugins.find(kind, name)
    out.print(f"{name} (version {cls.version}): {cls.summary}\n\n{(cls.__doc__ or '').strip()}\n")
    listing = Table("setting", "default", "searched by default", "allowed", box=None)
    for fact in plugins.facts(cls).values():
        search = fact.search and f"{fact.search.low:g} to {fact.search.high:g}{', log' if fact.search.log else ''}"
        default = "required" if fact.required else "null" if fact.default is None else str(fact.default)
        listing.add_row(fact.name, default, search or "", fact.describe())
    show(listing, out)


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
