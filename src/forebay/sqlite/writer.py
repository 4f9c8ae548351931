"""The one thread of a store that writes: it takes what waits, commits it as one group, and answers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from uuid import uuid4

from forebay.crash_points import reach
from forebay.errors import StoreClosedError, StoreError, StoreFullError
from forebay.row_cache import RowCache
from forebay.sqlite.connection import truncate_log
from forebay.sqlite.disk import Disk
from forebay.sqlite.failures import DamagedError, mapped, store_error
from forebay.sqlite.group import Group
from forebay.sqlite.log import Log
from forebay.sqlite.readers import Readers
from forebay.sqlite.vacuum import KEPT, give_back
from forebay.work import Answers, Verdict, Work, WorkQueue, settle

CLOSE_GRACE = 5.0
"""Seconds that queries may go on after the store was told to close; then they are interrupted."""

logger = logging.getLogger(__name__)


class Writer:
    """Commits units of work in the order in which they were submitted.

    It never waits for a group to fill: while one group is synced to disk the next one gathers, so a lone unit is
    answered at once and many share a sync. A group begins no further unit after ``GROUP_TIME``, so that whoever wrote
    little does not wait for many who write much. All answers of a group, and of groups that ended before the event loop
    came round, reach the loop in one call.

    After an uncertain COMMIT (rule O6) it closes every connection and opens anew, so that SQLite reads the log
    from disk, and writes again only once the log is checkpointed; each submitted unit begins another attempt.

    On a full disk it gives the ballast up, moves the log into the database and goes on with the units that reclaim
    room; all others are refused until the ballast is back. Between groups it keeps the log short and, while nothing
    waits, gives free pages back to the disk.

    Attributes:
        opening: names the current opening of the database (32 hex digits).
        uncertain: whether the database has to be reopened before anything is read or written.
        stopped: done once the thread has closed its connection.
    """

    def __init__(
        self,
        create: Callable[[], sqlite3.Connection],
        reopen: Callable[[], sqlite3.Connection],
        readers: Readers,
        disk: Disk,
        log: Log,
        on_damage: Callable[[DamagedError], None],
    ) -> None:
        """Make a writer for the running event loop; nothing happens before ``start``.

        Args:
            create: opens the writing connection with the schema up to date; called once, on the writer's thread.
            reopen: opens it anew, without creating anything.
            readers: closed before a reopening, and at the end.
            disk: what is known of the disk below the database.
            log: the database's write-ahead log.
            on_damage: called, on the writer's thread, when the file turns out to be damaged.
        """
        self._create = create
        self._open_again = reopen
        self._readers = readers
        self._disk = disk
        self._log = log
        self._on_damage = on_damage
        self._untidy = True
        self._answers = Answers()
        self._queue = WorkQueue()
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Work] = []
        self._rest: list[Work] = []
        self._connection: sqlite3.Connection | None = None
        self._row_cache: RowCache | None = None
        self.opening = ""
        self.uncertain = False
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Open the database on a new thread. Raises what ``create`` raises."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        Thread(target=self._run, args=(opened,), name="forebay-sqlite-writer", daemon=True).start()
        try:
            await opened
        except BaseException:
            self.stop()
            await asyncio.shield(self.stopped)
            raise

    def submit(self, work: Work) -> None:
        """Queue ``work``; its future is resolved once its group has ended. From the event loop.

        What one round of the event loop submits is handed over together: a thread that is woken for the first unit of
        many wants the interpreter while the others are being made.

        Raises:
            StoreClosedError: ``stop`` was called, or the thread has died.
        """
        if self._queue.closed:
            raise StoreClosedError("the store is closed")
        self._gathered.append(work)
        if len(self._gathered) == 1:
            self._loop.call_soon(self._hand_over)

    def stop(self) -> None:
        """Take no more units; the thread ends after those that are queued."""
        self._hand_over()
        self._queue.stop()

    def _hand_over(self) -> None:
        works, self._gathered = self._gathered, []
        try:
            self._queue.submit(*works)
        except StoreClosedError as error:  # the thread has died meanwhile
            for work in works:
                work.fail(StoreClosedError(error.args[0]))
            self._answers.give(works)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after commits; return a function that ends it."""
        return self._answers.listen(callback)

    # From here on: the writer's thread.

    def _run(self, opened: asyncio.Future[None]) -> None:
        works: list[Work] = []
        try:
            try:
                self._connection = self._create()
                self._row_cache = cache_of(self._connection)
                self._prepare_log()
                self.opening = uuid4().hex
            except Exception as error:  # noqa: BLE001 - raised by start()
                self._answers.call(settle, opened, error)
                return
            self._answers.call(settle, opened, None)
            while works := self._rest or self._queue.take() or []:
                self._rest = []
                self._commit(works)
                while self._untidy and not self._rest and self._queue.empty():
                    self._tidy()
        finally:
            self._end(works)

    def _commit(self, works: list[Work]) -> None:
        if self.uncertain:
            try:
                self._reopen()
            except StoreError as error:
                for work in works:
                    work.fail(_not_reopened(error))
                self._answers.give(works)
                return
        works = self._admitted(works)
        if not works:
            return
        verdict = self._run_group(works)
        if verdict.broken is not None:
            self.uncertain = True
            logger.error("store.commit_failed", extra={"error": str(verdict.broken), "units": len(works)})
        self._answers.give(works, committed=verdict.committed)
        reach("write.answered")
        if not self.uncertain and self._connection is not None:
            self._log.bound(self._connection)
        if self.uncertain:
            try:
                self._reopen()
            except StoreError as error:
                logger.error("store.reopen_failed", extra={"error": str(error)})  # noqa: TRY400 - tried again

    def _admitted(self, works: list[Work]) -> list[Work]:
        """Refuse what may not be written now, and return the rest."""
        assert self._connection is not None  # noqa: S101
        stands = self._log.refusal(self._connection)
        full = self._disk.refusal()
        if stands is None and full is None:
            return works
        admitted, refused = [], []
        for work in works:
            error = stands or (None if work.reclaims else full)
            if error is None:
                admitted.append(work)
            else:
                work.fail(type(error)(error.args[0], hint=error.hint))
                refused.append(work)
        self._answers.give(refused)
        return admitted

    def _run_group(self, works: list[Work]) -> Verdict:
        """Run a group; what reclaims room runs again once the ballast has made some."""
        assert self._connection is not None  # noqa: S101
        group = Group(self._connection, self.opening, self._row_cache)
        verdict = group.run(works)
        self._rest = group.rest
        works[:] = [work for work in works if work not in self._rest] if self._rest else works
        self._untidy = True
        if any(isinstance(work.error, StoreFullError) for work in works) and self._disk.filled():
            self._log.restart(self._connection)
            again = [work for work in works if work.reclaims and isinstance(work.error, StoreFullError)]
            if again and verdict.broken is None:
                group = Group(self._connection, self.opening, self._row_cache)
                second = group.run(again)
                verdict = Verdict(verdict.committed or second.committed, second.broken)
                if group.rest:
                    self._rest = group.rest + self._rest
                    works[:] = [work for work in works if work not in group.rest]
        for work in works:
            if isinstance(work.error, DamagedError):
                self._on_damage(work.error)
        return verdict

    def _tidy(self) -> None:
        """Give some free pages back to the disk."""
        self._untidy = False
        if self._connection is None or self.uncertain:
            return
        try:
            self._untidy = give_back(self._connection, keep=0 if self._disk.full else KEPT)
            if self._disk.full and not self._untidy:
                self._log.restart(self._connection)  # only then the file becomes shorter
        except sqlite3.Error as error:
            if isinstance(known := mapped(error), DamagedError):
                self._on_damage(known)
            elif isinstance(known, StoreFullError):
                self._disk.filled()
            else:
                logger.warning("store.checkpoint_failed", extra={"error": str(error)})

    def _reopen(self) -> None:
        """Close all connections and open the database anew; where the disk is full, once more without the ballast.

        Raises:
            StoreError: a query does not end, or the database cannot be opened or checkpointed.
        """
        try:
            self._reopen_once()
        except StoreError as error:
            if isinstance(error, DamagedError):
                self._on_damage(error)
            if self._disk.full or not self._disk.filled():
                raise
            self._reopen_once()

    def _reopen_once(self) -> None:
        """Close all connections and open the database anew.

        Raises:
            StoreError: a query does not end, or the database cannot be opened or checkpointed.
        """
        if not self._readers.pause():
            raise StoreError("a query does not end")
        self._close_connection()
        connection = self._open_again()
        try:
            truncate_log(connection)
        except StoreError:
            connection.close()
            raise
        self._connection = connection
        self._row_cache = cache_of(connection)
        self._prepare_log()
        self.opening = uuid4().hex
        self.uncertain = False
        self._readers.resume()
        logger.warning("store.reopened", extra={"opening": self.opening})
        # What was uncertain may be there after all, and nobody was told.
        self._answers.give([], committed=True)

    def _prepare_log(self) -> None:
        if self._disk.has_ballast:
            self._log.allocate()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _end(self, works: list[Work]) -> None:
        """Close everything and answer whoever still waits, also when a unit killed the thread."""
        works += self._rest
        self._queue.end(works)
        self._answers.give(works)
        self._readers.close(CLOSE_GRACE)
        self._close_connection()
        self._answers.call(settle, self.stopped, None)


def cache_of(connection: sqlite3.Connection) -> RowCache:
    """Return what a writing connection knows of rows: nothing as yet."""

    def foreign_commits() -> int:
        try:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise store_error(error, "PRAGMA data_version") from error

    return RowCache(foreign_commits)


def _not_reopened(error: StoreError) -> StoreError:
    known = type(error)(f"the database was not reopened after a failed COMMIT: {error.args[0]}", hint=error.hint)
    known.__cause__ = error
    return known
