"""Rows straight from the pages of a damaged file (https://sqlite.org/fileformat2.html#b_tree_pages).

SQL finds a table's rows through its inner pages: one of them broken hides all that is below it. The pages themselves
are there, and in a file with ``auto_vacuum`` the pointer map tells of each page which one it hangs from, up to the
table's root. So every leaf that still looks like one is read, whatever became of the way to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_LEAF = 0x0D
_ROOT, _CHILD = 1, 5
_PENDING_BYTE = 1 << 30
_DEEPEST = 20
"""Levels of a tree: more than SQLite's own limit, so that a map that leads in a circle ends."""

_WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes of the values that are numbers, by serial type."""

Value = int | float | str | bytes | None


class PageFile:
    """The pages of one file, which is complete in itself: no log belongs to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        header = self._file.read(100)
        size = int.from_bytes(header[16:18], "big")
        self._size = 65536 if size == 1 else size
        self._count = path.stat().st_size // self._size
        self._has_map = int.from_bytes(header[52:56], "big") != 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rows(self, root: int, gaps: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[Value]]]:
        """Yield rowid and values of the rows on a table's leaves; what cannot be decoded is left out.

        Args:
            root: the page at which the table begins.
            gaps: the rowids that are asked for, both ends included.
        """
        if self._has_map:
            for number in range(3, self._count + 1):
                if self._root_of(number) == root:
                    yield from self._leaf(self._page(number), gaps)

    def _page(self, number: int) -> bytes:
        self._file.seek((number - 1) * self._size)
        return self._file.read(self._size)

    def _root_of(self, number: int) -> int:
        """Return the root of the tree that a page is in; 0 for one that is in none."""
        for _ in range(_DEEPEST):
            kind, parent = self._mapped(number)
            if kind == _ROOT:
                return number
            if kind != _CHILD or not 1 < parent <= self._count:
                return 0
            number = parent
        return 0

    def _mapped(self, number: int) -> tuple[int, int]:
        step = self._size // 5 + 1
        page = (number - 2) // step * step + 2
        if page == _PENDING_BYTE // self._size + 1:
            page += 1
        at = (number - page - 1) * 5
        if at < 0:
            return 0, 0  # it is a page of the map
        self._file.seek((page - 1) * self._size + at)
        entry = self._file.read(5)
        return (entry[0], int.from_bytes(entry[1:], "big")) if len(entry) == 5 else (0, 0)

    def _leaf(self, page: bytes, gaps: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[Value]]]:
        if len(page) < self._size or page[0] != _LEAF:
            return
        cells = int.from_bytes(page[3:5], "big")
        with suppress(IndexError):
            least, most = (self._rowid(page, 8 + 2 * at) for at in (0, max(0, cells - 1)))
            if least <= most and all(last < least or most < first for first, last in gaps):
                return
        for at in range(8, min(8 + 2 * cells, self._size - 1), 2):
            try:
                rowid = self._rowid(page, at)
                if any(first <= rowid <= last for first, last in gaps):
                    yield self._cell(page, int.from_bytes(page[at : at + 2], "big"))
            except (IndexError, ValueError, OverflowError, struct.error):  # this one is not what it was
                continue

    @staticmethod
    def _rowid(page: bytes, at: int) -> int:
        return _varint(page, _varint(page, int.from_bytes(page[at : at + 2], "big"))[1])[0]

    def _cell(self, page: bytes, at: int) -> tuple[int, list[Value]]:
        length, at = _varint(page, at)
        rowid, at = _varint(page, at)
        local = self._local(length)
        payload = page[at : at + local]
        following = int.from_bytes(page[at + local : at + local + 4], "big") if local < length else 0
        while len(payload) < length:
            if not 1 < following <= self._count:
                raise ValueError("the row goes on nowhere")
            overflow = self._page(following)
            following = int.from_bytes(overflow[:4], "big")
            payload += overflow[4 : 4 + length - len(payload)]
        if len(payload) != length:
            raise ValueError("the row is cut off")
        return rowid, _record(payload)

    def _local(self, length: int) -> int:
        """Return how many bytes of a payload are on the leaf itself."""
        if length <= self._size - 35:
            return length
        least = (self._size - 12) * 32 // 255 - 23
        more = least + (length - least) % (self._size - 4)
        return more if more <= self._size - 35 else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    value = value << 8 | data[at]
    return value - (1 << 64) if value >= 1 << 63 else value, at + 1


def _record(payload: bytes) -> list[Value]:
    size, at = _varint(payload, 0)
    if not 0 < size <= len(payload):
        raise ValueError("the row has no header")
    values: list[Value] = []
    body = size
    while at < size:
        kind = payload[at]
        if kind < 0x80:
            at += 1
        else:
            kind, at = _varint(payload, at)
        value, body = _value(kind, payload, body)
        values.append(value)
    if body != len(payload):
        raise ValueError("the row has another length than its header says")
    return values


def _value(kind: int, payload: bytes, at: int) -> tuple[Value, int]:
    width = _WIDTHS[kind] if kind < 12 else (kind - 12) // 2
    data = payload[at : at + width]
    if len(data) != width or kind in (10, 11) or kind < 0:
        raise ValueError("the row ends within a value")
    value: Any = data
    if kind == 0:
        value = None
    elif kind == 7:
        value = struct.unpack(">d", data)[0]
    elif kind < 10:
        value = kind - 8 if kind in (8, 9) else int.from_bytes(data, "big", signed=True)
    elif kind % 2:
        value = data.decode()
    return value, at + width
