"""What a sweep needs of this machine: its file and those that it extends, the plug-ins beside them, the files that it names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cu_ray.errors import UserError
from cu_ray.plugins import own_files


def pack(source: Path, to: Path) -> list[Path]:
    """Copy what the sweep file needs into a folder, each file under its path from here; gives these paths.

    The sweep is to be loaded already: its plug-ins are among the imported modules. Raises UserError for a sweep file that does
    not lie below the working directory, from which the head would run it.
    """
    here = Path.cwd()
    wanted = [*_sweep_files(source.resolve()), *own_files(here).values(), *_named(source.resolve(), here)]
    paths = []
    for path in dict.fromkeys(wanted):
        if not path.is_relative_to(here):
            raise UserError(f"{path} does not lie below {here}: run the command in a folder above it, so that it can be sent")
        target = to / path.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)
        paths.append(path.relative_to(here))
    return paths


def _sweep_files(path: Path) -> Iterator[Path]:
    """A sweep file and those that it extends."""
    yield path
    extended = _value(path).get("extends")
    if extended is not None:
        yield from _sweep_files((path.parent / extended).resolve())


def _named(source: Path, here: Path) -> Iterator[Path]:
    """The files and folders that the sweep files name by a relative path: weights, index files, images."""
    for file in _sweep_files(source):
        for given in _texts({name: value for name, value in _value(file).items() if name not in ("runtime", "extends")}):
            if ("/" in given or "." in given) and not Path(given).is_absolute() and _exists(here / given):
                yield (here / given).resolve()


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


def _value(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
