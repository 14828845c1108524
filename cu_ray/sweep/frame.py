"""One look at a running sweep: as a line, as a live display, and as a file from which another process shows it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE = re.compile(r"\d+ of \d+ done, \d+ running, \d+ known before, ")


@dataclass(frozen=True)
class Frame:
    """How far a sweep is."""

    done: int
    expected: int
    cached: int  # known before it began
    failed: int
    elapsed: float  # seconds, as all here
    left: float | None
    running: list[tuple[str, float]]  # what, and for how long

    @property
    def line(self) -> str:
        """In one line."""
        return (
            f"{self.done} of {self.expected} done, {len(self.running)} running, {self.cached} known before, "
            f"{self.failed} failed, {clock(self.elapsed)} elapsed"
            + (f", about {clock(self.left)} left" if self.left is not None else "")
        )

    def render(self) -> Group:
        """With a bar, and a line for each that runs."""
        head, running = Table.grid(), Table.grid(padding=(0, 2))
        head.add_row(ProgressBar(total=max(self.expected, 1), completed=self.done, width=60))
        for what, seconds in self.running:
            running.add_row("", Text(what), Text(f"{seconds:.0f} s", style="dim"))
        return Group(head, Text(self.line), running)

    def write(self, path: Path) -> None:
        """Put it into a file, whole at every moment. Where that cannot be, nothing is shown elsewhere and the sweep goes on."""
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
            os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Frame | None:
        """The frame in a file; None where there is no whole one."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # after a power cut it may be empty
            return None


def file_in(scratch: Path) -> Path:
    """Where a sweep whose scratch folder this is keeps its frame while it runs without a live display."""
    return scratch / "logs" / "frame.json"


def clock(seconds: float) -> str:
    """Minutes and seconds, of long times with hours before."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
