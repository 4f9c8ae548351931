"""One transaction on one SQLite connection, as a unit of work sees it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any, NoReturn

from forebay.errors import StoreError
from forebay.row_cache import RowCache, names_cached
from forebay.sqlite.failures import mapped, primary_code
from forebay.sqlite.parameters import Values, numbered
from forebay.together import Together
from forebay.transaction import Row

_FIRST_WORD = re.compile(r"(?:[\s;\ufeff]|--[^\n]*(?:\n|$)|/\*.*?\*/)*([a-zA-Z]+)", re.DOTALL)
_REFUSED = frozenset(
    {"ATTACH", "BEGIN", "COMMIT", "DETACH", "END", "PRAGMA", "RELEASE", "ROLLBACK", "SAVEPOINT", "VACUUM"}
)

ROWS_TOGETHER = (500, 50, 5)
"""Rows that one statement inserts. SQLite works without the interpreter's lock, and the thread asks for it again after
each statement: one that inserts row by row beside one that computes waits for it with each row."""

MOST_VALUES = 20_000
"""Values of one statement; SQLite takes 32,766 unless it is built otherwise."""


@lru_cache(maxsize=1024)
def _first_word(sql: str) -> str:
    match = _FIRST_WORD.match(sql)
    return match[1].upper() if match else ""


def refused_word(sql: str) -> str | None:
    """Return the statement's first word in upper case if only the store itself may run it, else None."""
    word = _first_word(sql)
    return word if word in _REFUSED else None


@lru_cache(maxsize=1024)
def _prepared(sql: str) -> tuple[str, Values, bool]:
    """Return a statement by number, how its values are put in order, and whether ``_check`` has to see it each time."""
    return *numbered(sql), refused_word(sql) is not None or changes_cached(sql)


@lru_cache(maxsize=1024)
def changes_cached(sql: str) -> bool:
    """Whether a statement may change rows that a ``RowCache`` is about."""
    return names_cached(sql) and _first_word(sql) != "SELECT"


@lru_cache(maxsize=256)
def _insertion(table: str, columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"insert into {table} ({', '.join(columns)}) values {', '.join([row] * rows)}"


class SqliteTransaction:
    """Implements ``forebay.transaction.Transaction``: a unit's part of the writer's group, or a reader's snapshot.

    After a ``StoreError`` it is spent: SQLite may have left the transaction, and the next statement would commit by
    itself. A caught ``ConstraintError`` undoes its statement alone.

    Attributes:
        opening: names the opening of the database that this transaction belongs to (32 hex digits).
        failure: the ``StoreError`` that spent it; the unit fails even if it caught the error.
        row_cache: what is known of the inbox's rows; None in a snapshot.
        wrote: whether it may have changed something: it ran a statement that was no SELECT.
    """

    __slots__ = (
        "_connection",
        "_cursor",
        "_over",
        "_together",
        "_unsettled",
        "_writes",
        "failure",
        "opening",
        "row_cache",
        "wrote",
    )

    def __init__(
        self,
        connection: sqlite3.Connection,
        opening: str,
        *,
        writes: bool = True,
        together: Together | None = None,
        row_cache: RowCache | None = None,
    ) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._writes = writes
        self._together = self._unsettled = together
        self._over = False
        self.opening = opening
        self.row_cache = row_cache
        self.failure: StoreError | None = None
        self.wrote = False

    def execute(self, sql: str, **params: Any) -> list[Row]:
        """Run one statement with ``:name`` parameters and return all its rows (none for a plain write).

        Raises:
            ConstraintError: a constraint of the schema refused it.
            StoreError: the database failed; the whole unit of work is undone.
            ValueError: the statement controls transactions or the connection, which is the store's business.
            sqlite3.Error: the statement is wrong (syntax, a missing table, a missing parameter).
        """
        text, values, refused = _prepared(sql)
        seen = self.wrote and self._unsettled is None  # what a first look is for, as the store does not do it each time
        if refused or not seen or self.failure is not None or self._over or not self._connection.in_transaction:
            self._check(sql)
        bound: Any = params
        try:
            bound = values(params)
        except KeyError:
            text = sql  # SQLite says which one is missing
        cursor = self._cursor  # one for all statements: each is read to its end
        try:
            cursor.execute(text, bound)
            return [] if cursor.description is None else cursor.fetchall()
        except BaseException as error:
            cursor.close()  # it keeps the statement that failed, and that keeps the database open after its closing
            self._cursor = self._connection.cursor()
            if isinstance(error, sqlite3.Error):
                self._raise(error)
            raise

    def executemany(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement once per mapping of parameters. Raises as ``execute`` does."""
        if isinstance(rows, list):  # what is made on the way stays on its way, and keeps its own errors
            text, values, _ = _prepared(sql)
            with suppress(KeyError):  # SQLite says which one is missing
                sql, rows = text, list(map(values, rows))
        self._run(self._connection.executemany, sql, rows)

    def insert_many(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows whose values stand in the order of ``columns``. Raises as ``execute`` does.

        Places are bound by their number: a name has to be looked up for every value of every row. Statements have few
        numbers of rows, so that each is prepared once; the values of the last one stay in memory with it. Rows before
        one that a constraint refused may be there, to a unit that catches the error.
        """
        columns, at = tuple(columns), 0
        for together in ROWS_TOGETHER if set(map(len, rows)) == {len(columns)} else ():
            while len(rows) - at >= together and together * len(columns) <= MOST_VALUES:
                values = list(chain.from_iterable(rows[at : at + together]))
                self._run(self._connection.execute, _insertion(table, columns, together), values)
                at += together
        if at < len(rows):  # of another length, it shows which is wrong
            self._run(self._connection.executemany, _insertion(table, columns, 1), rows[at:])

    def join(self) -> Together | None:
        """Return what this unit's group writes together; whoever takes it settles it before reading what it is about.

        A unit that does not ask for it finds everything written. None: the unit writes for itself.
        """
        self._unsettled = None
        return self._together

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection below, for the store's own work."""
        self.wrote = True
        if self.row_cache is not None:
            self.row_cache.clear()
        return self._connection

    def end(self) -> None:
        """Refuse every further statement: the unit of work has returned."""
        self._over = True
        self._cursor.close()

    def _run(self, run: Callable[[str, Any], object], sql: str, values: Iterable[Any]) -> None:
        self._check(sql)
        try:
            run(sql, values)
        except sqlite3.Error as error:
            self._raise(error)

    def _check(self, sql: str) -> None:
        if self.failure is not None:
            raise self.failure
        if self._over:
            raise RuntimeError("the transaction is over: use it only inside the function that got it")
        if not self._connection.in_transaction:
            raise StoreError("the database rolled the whole transaction back")
        word = _first_word(sql)
        if word in _REFUSED:
            raise ValueError(
                f"a unit of work may not run {word}: the store begins, commits and sets up its connections itself"
            )
        if self._unsettled is not None:
            together, self._unsettled = self._unsettled, None
            together.settle(self)
        if word != "SELECT":
            self.wrote = True
        if self.row_cache is not None and changes_cached(sql):
            self.row_cache.clear()

    def _raise(self, error: sqlite3.Error) -> NoReturn:
        known = mapped(error)
        if self.failure is not None and primary_code(error) == sqlite3.SQLITE_INTERRUPT:
            raise self.failure from error
        if not self._writes and primary_code(error) == sqlite3.SQLITE_READONLY:
            known = None  # a query that writes is wrong, the database is not
        if isinstance(known, StoreError):
            self.failure = known
        elif not self._connection.in_transaction:
            self.failure = StoreError(f"the statement rolled the whole transaction back: {error}")
        if known is None:
            raise error
        raise known from error
