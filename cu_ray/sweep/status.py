"""What a running sweep says of itself in `status.json`: read by `cu-ray status`, `replay` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_ray.errors import PlaceFailed, UserError
from cu_ray.places import Place, at

if TYPE_CHECKING:
    from cu_ray.sweep.ledger import Known

NEEDED = {
    **{"running": bool, "process": int, "host": str, "storage": str, "device": str},
    **dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), int),
}


def read(folder: Place | Path) -> dict[str, Any]:
    """The status of the sweep in a folder. Raises UserError where there is none, or something else."""
    place = at(folder)
    try:
        facts = json.loads(place.read("status.json"))
    except FileNotFoundError:
        raise UserError(f"there is no {place / 'status.json'}: is {place} the folder of a sweep (results/NAME)?") from None
    except PlaceFailed:
        raise
    except OSError as error:
        raise UserError(f"{place / 'status.json'} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        facts = None
    sound = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in NEEDED.items())
    if not sound:
        raise UserError(f"{place / 'status.json'} is damaged: the same `cu-ray sweep` command writes it again")
    return dict(facts)


def in_ledger(known: Known) -> dict[str, int]:
    """How many records of each kind there are, by the names of the counts that they are part of."""
    return {
        "trials_done": len(known.trials),
        "trials_failed": sum(not record.ok for record in known.trials.values()),
        "originals_done": len(known.originals),
    }


def now(folder: Place) -> dict[str, Any]:
    """The status, its counts with what has been written to the ledger since. Raises UserError as `read` does."""
    from cu_ray.sweep import ledger

    facts = read(folder)
    if facts["running"] and isinstance(then := facts.get("in_ledger"), dict):  # none in those of earlier versions
        for name, number in in_ledger(ledger.read(folder / "ledger")).items():
            most = facts["originals" if name == "originals_done" else "trials"]
            facts[name] = min(most, facts[name] + max(0, number - then.get(name, number)))
    return facts
