"""The files of published data sets: found in the download folder or fetched, and used only where their checksum is right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cu_ray.datasets._torchvision import torchvision_datasets
from cu_ray.errors import UserError

DOWNLOADS = "~/.cache/cu-ray/downloads"
SILENT_AFTER = 300.0  # seconds without a byte, after which a server is given up


@dataclass(frozen=True)
class Archive:
    """A file as published: its path below the download folder, and its path there where somebody unpacked it."""

    path: str
    md5: str
    urls: tuple[str, ...]
    unpacked: str | None = None

    def found(self, folder: Path) -> Path | None:
        """The archive, or what was unpacked from it, or None."""
        candidates = [folder / path for path in (self.path, self.unpacked) if path is not None]
        return next((path for path in candidates if path.exists()), None)


def fetch(archives: Sequence[Archive], folder: Path, title: str) -> list[Path]:
    """A path for each archive: the archive with its checksum verified, or what was unpacked from it.

    Raises UserError where one is damaged, and one for all of them where they are neither there nor to be downloaded.
    """
    for archive in archives:
        if (path := archive.found(folder)) == folder / archive.path:
            _verify(path, archive.md5, title)
    try:
        return [archive.found(folder) or _download(archive, folder) for archive in archives]
    except (OSError, RuntimeError) as error:
        missing = [archive for archive in archives if archive.found(folder) is None]
        lines = [f"  {folder / archive.path} (md5 {archive.md5}) from {archive.urls[0]}{_or(archive)}" for archive in missing]
        raise UserError(
            f"{title} is not in {folder} and could not be downloaded ({error}). Put these there as they are published:\n"
            + "\n".join(lines)
        ) from error


def _or(archive: Archive) -> str:
    return f", or what is in it as {archive.unpacked}" if archive.unpacked else ""


def _verify(path: Path, md5: str, title: str) -> None:
    found = md5_of(path)
    if found != md5:
        raise UserError(f"{title}: {path} is damaged: its md5 is {found}, not {md5}. Delete it or put the right file there")


def md5_of(path: Path) -> str:
    """The MD5 of a file, as hexadecimal digits: what the publishers give."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _silence_ends() -> Iterator[None]:
    """A context in which a connection that says nothing for a while is an error: torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(archive: Archive, folder: Path) -> Path:
    """The archive, from the first address that has it; torchvision verifies it before it gets its name."""
    path = folder / archive.path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    problems = []
    for url in archive.urls:
        try:
            with _silence_ends():
                torchvision_datasets().utils.download_url(url, str(unfinished.parent), unfinished.name, archive.md5)
            os.replace(unfinished, path)
            return path
        except (OSError, RuntimeError) as error:
            problems.append(f"{url}: {error}")
        finally:
            unfinished.unlink(missing_ok=True)
    raise RuntimeError("; ".join(problems))
