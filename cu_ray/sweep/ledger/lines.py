"""The lines of a ledger's files: `<length> <crc32> <payload>`, found again after bytes that are none.

A payload is one record as JSON, or a batch: many such lines, compressed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BATCH_BYTES = 64 << 10  # of lines, before compression: what a damaged byte can cost
MOST_BYTES = 64 << 20  # taken out of a batch: nobody wrote more into one

_HEAD = re.compile(rb"([1-9]\d{0,8}) ([0-9a-f]{8}) ")
_BEGUN = re.compile(rb"[1-9]\d{0,8}( [0-9a-f]{0,8}| [0-9a-f]{8} (\{[^\n]*)?)?")


def line(payload: bytes) -> bytes:
    """The line of a payload."""
    return b"%d %08x %s\n" % (len(payload), zlib.crc32(payload), payload)


def batches(lines: bytes) -> bytes:
    """The lines in batches, a line each."""
    packed, batch = [], b""
    for each in lines.splitlines(keepends=True):
        batch += each
        if len(batch) >= BATCH_BYTES:
            packed.append(line(zlib.compress(batch)))
            batch = b""
    return b"".join([*packed, line(zlib.compress(batch))] if batch else packed)


@dataclass(frozen=True)
class Scan:
    """What some bytes are: payloads of intact lines, those of batches included; the intact lines; all else."""

    payloads: list[bytes]
    intact: bytes
    garbage: bytes
    has_batches: bool
    is_begun: bool  # whether the garbage may be a line of which the writer has not written all yet

    @property
    def lines(self) -> bytes:
        """The lines of the payloads, none in a batch."""
        return b"".join(map(line, self.payloads)) if self.has_batches else self.intact


def scan(content: bytes) -> Scan:
    """The intact lines of some bytes, wherever they begin, and what lies between them."""
    payloads, intact, garbage, has_batches, position = [], [], [], False, 0
    for start, begin, end in _intact(content):
        garbage.append(content[position:start])
        intact.append(content[start : end + 1])
        position = end + 1
        inner = _unpacked(content[begin:end])
        has_batches |= inner is not None
        payloads += [content[begin:end]] if inner is None else [inner[begin:end] for _, begin, end in _intact(inner)]
    rest = content[position:]
    is_begun = not has_batches and not any(garbage) and _BEGUN.fullmatch(rest) is not None
    return Scan(payloads, b"".join(intact), b"".join([*garbage, rest]), has_batches, is_begun)


def _intact(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each intact line: where it starts, where its payload begins and where that ends."""
    position = 0
    while head := _HEAD.search(content, position):
        begin = head.end()
        end = begin + int(head[1])
        if content[end : end + 1] == b"\n" and zlib.crc32(content[begin:end]) == int(head[2], 16):
            yield head.start(), begin, end
            position = end + 1
        else:
            position = head.start() + 1


def _unpacked(payload: bytes) -> bytes | None:
    """The lines of a batch; None for any other payload."""
    if payload.startswith(b"{"):
        return None
    batch = zlib.decompressobj()
    try:
        lines = batch.decompress(payload, MOST_BYTES)
    except zlib.error:
        return None
    return lines if batch.eof else None
