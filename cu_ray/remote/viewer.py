"""What a terminal shows of a driver that runs on this machine without one: its output, and below it how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console, Group
from rich.text import Text

from cu_ray.sweep.frame import LINE, Frame
from cu_ray.sweep.progress import live

LOOK_EVERY = 0.2  # seconds


def watch(log: Path, frame: Path, process: int, console: Console) -> None:
    """Show what the driver has printed and prints until it ends, and its frames instead of its lines on how far it is."""

    def render() -> Group:
        shown = Frame.read(frame)
        return Group() if shown is None else shown.render()

    with live(console, render):
        for line in _lines(log, process):
            if LINE.match(line) is None:
                console.print(Text(line), soft_wrap=True)


def _lines(log: Path, process: int) -> Iterator[str]:
    """The lines of a file as they come, until the process that writes it ends."""
    with open(log, encoding="utf-8", errors="replace") as file:
        rest, runs = "", True
        while runs:
            runs = psutil.pid_exists(process)  # asked first: what comes before its end is read below
            *lines, rest = (rest + file.read()).split("\n")
            yield from lines
            time.sleep(LOOK_EVERY if runs else 0)
    if rest:
        yield rest
