"""The check that every benchmark ends with: each event that counts took effect once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from bench.failures import EffectsError


def check_once(effects: Iterable[int], wanted: Iterable[int], *, possible: Iterable[int] = ()) -> int:
    """Compare the numbers that took effect with those that had to, and return how many there are.

    Args:
        effects: one number for each time that an event took effect.
        wanted: the numbers that must be there.
        possible: those that may be there as well, such as requests that were cut off.

    Raises:
        EffectsError: a number is missing, there twice, or was never given out.
    """
    counted, must = Counter(effects), set(wanted)
    lost = must - counted.keys()
    doubled = [number for number, times in counted.items() if times > 1]
    unknown = counted.keys() - must - set(possible)
    if lost or doubled or unknown:
        examples = sorted([*lost, *doubled, *unknown])[:5]
        raise EffectsError(
            f"{len(lost)} lost, {len(doubled)} doubled, {len(unknown)} unknown of {len(must)}, such as {examples}"
        )
    return len(counted)


class Effects(Protocol):
    """A consumer's database, seen from outside of its process."""

    def count(self, enough: int) -> int:
        """How many effects are committed; 0 while there is no table. It may be too high below ``enough``, not above."""

    def numbers(self) -> list[int]:
        """The number of each effect, in the order of the table."""

    def close(self) -> None:
        """Let go of the database."""


class SqliteEffects:
    """The table ``effect`` of a SQLite database, read without a lock that the writer would wait for.

    Args:
        path: of the database.
        table: in place of ``effect``.
        before: rows that it has already, which do not count.
    """

    def __init__(self, path: Path, table: str = "effect", before: int = 0) -> None:
        self._path = path
        self._table = table
        self._before = before
        self._connection: sqlite3.Connection | None = None

    def count(self, enough: int) -> int:  # noqa: ARG002 - this count is exact
        """See ``Effects``. Nothing is ever deleted from the table: the last position is the count."""
        if self._connection is None:
            if not self._path.exists():
                return 0
            self._connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            last = self._connection.execute(f"select coalesce(max(rowid), 0) from {self._table}").fetchone()[0]
            return int(last) - self._before
        except sqlite3.OperationalError:  # the table is about to come
            return 0

    def numbers(self) -> list[int]:
        """See ``Effects``."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=5)) as connection:
            return [row[0] for row in connection.execute(f"select number from {self._table} order by rowid")]

    def close(self) -> None:
        """See ``Effects``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresEffects:
    """The table ``effect`` of a schema in PostgreSQL."""

    def __init__(self, url: str, schema: str = "public") -> None:
        self._url = url
        self._table = f'"{schema}".effect'
        self._connection: Any = None

    def count(self, enough: int) -> int:
        """See ``Effects``. Positions have holes: a rolled-back transaction keeps what it took. Counting takes long."""
        last = self._rows(f"select position from {self._table} order by position desc limit 1", [])
        if not last or last[0][0] < enough:
            return int(last[0][0]) if last else 0
        return int(self._rows(f"select count(*) from {self._table}", [(0,)])[0][0])

    def numbers(self) -> list[int]:
        """See ``Effects``."""
        return [row[0] for row in self._rows(f"select number from {self._table} order by position", [])]

    def close(self) -> None:
        """See ``Effects``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, query: str, otherwise: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        import psycopg  # only where this column is run

        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True)
        try:
            found: list[tuple[Any, ...]] = self._connection.execute(query.encode()).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return otherwise
        return found
