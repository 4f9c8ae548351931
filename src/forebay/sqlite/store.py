"""A store in one SQLite file."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from forebay.errors import ConfigurationError, StoreBusyError, StoreClosedError, StoreError
from forebay.partitions import AllPartitions, Always
from forebay.scripts import MigrationSet
from forebay.sqlite.connection import MIN_BYTES, Connect, make_folder, open_reader, open_writer
from forebay.sqlite.damage import examine, mark_open, note_damage, unmark_open
from forebay.sqlite.disk import NO_CARE, Disk, DiskConfig
from forebay.sqlite.failures import DamagedError
from forebay.sqlite.library import check_library
from forebay.sqlite.log import Log
from forebay.sqlite.migrations import migrate
from forebay.sqlite.readers import Readers
from forebay.sqlite.salvage import Salvaging, finish_salvage, salvage
from forebay.sqlite.transaction import SqliteTransaction
from forebay.sqlite.writer import Writer
from forebay.transaction import Transaction
from forebay.work import Work

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_READERS = 4
"""Queries that run at once; each has a thread and a connection of about 2 MB."""


CHECKS = 20
"""Attempts of the check beside the service; each ends where the log has to be cut."""


class Opening(NamedTuple):
    """How a store is opened; see ``SqliteStore.open``."""

    path: Path
    migrations: Sequence[MigrationSet]
    max_bytes: int | None
    disk: DiskConfig
    salvaging: Salvaging | None
    connect: Connect


class SqliteStore:
    """Implements ``forebay.transaction.Store`` on one SQLite file.

    One thread writes, up to 64 waiting units to a COMMIT; up to four more read, each query on its own snapshot. A crash
    at any line keeps each unit as a whole or not at all, and keeps every unit whose ``write`` has returned.

    Use it from tasks of the event loop that opened it, and open a file in one process at a time: SQLite up to 3.51.2
    can corrupt a database that two connections write or checkpoint at once.

    Attributes:
        path: the database file.
        reclaiming: the same store for units that give room back: they run while the disk is full as well.
    """

    def __init__(self, opening: Opening) -> None:
        """Use ``open``."""
        self.path = opening.path.absolute()
        self.reclaiming = ReclaimingStore(self)
        self._disk = Disk(self.path, opening.disk)
        self._readers = Readers(partial(open_reader, self.path, opening.connect))
        self._readers.on_damage = self._note_damage
        self._loop = asyncio.get_running_loop()
        self._damage: asyncio.Future[DamagedError] = self._loop.create_future()
        self._unchecked = False
        self._checking: sqlite3.Connection | None = None
        self._writer = Writer(
            create=partial(self._create, opening),
            reopen=partial(open_writer, self.path, opening.max_bytes, opening.connect, create=False),
            readers=self._readers,
            disk=self._disk,
            log=Log(self.path, self._readers),
            on_damage=self._note_damage,
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
        disk: DiskConfig = NO_CARE,
        salvaging: Salvaging | None = None,
        connect: Connect = sqlite3.connect,
    ) -> SqliteStore:
        """Open the database, create it where it is missing, and apply the migrations that are pending.

        Args:
            path: the file; the folders above it are created.
            migrations: applied in this order, each migration in a transaction of its own.
            max_bytes: the most that the file may grow to; None for no limit. Beyond it ``StoreFullError`` is raised.
            disk: how much of the disk is left alone, and whether there is a ballast for when it is full.
            salvaging: how a damaged database is salvaged when it is opened; where it is None, it is not.
            connect: opens connections; for tests that make them fail.

        Raises:
            ConfigurationError: the folder, the limit or the migrations cannot be used, or the SQLite library is too
                old; it says what to do.
            StoreError: the file cannot be opened or is no database.
        """
        check_library()
        if max_bytes is not None and max_bytes < MIN_BYTES:
            raise ConfigurationError(
                f"the limit of {max_bytes} bytes for {path} is too small", hint=f"give it {MIN_BYTES} or more"
            )
        store = cls(Opening(path, migrations, max_bytes, disk, salvaging, connect))
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
        return await self.submit(unit, args, kwargs)

    async def submit(
        self, unit: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any], *, reclaims: bool = False
    ) -> T:
        """Do what ``write`` does. A unit that ``reclaims`` is not refused on a full disk."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writer.submit(Work(unit, args, kwargs, future, reclaims))
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
        if (checking := self._checking) is not None:
            with suppress(sqlite3.Error):
                checking.interrupt()  # nobody waits for it
        self._writer.stop()
        await asyncio.shield(self._writer.stopped)
        self._threads.shutdown(wait=False)
        await asyncio.to_thread(unmark_open, self.path)

    def partitions(self, count: int) -> AllPartitions:
        """Return all partitions: the file's lock keeps other processes out."""
        return AllPartitions(count)

    def foreign_commits(self) -> None:
        """Return None: nobody else writes."""

    def charge(self) -> Always:
        """Return the charge that this process always has."""
        return Always()

    def problem(self) -> str:
        """Return why writes are refused for want of room on the disk; empty where they are not."""
        return self._disk.problem()

    async def check(self) -> None:
        """Go on with the check that opening had no time for; ends at once where it had.

        It reads on a snapshot as any query does, and gives way to what has to be written.
        """
        for _ in range(CHECKS if self._unchecked else 0):
            try:
                found = await self.read(self._check)
            except StoreBusyError:
                if self._closing:
                    return
                continue
            except StoreError:
                return  # a damage is noted, and closing ends it
            if found != "ok":
                self._note_damage(DamagedError(f"the check of {self.path} fails: {found}"))
            self._unchecked = False
            return

    async def damaged(self) -> DamagedError:
        """Wait until the file is found to be damaged, and return how. Opening it again salvages it."""
        return await asyncio.shield(self._damage)

    # On other threads.

    def _check(self, tx: Transaction) -> str:
        self._checking = cast(SqliteTransaction, tx).connection
        try:
            return str(tx.execute("select * from pragma_quick_check(1)")[0]["quick_check"])
        finally:
            self._checking = None

    def _note_damage(self, error: DamagedError) -> None:
        def tell() -> None:
            if not self._damage.done():
                self._damage.set_result(error)

        note_damage(self.path, error.args[0])
        logger.error("store.damaged", extra={"path": str(self.path), "error": error.args[0]})
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(tell)

    def _create(self, opening: Opening) -> sqlite3.Connection:
        make_folder(self.path.parent)
        self._disk.prepare()
        try:
            return self._open(opening)
        except StoreError:
            if not self._disk.filled():
                raise
            return self._open(opening)

    def _open(self, opening: Opening) -> sqlite3.Connection:
        if opening.salvaging is not None:
            finish_salvage(self.path)
            examined = examine(self.path)
            self._unchecked = not examined.whole
            if examined.damage:
                salvage(self.path, opening.migrations, examined.damage, opening.salvaging)
        connection = open_writer(self.path, opening.max_bytes, opening.connect)
        try:
            migrate(connection, opening.migrations)
            if opening.salvaging is not None:
                mark_open(self.path)
        except BaseException:
            connection.close()
            raise
        return connection


class ReclaimingStore:
    """Implements ``forebay.transaction.Store`` for units that give room back, or that draining needs.

    They run while the disk is full too, in the room that the ballast has left. What they write must be little.
    """

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def write(self, unit: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(transaction, *args, **kwargs)``; see ``SqliteStore.write``."""
        return await self._store.submit(unit, args, kwargs, reclaims=True)

    async def read(self, query: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``query(transaction, *args, **kwargs)``; see ``SqliteStore.read``."""
        return await self._store.read(query, *args, **kwargs)


def _nothing(_: Transaction) -> None:
    """Write nothing."""
