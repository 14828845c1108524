"""Commands that make something of what there is: a trial, a model, a bundle, other results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from cu_ray import config, yaml_file
from cu_ray.cli.group import PLACE, console, main
from cu_ray.errors import CuRayError, UserError
from cu_ray.places import Folder, Place, at, lasting
from cu_ray.selection import RULES

QUICKSTART = """
name: try
dataset: fashion_mnist_small
model: {name: resnet9, width: 8}
manipulation: {name: backdoor, size: 300}
train: {steps: 600, lr: 0.05, batch_size: 64, precision: fp32}
methods: {no_unlearning: {}}
"""


@main.command("try")
@click.argument("method")
@click.option("--set", "settings", multiple=True, help="a hyperparameter, like --set alpha=0.1")
@click.option("--sweep", "file", help="take data, model and manipulation from this sweep file [default: the quickstart's]")
@click.option("--fraction", type=float, default=0.5, show_default=True, help="deletion fraction")
@click.option("--seed", type=int, default=0, show_default=True)
def try_command(method: str, settings: tuple[str, ...], file: str | None, fraction: float, seed: int) -> None:
    """Run one trial of METHOD in the foreground, without Ray: a debugger works."""
    from cu_ray.sweep import foreground

    config.as_seed(seed, "--seed")
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
        why = "have plug-ins that are others here or not found, or need an original that is gone"
        out.print(f"{made.num_untold} trials {why}: their sets are not in sets.parquet.", soft_wrap=True)
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
    from cu_ray.sweep.foreground import plugins_of

    with plugins_of(folder):
        made, out = rescoring.rescore(folder, metrics), console()
    out.print(f"{made.table}: {', '.join(made.metrics)} of {made.num_rows} trials and originals", soft_wrap=True)
    if made.dropped:
        names = ", ".join(made.dropped)
        out.print(f"Left out: {names}, of which models came since and which cannot be found: name it again", soft_wrap=True)
    if made.num_without:
        out.print(f"{made.num_without} are without evidence. {rescoring.KEPT_BY}.", soft_wrap=True)


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
@click.option("--storage", help="the folder or URI of originals and memos  [default: CU_RAY_STORAGE, or ~/.cache/cu-ray]")
@click.option("--unused-for", "days", type=click.IntRange(min=1), default=90, show_default=True, help="days")
@click.option("--yes", is_flag=True, help="delete without asking")
def clean(storage: str | None, days: int, yes: bool) -> None:
    """Delete original models and memos that no sweep has used for a while: at a URI, that were written so long ago.

    A sweep that needs them again makes them again, or puts them there again where their weights were given.
    """
    from cu_ray.store import unused

    where, out = storage or config.default_storage(), console()
    if storage is not None and isinstance(place := at(where), Folder) and not place.path.is_dir():
        raise UserError(f"--storage {storage}: there is no such folder")
    found = unused(where, days)
    if not found:
        out.print(f"{where}: everything was used within {days} days.", soft_wrap=True)
    for kind, files in found.items():
        size = sum(file.size for file in files) / 2**30
        out.print(f"{where}: {kind} unused for {days} days: {len(files)}, {size:.2f} GiB", soft_wrap=True)
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
