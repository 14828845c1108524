"""The files of a ledger, read in their order; what a file of batches is."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cu_ray.errors import UserError
from cu_ray.places import Place
from cu_ray.sweep.ledger.lines import Scan, batches, line, scan
from cu_ray.sweep.ledger.records import Known, payload

_NAME = re.compile(r"(\d+)\b.*\.log")


@dataclass(frozen=True)
class Segment:
    """One file of a ledger, as it was when it was read."""

    name: str
    found: Scan
    num_unknown: int  # intact lines that are no record known here

    @property
    def number(self) -> int:
        """Its place in the order."""
        return _number(self.name)

    @property
    def is_packed(self) -> bool:
        """Whether it is written in batches: finished."""
        return self.found.has_batches

    @property
    def lines(self) -> bytes:
        """Its lines, none in a batch."""
        return self.found.lines

    @property
    def intact(self) -> bytes:
        """Its lines as they are in the file."""
        return self.found.intact

    @property
    def garbage(self) -> bytes:
        """The bytes that are no line."""
        return self.found.garbage

    @property
    def set_aside_in(self) -> str:
        """The file that such bytes are moved to."""
        return self.name.removesuffix(".log") + ".broken"


def load(place: Place) -> tuple[Known, list[Segment]]:
    """What a ledger holds, and its files; also while another process writes to it.

    Raises UserError for a newer schema and for a file that cannot be read.
    """
    known, segments = Known(), []
    for name, content in _contents(place):
        found, source = scan(content), str(place / name)
        taken = [known.take_in(each, source) for each in found.payloads]
        segments.append(Segment(name, found, taken.count(False)))
    return known, segments


def packed(lines: bytes) -> bytes:
    """The content of a file with these lines in batches; a version that knows none is told so by the first line."""
    return line(payload("batches", {})) + batches(lines)


def _contents(place: Place) -> list[tuple[str, bytes]]:
    while True:
        try:
            names = [file.name for file in place.files() if _NAME.fullmatch(file.name)]
            names.sort(key=lambda name: (_number(name), name))
            with ThreadPoolExecutor(16) as pool:
                return list(zip(names, pool.map(place.read, names), strict=True))
        except FileNotFoundError:  # compacted meanwhile: what was in it is in another file now
            continue
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error}") from error


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found
    return int(found[1])
