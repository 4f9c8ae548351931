"""The reading sessions of one store: few, opened when needed, each query on a snapshot of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from forebay.errors import StoreBusyError, StoreClosedError
from forebay.postgres.failures import store_error
from forebay.postgres.session import Connection
from forebay.postgres.transaction import PostgresTransaction

WAIT = 5.0
"""Seconds that closing waits for queries that were interrupted."""

_BEGIN = b"begin isolation level repeatable read read only"


class Readers:
    """Runs queries, each on a snapshot of its own. Safe from any thread."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._busy: dict[Connection, PostgresTransaction | None] = {}
        self._running = 0
        self._closed = False
        self._changed = Condition()

    def run(self, query: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``query(transaction, *args, **kwargs)`` on a snapshot and return its result.

        Raises:
            StoreError: the database failed, or the store was closed.
        """
        with self._session() as connection:
            for again in (True, False):
                transaction = self._busy[connection] = PostgresTransaction(connection, writes=False)
                try:
                    return query(transaction, *args, **kwargs)
                except StopIteration as error:
                    raise RuntimeError("the query raised StopIteration") from error
                except StoreBusyError:
                    if not (again and transaction.conflict):
                        raise
                    connection.execute(b"rollback; " + _BEGIN)  # the schema has changed: prepared anew
                finally:
                    transaction.end()
        raise AssertionError("unreachable")

    def close(self, grace: float) -> None:
        """Let no new query begin, interrupt those that run after ``grace`` seconds, and close the sessions."""
        with self._changed:
            self._closed = True
            if not self._changed.wait_for(lambda: not self._running, grace):
                for connection, transaction in self._busy.items():
                    if transaction is not None:  # its next statement fails too, not the one under way alone
                        transaction.failure = StoreBusyError("the query took too long and was interrupted")
                    with suppress(psycopg.Error):
                        connection.cancel_safe(timeout=1)
                self._changed.wait_for(lambda: not self._running, WAIT)
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        with self._changed:
            if self._closed:
                raise StoreClosedError("the store is closed")
            self._running += 1
            idle = self._idle.pop() if self._idle else None
        connection: Connection | None = None
        try:
            connection = self._begun(idle)
            yield connection
        finally:
            if connection is not None:
                _finish(connection)
            with self._changed:
                self._running -= 1
                if connection is not None:
                    self._busy.pop(connection, None)
                    if self._closed or connection.closed:
                        connection.close()
                    else:
                        self._idle.append(connection)
                self._changed.notify_all()

    def _begun(self, idle: Connection | None) -> Connection:
        """Begin a snapshot on an idle session, or on a new one where that died meanwhile.

        Raises:
            StoreError: the server does not answer.
        """
        if idle is not None:
            try:
                idle.execute(_BEGIN)
            except psycopg.Error:
                idle.close()
            else:
                return self._note(idle)
        connection = self._connect()
        try:
            connection.execute(_BEGIN)
        except psycopg.Error as error:
            connection.close()
            raise store_error(error, "BEGIN") from error
        return self._note(connection)

    def _note(self, connection: Connection) -> Connection:
        with self._changed:
            self._busy[connection] = None
        return connection


def _finish(connection: Connection) -> None:
    """End the snapshot; by COMMIT where that is possible, for psycopg forgets its prepared statements at a ROLLBACK."""
    good = connection.info.transaction_status == TransactionStatus.INTRANS
    try:
        connection.execute(b"commit" if good else b"rollback")
    except psycopg.Error:
        connection.close()
