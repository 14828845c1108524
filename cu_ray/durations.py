"""Times as people write them."""

from __future__ import annotations

import re

ALLOWED = "hours, minutes and seconds are needed, like 8h, 90m, 1h30m or 45s"


def seconds_of(time: str) -> float:
    """The seconds of a time like 8h, 90m, 1h30m or 45s. Raises ValueError for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
    if not time or found is None:
        raise ValueError(f"{time}: {ALLOWED}")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds
