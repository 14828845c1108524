"""What a running sweep says of itself in `status.json`: read by `cu-ray status`, `replay` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cu_ray.errors import UserError

NEEDED = {
    **{"running": bool, "process": int, "host": str, "storage": str, "device": str},
    **dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), int),
}


def read(folder: Path) -> dict[str, Any]:
    """The status of the sweep in a folder. Raises UserError where there is none, or something else."""
    path = folder / "status.json"
    if not path.exists():
        raise UserError(f"there is no {path}: is {folder} the folder of a sweep (results/NAME)?")
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        facts = None
    sound = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in NEEDED.items())
    if not sound:
        raise UserError(f"{path} is damaged: the same `cu-ray sweep` command writes it again")
    return dict(facts)
