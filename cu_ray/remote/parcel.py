"""What a sweep needs of this machine: its file and those that it extends, the plug-ins beside them, the files that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cu_ray import config, yaml_file
from cu_ray.errors import UserError
from cu_ray.plugins import own_files
from cu_ray.sweep.cluster import copied


def pack(source: Path, to: Path) -> list[Path]:
    """Copy what the sweep file needs into a folder, each file under its path from here; gives these paths.

    A link is packed as what it leads to, under its own path. The sweep is to be loaded already: its plug-ins are among the
    imported modules. Raises UserError for a sweep file that does not lie below the working directory, from which the head would
    run it.
    """
    here = Path.cwd()
    file = yaml_file.read(source.resolve(), merged=config.MERGED, own=config.OWN)
    wanted = {}
    for path in (*map(_plain, file.files), *own_files(here).values(), *_named(file.value, here)):
        if not path.is_relative_to(here):
            raise UserError(f"{path} does not lie below {here}: run the command in a folder above it, so that it can be sent")
        wanted[path.relative_to(here)] = path
    copied(wanted, to)
    return list(wanted)


def _named(value: dict[str, Any], here: Path) -> Iterator[Path]:
    """The files and folders that a sweep file names by a relative path: weights, index files, images."""
    for given in _texts({name: section for name, section in value.items() if name != "runtime"}):
        path = _plain(here / given)
        if ("/" in given or "." in given) and not Path(given).is_absolute() and _exists(path):
            yield path


def _plain(path: Path) -> Path:
    """The path without `..`, and with its links: where they lead is a matter of this machine."""
    return Path(os.path.normpath(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text longer than any name
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
