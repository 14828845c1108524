"""Results of which the ledger knows nothing any more: told, and their tables kept beside before new ones are written."""

from __future__ import annotations

import datetime

from cu_ray.errors import UserError
from cu_ray.places import Place
from cu_ray.report.terminal import read_table
from cu_ray.sweep import status
from cu_ray.sweep.ledger import Known


def set_aside(folder: Place, known: Known) -> str | None:
    """What to say of results in a sweep's folder that its ledger lacks, their tables set aside; None where it has them all."""
    in_tables = _keys(folder, "trials", "trial_key") | _keys(folder, "originals", "original_key")
    lost = in_tables - known.trials.keys() - known.originals.keys()
    number = max(len(lost), _num_done(folder) - len(known.trials) - len(known.originals))
    if number <= 0:
        return None
    told = (
        f"The tables or status.json in {folder} tell of trials and originals that {folder / 'ledger'} does not know: {number:,}."
    )
    told += " Files of it are gone or damaged; what it does not know is not taken for done."
    if not lost:
        return told
    kept = folder / f"tables.before-{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    for file in (folder / "tables").files():
        kept.write(file.name, (folder / "tables").read(file.name))
        (folder / "tables").delete(file.name)
    return f"{told} The tables are kept in {kept}."


def _keys(folder: Place, table: str, column: str) -> set[str]:
    try:
        return set(read_table(folder / "tables", table)[column].to_pylist())
    except UserError:  # none, or none that can be read: they are written anew
        return set()


def _num_done(folder: Place) -> int:
    try:
        facts = status.read(folder)
    except UserError:
        return 0
    return int(facts["trials_done"] + facts["originals_done"])
