"""What a running sweep says of itself in `status.json`: read by `cu-ray status`, `replay` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cu_ray.errors import PlaceFailed, UserError
from cu_ray.places import Place, at

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
