"""The read-only connections of one store: few, opened when needed, and closed together before a reopening."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition
from typing import Any

from forebay.errors import StoreBusyError, StoreClosedError
from forebay.sqlite.failures import DamagedError, store_error
from forebay.sqlite.transaction import SqliteTransaction

WAIT = 5.0
"""Seconds that a query waits for a reopening, and a reopening for queries that do not end."""


class Readers:
    """Runs queries, each on a snapshot of its own. Safe from any thread.

    While it is paused new queries wait: after an uncertain COMMIT the log may hold rows that are not durable, and
    whoever read them would act on what a power cut can still take away.

    Attributes:
        on_damage: called when a query finds the file damaged.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self._busy: dict[sqlite3.Connection, SqliteTransaction | None] = {}
        self._running = 0
        self._paused = False
        self._closed = False
        self._changed = Condition()
        self.on_damage: Callable[[DamagedError], None] = lambda _: None

    def run(self, query: Callable[..., Any], opening: Callable[[], str], args: Any, kwargs: Any) -> Any:
        """Run ``query(transaction, *args, **kwargs)`` on a snapshot and return its result.

        Raises:
            StoreError: the database failed, is being reopened, or was closed.
        """
        with self._connection() as connection:
            try:
                connection.execute("BEGIN")
            except sqlite3.Error as error:
                raise store_error(error, "BEGIN") from error
            transaction = self._busy[connection] = SqliteTransaction(connection, opening(), writes=False)
            try:
                return query(transaction, *args, **kwargs)
            except StopIteration as error:
                raise RuntimeError("the query raised StopIteration") from error
            finally:
                transaction.end()
                if isinstance(transaction.failure, DamagedError):
                    self.on_damage(transaction.failure)
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def pause(self, grace: float = 0.0) -> bool:
        """Let no new query begin, interrupt those that run after ``grace`` seconds, and close the connections.

        Returns:
            Whether all are closed; False when a query did not end in time.
        """
        with self._changed:
            self._paused = True
            if not self._changed.wait_for(lambda: not self._running, grace):
                for connection, transaction in self._busy.items():
                    if transaction is not None:  # its next statement fails too, not the one under way alone
                        transaction.failure = StoreBusyError("the query took too long and was interrupted")
                    connection.interrupt()
                self._changed.wait_for(lambda: not self._running, WAIT)
            while self._idle:
                self._idle.pop().close()
            return not self._running

    def resume(self) -> None:
        """Let queries begin again."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def close(self, grace: float) -> None:
        """Refuse every further query, and end as ``pause`` does."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.pause(grace)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + WAIT
        with self._changed:
            while self._paused and not self._closed:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise StoreBusyError("the database is being reopened after a failed COMMIT")
            if self._closed:
                raise StoreClosedError("the store is closed")
            self._running += 1
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = self._connect()
            with self._changed:
                self._busy[connection] = None
            yield connection
        finally:
            with self._changed:
                self._running -= 1
                if connection is not None:
                    self._busy.pop(connection, None)
                    if self._paused or connection.in_transaction:
                        connection.close()
                    else:
                        self._idle.append(connection)
                self._changed.notify_all()
