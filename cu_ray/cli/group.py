"""The group of all commands, what they print on, and how their errors end."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import IO, Any

import click
from rich.console import Console

from cu_ray import __version__
from cu_ray.cli import INTERRUPTED
from cu_ray.errors import CuRayError, LedgerDamaged, UserError, did_you_mean
from cu_ray.places import Folder, Place, at

SHOWN = 40  # characters of a text, on both sides of what is wrong in it


class Terminal(Console):
    """Where commands print. What is printed after the reader of a pipe has gone is lost: that ends no sweep."""

    def on_broken_pipe(self) -> None:
        """Go on."""
        _to_nowhere(self.file)


def _to_nowhere(stream: IO[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
    """Print a warning about a ledger as one line, and others as ever."""
    if issubclass(category, LedgerDamaged):
        print(f"cu-ray: {message}", file=sys.stderr)
    else:
        others(message, category, *where, **how)


def console() -> Console:
    """The terminal, on which a text stands as it is; a plain text stream has lines of 140 characters."""
    return Terminal(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


class PlaceParameter(click.ParamType):  # type: ignore[type-arg]
    """A folder or a URI as an argument."""

    name = "path or URI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """The place."""
        place = at(value)
        if isinstance(place, Folder) and place.path.is_file():
            raise UserError(f"{place} is a file: the folder of a sweep (results/NAME) is needed")
        return place


PLACE = PlaceParameter()


class Commands(click.Group):
    """Commands whose wrong use ends in one message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        sys.path.insert(0, "")  # plug-ins in the current folder
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_show, warnings.showwarning)
                warnings.simplefilter("default", LedgerDamaged)  # also on a head, where Ray has them ignored
                return super().invoke(ctx)
        except UserError as error:
            print(f"cu-ray: {error}", file=sys.stderr)
            ctx.exit(2)
        except CuRayError as error:
            print(f"cu-ray: {error}", file=sys.stderr)
            ctx.exit(1)
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            ctx.exit(130)
        except BrokenPipeError:
            _to_nowhere(sys.stdout)
            ctx.exit(1)
        except UnicodeEncodeError as error:
            if not any("\ud800" <= each <= "\udfff" for each in error.object):  # what bytes of a path that are no text become
                raise
            near = error.object[max(error.start - SHOWN, 0) : error.end + SHOWN]
            print(f"cu-ray: {near!r} is not allowed. Allowed: texts and paths of characters only", file=sys.stderr)
            ctx.exit(2)
        except OSError as error:  # a full disk, no permission
            where = f" ({error.filename})" if error.filename else ""
            print(f"cu-ray: {error.strerror or error}{where}", file=sys.stderr)
            ctx.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command named, or a complaint with the nearest name."""
        shown = [name for name, command in self.commands.items() if not command.hidden]
        if args and args[0] not in self.commands:
            raise click.UsageError(f"there is no command {args[0]!r}. {did_you_mean(args[0], shown)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cu-ray")
def main() -> None:
    """Distributed sweeps for corrective machine unlearning."""
