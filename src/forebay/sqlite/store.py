"""A store in one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from forebay.errors import ConfigurationError, StoreClosedError
from forebay.sqlite.connection import MIN_BYTES, Connect, make_folder, open_reader, open_writer
from forebay.sqlite.group import Work
from forebay.sqlite.migrations import migrate
from forebay.sqlite.readers import Readers
from forebay.sqlite.scripts import MigrationSet
from forebay.sqlite.writer import Writer
from forebay.transaction import Transaction

P = ParamSpec("P")
T = TypeVar("T")

MAX_READERS = 4
"""Queries that run at once; each has a thread and a connection of about 2 MB."""


class SqliteStore:
    """Implements ``forebay.transaction.Store`` on one SQLite file.

    One thread writes, up to 64 waiting units to a COMMIT; up to four more read, each query on its own snapshot. A crash
    at any line keeps each unit as a whole or not at all, and keeps every unit whose ``write`` has returned.

    Use it from tasks of the event loop that opened it, and open a file in one process at a time: SQLite up to 3.51.2
    can corrupt a database that two connections write or checkpoint at once.

    Attributes:
        path: the database file.
    """

    def __init__(self, path: Path, migrations: Sequence[MigrationSet], max_bytes: int | None, connect: Connect) -> None:
        """Use ``open``."""
        path = path.absolute()
        self.path = path
        self._readers = Readers(partial(open_reader, path, connect))
        self._writer = Writer(
            create=partial(_create, path, migrations, max_bytes, connect),
            reopen=partial(open_writer, path, max_bytes, connect, create=False),
            readers=self._readers,
        )
        self._threads = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="forebay-sqlite-reader")
        self._closing = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        migrations: Sequence[MigrationSet],
        max_bytes: int | None = None,
        connect: Connect = sqlite3.connect,
    ) -> SqliteStore:
        """Open the database, create it where it is missing, and apply the migrations that are pending.

        Args:
            path: the file; the folders above it are created.
            migrations: applied in this order, each migration in a transaction of its own.
            max_bytes: the most that the file may grow to; None for no limit. Beyond it ``StoreFullError`` is raised.
            connect: opens connections; for tests that make them fail.

        Raises:
            ConfigurationError: the folder, the limit or the migrations cannot be used; it says what to do.
            StoreError: the file cannot be opened or is no database.
        """
        if max_bytes is not None and max_bytes < MIN_BYTES:
            raise ConfigurationError(
                f"the limit of {max_bytes} bytes for {path} is too small", hint=f"give it {MIN_BYTES} or more"
            )
        store = cls(path, migrations, max_bytes, connect)
        await store._writer.start()
        return store

    @property
    def opening(self) -> str:
        """Names this opening of the database (32 hex digits); another one after an uncertain COMMIT."""
        return self._writer.opening

    async def write(self, unit: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(transaction, *args, **kwargs)`` and return its result once it is on disk.

        A caller that is cancelled takes its unit back only before it has started; after that the unit counts.

        Raises:
            ConstraintError: the unit broke a constraint, a deferred one included.
            OutcomeUnknownError: COMMIT failed; the unit may be on disk.
            StoreBusyError: another connection kept the database locked for 5 s; nothing was kept.
            StoreFullError: the disk, or ``max_bytes``, is spent; nothing was kept.
            StoreClosedError: the store was closed before.
            StoreError: the database failed; nothing was kept.
            Exception: what the unit raised; nothing of it was kept.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writer.submit(Work(unit, args, kwargs, future))
        return await future

    async def read(self, query: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``query(transaction, *args, **kwargs)`` on a snapshot, beside the writer, and return its result.

        It sees every write that has returned. A query that was cancelled after it started runs to its end unseen.

        Raises:
            StoreClosedError: the store was closed before.
            StoreError: the database failed, or is being reopened.
            Exception: what the query raised; ``sqlite3.OperationalError`` if it tries to write.
        """
        if self._closing:
            raise StoreClosedError("the store is closed")
        if self._writer.uncertain:
            await self.write(_nothing)  # makes the writer try to reopen, and raises why it cannot
        run = partial(self._readers.run, query, lambda: self._writer.opening, args, kwargs)
        result: T = await asyncio.get_running_loop().run_in_executor(self._threads, run)
        return result

    def on_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after each group that committed, and after a reopening.

        Groups that end before the loop comes round share one call; an event loop that is behind is not buried.

        Returns:
            A function that unsubscribes it; calling that again does nothing.
        """
        return self._writer.listen(callback)

    async def close(self) -> None:
        """Run what is queued, then close the file; may be called again.

        Queries may go on for 5 s and are interrupted then.
        """
        self._closing = True
        self._writer.stop()
        await asyncio.shield(self._writer.stopped)
        self._threads.shutdown(wait=False)


def _create(
    path: Path, migrations: Sequence[MigrationSet], max_bytes: int | None, connect: Connect
) -> sqlite3.Connection:
    make_folder(path.parent)
    connection = open_writer(path, max_bytes, connect)
    try:
        migrate(connection, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def _nothing(_: Transaction) -> None:
    """Write nothing."""
