"""The commands: parse, call, print.

Exit codes: 0 all done, 1 some trials failed, 2 wrong use, 3 the time limit came first, 130 interrupted.
"""

from __future__ import annotations

from cu_ray import collector
from cu_ray.cli import elsewhere, look, make, run  # noqa: F401 (they add their commands)
from cu_ray.cli.group import main

__all__ = ["command", "main"]


def command() -> None:
    """`main` in a process of its own."""
    collector.as_command()
    main()
