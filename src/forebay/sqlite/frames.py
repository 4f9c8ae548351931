"""A write-ahead log, read frame by frame (https://sqlite.org/fileformat2.html#the_write_ahead_log).

SQLite reads a log up to the first frame whose checksum is wrong and takes the rest for the torn end of a transaction
that was never confirmed. After a crash that is right. After a flipped bit it is a loss in silence: transactions behind
the bit were on disk and confirmed. The two differ in what follows: a torn transaction is the last one.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
"""Of checksums over little-endian words; one more for big-endian ones."""

_TORN = 1
"""Commits that may stand behind a wrong checksum without damage: one, of the transaction that a power cut tore."""


class Frame(NamedTuple):
    """A page as one transaction left it.

    Attributes:
        page: its number, from 1.
        pages: the database's size in pages, where the frame commits a transaction; else 0.
        offset: of its contents in the file.
        sound: whether the frame's checksum is right, given that of the frame before.
    """

    page: int
    pages: int
    offset: int
    sound: bool


class FrameList(NamedTuple):
    """The current frames of a log, in order; older ones, from before it began anew, are left out."""

    page_size: int
    frames: list[Frame]
    header_sound: bool

    @property
    def damaged(self) -> bool:
        """Whether confirmed transactions stand behind a frame that SQLite stops at."""
        if not self.header_sound:
            return any(frame.pages for frame in self.frames)
        bad = next((at for at, frame in enumerate(self.frames) if not frame.sound), len(self.frames))
        return sum(1 for frame in self.frames[bad:] if frame.pages) > _TORN


def read_frames(path: Path) -> FrameList | None:
    """Read a log; None where there is none, or nothing that can be told to be one."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER.size + _FRAME.size or not any(data[: _HEADER.size]):
        return None
    magic, _, page_size, _, salt1, salt2, first, second = _HEADER.unpack_from(data)
    order = ">" if magic == _MAGIC + 1 else "<"
    header_sound = magic in (_MAGIC, _MAGIC + 1) and _sum(data[:24], 0, 0, order) == (first, second)
    if not header_sound:
        page_size = page_size if 512 <= page_size <= 65536 and page_size & (page_size - 1) == 0 else 4096
        salt1, salt2 = _FRAME.unpack_from(data, _HEADER.size)[2:4]
    frames = []
    for at in range(_HEADER.size, len(data) - _FRAME.size - page_size + 1, _FRAME.size + page_size):
        page, pages, frame_salt1, frame_salt2, stored1, stored2 = _FRAME.unpack_from(data, at)
        offset = at + _FRAME.size
        if (frame_salt1, frame_salt2) == (salt1, salt2):
            summed = _sum(data[at : at + 8], first, second, order)
            summed = _sum(data[offset : offset + page_size], *summed, order)
            frames.append(Frame(page, pages, offset, summed == (stored1, stored2)))
        first, second = stored1, stored2
    return FrameList(page_size, frames, header_sound)


def _sum(data: bytes, first: int, second: int, order: str) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
