"""One transaction on one PostgreSQL session, as a unit of work sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NoReturn

import psycopg
from psycopg.pq import TransactionStatus

from forebay.errors import StoreBusyError, StoreError
from forebay.postgres.failures import conflicted, doubtful, mapped
from forebay.postgres.session import Connection
from forebay.postgres.statements import Statement, translate
from forebay.transaction import Row

_UNDER_WAY = """
    select virtualtransaction as name from pg_locks
    where locktype = 'relation' and granted and relation = 'forebay_turn'::regclass
      and database = (select oid from pg_database where datname = current_database())"""
"""Every writing transaction begins with a lock on this table, and has it until its rows are visible (``group``)."""

FEW = 3
"""Rows up to which ``executemany`` sends one statement after the other: a pipeline costs two round trips more."""


class PostgresTransaction:
    """Implements ``forebay.transaction.Transaction``: a savepoint of the writer's group, or a reader's snapshot.

    After a ``StoreError`` it is spent. PostgreSQL also spends a transaction with every other failing statement; a unit
    that catches such an error and goes on is run again, ``careful``: then each statement has a savepoint, and a failing
    one is undone alone, as on SQLite. The many units that do not pay nothing for it.

    A write that returns no rows is sent and not waited for (libpq's pipeline): the next statement that has an answer,
    or the end of the unit, waits for all of them. What fails then fails in the wrong place: the unit is run again, one
    statement after the other.

    A broken constraint is believed only ``in_turn``, while no other writer is in a transaction: else the group is run
    again in its turn, for another process may have taken the key a moment ago.

    Attributes:
        failure: the ``StoreError`` that spent it; the unit fails even if it caught the error.
        conflict: whether it collided with another transaction, and the whole group has to run again.
        aborted: the error that made PostgreSQL refuse every further statement.
        went_on: whether the unit used the transaction after that.
        misplaced: whether a write failed that nobody had waited for.
    """

    __slots__ = (
        "_careful",
        "_cursor",
        "_in_turn",
        "_opening",
        "_over",
        "_pipeline",
        "_waits",
        "_writes",
        "aborted",
        "conflict",
        "failure",
        "misplaced",
        "went_on",
    )

    def __init__(
        self,
        connection: Connection,
        *,
        writes: bool = True,
        careful: bool = False,
        in_turn: bool = True,
        waits: bool = True,
    ) -> None:
        """Begin to use a transaction of the session.

        Args:
            connection: the session.
            writes: whether it may write.
            careful: whether each statement has a savepoint.
            in_turn: whether no other writer is in a transaction.
            waits: whether each statement is waited for.
        """
        self._cursor = connection.cursor()
        self._waits = waits or careful or not writes
        self._pipeline: AbstractContextManager[Any] | None = None
        self._writes = writes
        self._careful = careful
        self._in_turn = in_turn
        self._over = False
        self._opening: str | None = None
        self.failure: StoreError | None = None
        self.conflict = False
        self.aborted: psycopg.Error | None = None
        self.went_on = False
        self.misplaced = False

    @property
    def opening(self) -> str:
        """The database's latest opening, which all processes write under (I2): read here, as late as possible."""
        if self._opening is None:
            self._opening = str(self.execute("select opening from forebay_opening")[0]["opening"])
        return self._opening

    def execute(self, sql: str, **params: Any) -> list[Row]:
        """Run one statement with ``:name`` parameters and return all its rows (none for a plain write).

        Raises:
            ConstraintError: a constraint of the schema refused it.
            StoreError: the database failed; the whole unit of work is undone.
            ValueError: the statement controls transactions or the session, which is the store's business, or there are
                several.
            psycopg.Error: the statement is wrong (syntax, a missing table, a missing parameter).
        """
        statement, values = self._prepared(sql, params)
        text = statement.text.encode()
        if statement.silent and not self._waits:
            self._send(text, values)
            return []
        self._wait()
        try:
            if self._careful:
                self._execute_carefully(text, values)
            else:
                self._cursor.execute(text, values)
            return list(self._cursor.fetchall()) if self._cursor.description is not None else []
        except psycopg.Error as error:
            self._raise(error)

    def executemany(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement once per mapping of parameters. Raises as ``execute`` does."""
        rows = list(rows)
        if len(rows) <= FEW or self._careful:
            for row in rows:
                self.execute(sql, **row)
            return
        statement, _ = self._prepared(sql, rows[0])
        self._wait()
        try:
            self._cursor.executemany(statement.text.encode(), [_values(statement.names, row) for row in rows])
        except psycopg.Error as error:
            self._raise(error)

    def under_way(self) -> frozenset[str]:
        """Return the writing transactions of the schema that have not ended at this moment; see ``forebay.settled``.

        The server shows its locks as they are, not as they were when the snapshot was taken.
        """
        return frozenset(str(row["name"]) for row in self.execute(_UNDER_WAY))

    def insert_many(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows whose values stand in the order of ``columns``. Raises as ``execute`` does."""
        sql = f"insert into {table} ({', '.join(columns)}) values ({', '.join(f':{name}' for name in columns)})"
        self.executemany(sql, [dict(zip(columns, row, strict=True)) for row in rows])

    def end(self) -> None:
        """Refuse every further statement: the unit of work has returned."""
        self._over = True

    def settle(self) -> None:
        """Wait for what was sent, after the unit has returned; ``misplaced`` or ``conflict`` say where it failed."""
        with suppress(StoreError):
            self._wait()

    def _send(self, text: bytes, values: list[Any]) -> None:
        """Send a write and wait for nothing."""
        try:
            if self._pipeline is None:
                pipeline = self._cursor.connection.pipeline()
                pipeline.__enter__()
                self._pipeline = pipeline
            self._cursor.execute(text, values)
        except psycopg.Error as error:
            with suppress(psycopg.Error):
                self._leave_pipeline()
            self._misplaced(error)

    def _wait(self) -> None:
        """Wait for the writes that were sent."""
        try:
            self._leave_pipeline()
        except psycopg.Error as error:
            self._misplaced(error)

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.__exit__(None, None, None)

    def _misplaced(self, error: psycopg.Error) -> NoReturn:
        if conflicted(error):
            self.conflict = True
        self.misplaced = True
        self.failure = StoreBusyError("a write failed that nobody had waited for: the unit of work is run again")
        raise self.failure from error

    def _prepared(self, sql: str, params: Mapping[str, Any]) -> tuple[Statement, list[Any]]:
        if self.failure is not None:
            raise self.failure
        if self._over:
            raise RuntimeError("the transaction is over: use it only inside the function that got it")
        if self.aborted is not None:
            self.went_on = True
            self.failure = StoreBusyError("the unit of work went on after a failing statement: it is run again")
            raise self.failure
        statement = translate(sql)
        if statement.refused:
            raise ValueError(
                f"a unit of work may not run {statement.refused}: the store begins, commits and sets up its sessions"
                " itself"
            )
        return statement, _values(statement.names, params)

    def _execute_carefully(self, text: bytes, values: list[Any]) -> None:
        self._cursor.execute(b"savepoint statement")
        try:
            self._cursor.execute(text, values)
        except psycopg.Error as error:
            if self._alive and not conflicted(error) and (self._in_turn or not doubtful(error)):
                self._cursor.connection.execute(b"rollback to statement; release statement")
            raise
        self._cursor.connection.execute(b"release statement")

    @property
    def _alive(self) -> bool:
        status = self._cursor.connection.info.transaction_status
        return status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def _raise(self, error: psycopg.Error) -> NoReturn:
        known = mapped(error)
        if not self._writes and error.sqlstate == "25006":
            known = None  # a query that writes is wrong, the database is not
        if conflicted(error):
            self.conflict = True
        elif not self._in_turn and doubtful(error):
            self.conflict = True
            known = StoreBusyError(f"run again in its turn, to be sure of it: {known}")
        if isinstance(known, StoreError):
            self.failure = known
        elif self._cursor.connection.info.transaction_status != TransactionStatus.INTRANS:
            self.aborted = error
        if known is None:
            raise error
        raise known from error


def _values(names: tuple[str, ...], params: Mapping[str, Any]) -> list[Any]:
    try:
        return [params[name] for name in names]
    except KeyError as error:
        raise psycopg.ProgrammingError(f"no value was given for the parameter :{error.args[0]}") from None
