"""The commands: parse, call, print.

Exit codes: 0 all done, 1 some trials failed, 2 wrong use, 3 the time limit came first, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cu_ray.cli.group import main

__all__ = ["INTERRUPTED", "command", "main"]
INTERRUPTED = "cu-ray: interrupted. What a sweep has finished is kept; the same command goes on from there."


def command() -> None:
    """`main` in a process of its own, which can be interrupted from its first moment on."""
    try:
        _set_up_streams()
        from cu_ray import collector
        from cu_ray.cli import main

        collector.as_command()
        main()
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _set_up_streams() -> None:
    """See to it that all three are there, also where the shell has closed one (`>&-`), and print whatever a path may hold."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def __getattr__(name: str) -> Any:
    """The group of all commands, imported when it is first used: that takes a while, in which Ctrl-C may be pressed."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cu_ray.cli import elsewhere, look, make, run  # noqa: F401 (they add their commands)
    from cu_ray.cli.group import main

    return main
