"""Reading the rows of a damaged table: all that can be reached, past what cannot."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from forebay.sqlite.pages import PageFile

_LARGEST = (1 << 63) - 1

_UNREADABLE = (sqlite3.Error, OverflowError, UnicodeDecodeError)


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


class TableReader:
    """Reads one table of a damaged database.

    Attributes:
        columns: what can be read and written back, the rowid first where there is one; generated columns are left out.
        whole: False once something could not be read.
    """

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = quoted(table)
        self._name = _text(table)
        info = connection.execute(f"select name, hidden, type, pk from pragma_table_xinfo({self._name})").fetchall()
        self._plain: list[str] = [name for name, hidden, _, _ in info if not hidden]
        keys = [name for name, _, _, pk in info if pk]
        self._alias = next(
            (name for name, _, kind, pk in info if pk and kind.lower() == "integer" and len(keys) == 1), ""
        )
        self._list = ", ".join(quoted(column) for column in self._plain)
        self._has_rowid = self._find_rowid()
        self.columns = ["rowid", *self._plain] if self._has_rowid else self._plain
        self._gaps: list[tuple[int, int]] = []
        self.whole = True

    def rows(self) -> Iterator[Sequence[Any]]:
        """Yield every row that can be read."""
        return self._by_rowid() if self._has_rowid else self._both_ways()

    def rows_of_pages(self, pages: PageFile, root: int) -> Iterator[Sequence[Any]]:
        """Yield what is on the table's pages of the rows that ``rows`` had to pass; one may lack its last columns."""
        if self._has_rowid:
            for rowid, values in pages.rows(root, self._gaps):
                if self._alias and self._alias in self._plain[: len(values)]:
                    values[self._plain.index(self._alias)] = rowid
                if len(values) <= len(self._plain):
                    yield [rowid, *values]

    def _find_rowid(self) -> bool:
        try:
            self._connection.execute(f"select rowid from {self._table} where 0")
        except sqlite3.OperationalError:
            return False
        return True

    def _by_rowid(self) -> Iterator[Sequence[Any]]:
        sql = f"select rowid, {self._list} from {self._table} not indexed where rowid >= ? order by rowid"
        start: int | None = -_LARGEST - 1
        while start is not None:
            before = last = start - 1
            try:
                for row in self._connection.execute(sql, (start,)):
                    if row[0] > last:
                        before, last = last, row[0]
                    else:  # a wrong page gives rows that are none, with any rowid: it goes on behind what is in order
                        self.whole = False
                        last = max(before, row[0])
                    yield row
            except _UNREADABLE:
                self.whole = False
                start = self._next_readable(last + 1)
                self._gaps.append((before + 1, _LARGEST if start is None else start - 1))
            else:
                return

    def _next_readable(self, bad: int) -> int | None:
        """Return the least rowid from which a row can be read, above one from which none can; None if there is none."""
        if bad >= _LARGEST:
            return None
        if bad < 0:
            bad = 0  # whoever writes negative ids loses them
        step = 1
        while not (found := self._probe(bad + step)):
            if bad + 2 * step > _LARGEST:
                return None
            step *= 2
        low, high = bad + step // 2, bad + step
        while high - low > 1:
            middle = (low + high) // 2
            if again := self._probe(middle):
                found, high = again, middle
            else:
                low = middle
        return found[0]

    def _probe(self, start: int) -> tuple[int | None] | None:
        """Return the rowid of the first row from ``start`` on (None: no more rows); nothing where it cannot be read."""
        sql = f"select rowid, {self._list} from {self._table} not indexed where rowid >= ? order by rowid limit 1"
        try:
            row = self._connection.execute(sql, (start,)).fetchone()
        except _UNREADABLE:
            return None
        if row is not None and row[0] < start:
            return None  # it does not belong where it stands
        return (None if row is None else row[0],)

    def _both_ways(self) -> Iterator[Sequence[Any]]:
        """Read a table without rowids from both ends; what lies between two damages is not reached."""
        keys = self._connection.execute(
            f"select name from pragma_table_xinfo({self._name}) where pk order by pk"
        ).fetchall()
        for direction in ("", " desc"):
            order = ", ".join(f"{quoted(name)}{direction}" for (name,) in keys)
            order = f" order by {order}" if order else ""
            try:
                yield from self._connection.execute(f"select {self._list} from {self._table}{order}")
            except _UNREADABLE:
                self.whole = False
            else:
                return


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
