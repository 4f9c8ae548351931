"""A store in one schema of a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from forebay.errors import StoreClosedError, StoreError
from forebay.postgres.address import Address, parse_address
from forebay.postgres.foreign import ForeignCommits
from forebay.postgres.migrations import migrate
from forebay.postgres.readers import Readers
from forebay.postgres.session import connect
from forebay.postgres.sharing import Charge, SharedPartitions
from forebay.postgres.writer import Writer
from forebay.scripts import MigrationSet
from forebay.transaction import Transaction
from forebay.work import Work

P = ParamSpec("P")
T = TypeVar("T")

MAX_READERS = 4
"""Queries that run at once; each has a thread and a session."""


class PostgresStore:
    """Implements ``forebay.transaction.Store`` on one schema of a PostgreSQL database.

    One thread writes on a session of its own, up to 64 waiting units to a COMMIT; up to four more read, each query on
    its own snapshot. A crash at any line, of this process or of the server, keeps each unit as a whole or not at all,
    and keeps every unit whose ``write`` has returned. Several processes may open the same schema: their units behave as
    if they came one after the other.

    Use it from tasks of the event loop that opened it.

    Attributes:
        address: the database and the schema; it shows no password.
    """

    def __init__(self, address: Address, migrations: Sequence[MigrationSet]) -> None:
        """Use ``open``."""
        self.address = address
        self._readers = Readers(partial(connect, address, "reader"))
        self._writer = Writer(address, self._readers, lambda connection: migrate(connection, address, migrations))
        self._threads = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="forebay-postgres-reader")
        self._closing = False

    @classmethod
    async def open(cls, url: str, schema: str, *, migrations: Sequence[MigrationSet]) -> PostgresStore:
        """Connect, create the schema where it is missing, and apply the migrations that are pending.

        Args:
            url: ``postgresql://user@host:5432/database``; what it does not say, libpq takes from the ``PG*`` variables
                and from ``~/.pgpass``.
            schema: the service's name.
            migrations: applied in this order, each migration in a transaction of its own.

        Raises:
            ConfigurationError: the URL, the server's settings or the migrations cannot be used; it says what to do.
            StoreError: the server cannot be reached, or is a replica.
        """
        store = cls(parse_address(url, schema), migrations)
        try:
            await store._writer.start()
        except BaseException:
            store._threads.shutdown(wait=False)
            raise
        return store

    def partitions(self, count: int) -> SharedPartitions:
        """Return the partitions of this schema's consumer, to be shared with other processes."""
        return SharedPartitions(self._writer, self.address.schema, count)

    def charge(self) -> Charge:
        """Return what one process at a time has for this schema."""
        return Charge(self._writer, self.address.schema)

    @property
    def reclaiming(self) -> PostgresStore:
        """The same store: the server's disk is not ours to look after."""
        return self

    @property
    def collisions(self) -> int:
        """How many transactions were run again since the start because they collided with another process's."""
        return self._writer.collisions

    async def write(self, unit: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(transaction, *args, **kwargs)`` and return its result once it is on disk.

        A caller that is cancelled takes its unit back only before it has started; after that the unit counts.

        Raises:
            ConstraintError: the unit broke a constraint, a deferred one included.
            OutcomeUnknownError: the connection was lost during COMMIT; the unit may be on disk.
            StoreBusyError: another program keeps a lock, or keeps colliding with it; nothing was kept.
            StoreFullError: the server's disk is full; nothing was kept.
            StoreClosedError: the store was closed before.
            StoreError: the database failed or is away; nothing was kept.
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
            StoreError: the database failed or is away.
            Exception: what the query raised; ``psycopg.errors.ReadOnlySqlTransaction`` if it tries to write.
        """
        if self._closing:
            raise StoreClosedError("the store is closed")
        if self._writer.uncertain:
            await self.write(_nothing)  # until the lost session is gone its COMMIT may still take effect
        run = partial(self._readers.run, query, args, kwargs)
        result: T = await asyncio.get_running_loop().run_in_executor(self._threads, run)
        return result

    def on_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after each group that committed here, and after a reconnection.

        Groups that end before the loop comes round share one call.

        Returns:
            A function that unsubscribes it; calling that again does nothing.
        """
        return self._writer.listen(callback)

    def foreign_commits(self) -> ForeignCommits:
        """Return what calls the callbacks of ``on_commit`` after commits of other processes too, while it runs."""
        return ForeignCommits(self.address, self._writer.committed_elsewhere)

    async def close(self) -> None:
        """Run what is queued, then close the sessions; may be called again.

        Queries may go on for 5 s and are interrupted then.
        """
        self._closing = True
        self._writer.stop()
        await asyncio.shield(self._writer.stopped)
        self._threads.shutdown(wait=False)

    def problem(self) -> str:
        """Return why nothing can be written now; empty while it can."""
        return self._writer.problem

    async def check(self) -> None:
        """Do nothing: the server checks its pages itself."""

    async def damaged(self) -> StoreError:
        """Wait for ever: what the server finds damaged fails the units that meet it."""
        never: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        return await never


def _nothing(_: Transaction) -> None:
    """Write nothing."""
