"""Where results and models lie: a folder, with the few things that are done there.

A file appears finished or not at all.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, order=True)
class File:
    """A file of a place, without its content."""

    modified: float  # seconds since 1970
    size: int
    name: str


class Place(Protocol):
    """A folder, whether it is there yet or not."""

    @property
    def name(self) -> str:
        """Its own name, the last of its path."""

    def __truediv__(self, name: str) -> Place:
        """What lies in it under this name."""

    def files(self) -> list[File]:
        """The files in it, those with hidden names apart; none where there is no such folder."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole at every moment, in the place of an earlier one."""

    def delete(self, name: str) -> None:
        """Take a file away, if it is there."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path / name)

    def files(self) -> list[File]:
        found = []
        for path in self.path.glob("[!.]*"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # taken away meanwhile
                continue
            if path.is_file():
                found.append(File(facts.st_mtime, facts.st_size, path.name))
        return found

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def delete_unfinished(self) -> None:
        """Take away what writers that were killed left under temporary names. Only for who writes here alone."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def at(where: Place | Path | str) -> Place:
    """The place that a path names."""
    return Folder(Path(where).expanduser()) if isinstance(where, (str, Path)) else where
