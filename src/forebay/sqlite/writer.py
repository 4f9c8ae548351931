"""The one thread of a store that writes: it takes what waits, commits it as one group, and answers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any
from uuid import uuid4

from forebay.errors import OutcomeUnknownError, StoreClosedError, StoreError
from forebay.sqlite.connection import truncate_log
from forebay.sqlite.group import Group, Work
from forebay.sqlite.readers import Readers

GROUP_LIMIT = 64
"""Units of work that share one COMMIT at most."""
CLOSE_GRACE = 5.0
"""Seconds that queries may go on after the store was told to close; then they are interrupted."""

logger = logging.getLogger(__name__)


class Writer:
    """Commits units of work in the order in which they were submitted.

    It never waits for a group to fill: while one group is synced to disk the next one gathers, so a lone unit is
    answered at once and many share a sync. All answers of a group, and of groups that ended before the event loop came
    round, reach the loop in one call.

    After an uncertain COMMIT (rule O6) it closes every connection and opens anew, so that SQLite reads the log
    from disk, and writes again only once the log is checkpointed; each submitted unit begins another attempt.

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
    ) -> None:
        """Make a writer for the running event loop; nothing happens before ``start``.

        Args:
            create: opens the writing connection with the schema up to date; called once, on the writer's thread.
            reopen: opens it anew, without creating anything.
            readers: closed before a reopening, and at the end.
        """
        self._create = create
        self._open_again = reopen
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._answered: list[Work] = []
        self._committed = False
        self._scheduled = False
        self._listeners: dict[object, Callable[[], None]] = {}
        self._connection: sqlite3.Connection | None = None
        self.opening = ""
        self.uncertain = False
        self.stopped: asyncio.Future[None] = self._loop.create_future()

    async def start(self) -> None:
        """Open the database on a new thread. Raises what ``create`` raises."""
        opened: asyncio.Future[None] = self._loop.create_future()
        Thread(target=self._run, args=(opened,), name="forebay-sqlite-writer", daemon=True).start()
        try:
            await opened
        except BaseException:
            self.stop()
            await asyncio.shield(self.stopped)
            raise

    def submit(self, work: Work) -> None:
        """Queue ``work``; its future is resolved once its group has ended.

        Raises:
            StoreClosedError: ``stop`` was called, or the thread has died.
        """
        with self._lock:
            if self._closed:
                raise StoreClosedError("the store is closed")
            self._queue.put(work)

    def stop(self) -> None:
        """Take no more units; the thread ends after those that are queued."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after commits; return a function that ends it."""
        key = object()
        self._listeners[key] = callback
        return lambda: self._drop(key)

    def _drop(self, key: object) -> None:
        self._listeners.pop(key, None)

    # From here on: the writer's thread.

    def _run(self, opened: asyncio.Future[None]) -> None:
        works: list[Work] = []
        try:
            try:
                self._connection = self._create()
                self.opening = uuid4().hex
            except Exception as error:  # noqa: BLE001 - raised by start()
                self._call(_resolve, opened, error)
                return
            self._call(_resolve, opened, None)
            while works := self._take():
                self._commit(works)
        finally:
            self._end(works)

    def _take(self) -> list[Work]:
        """Wait for a unit and return it with those that wait behind it; nothing at the end."""
        first = self._queue.get()
        if first is None:
            return []
        works = [first]
        with suppress(Empty):
            while len(works) < GROUP_LIMIT:
                work = self._queue.get_nowait()
                if work is None:
                    self._queue.put(None)  # nothing can stand behind it
                    break
                works.append(work)
        return works

    def _commit(self, works: list[Work]) -> None:
        if self.uncertain:
            try:
                self._reopen()
            except StoreError as error:
                for work in works:
                    work.fail(_not_reopened(error))
                self._answer(works)
                return
        assert self._connection is not None  # noqa: S101
        verdict = Group(self._connection, self.opening).run(works)
        if verdict.broken is not None:
            self.uncertain = True
            logger.error("store.commit_failed", extra={"error": str(verdict.broken), "units": len(works)})
        self._answer(works, committed=verdict.committed)
        if self.uncertain:
            try:
                self._reopen()
            except StoreError as error:
                logger.error("store.reopen_failed", extra={"error": str(error)})  # noqa: TRY400 - tried again

    def _reopen(self) -> None:
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
        self.opening = uuid4().hex
        self.uncertain = False
        self._readers.resume()
        logger.warning("store.reopened", extra={"opening": self.opening})
        # What was uncertain may be there after all, and nobody was told.
        self._answer([], committed=True)

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _end(self, works: list[Work]) -> None:
        """Close everything and answer whoever still waits, also when a unit killed the thread."""
        with self._lock:
            self._closed = True
            while not self._queue.empty():
                if (work := self._queue.get()) is not None:
                    works.append(work)
        for work in works:
            died = OutcomeUnknownError if work.started else StoreClosedError
            work.fail(died("the store's thread was ended by a unit of work"))
        self._answer(works)
        self._readers.close(CLOSE_GRACE)
        self._close_connection()
        self._call(_resolve, self.stopped, None)

    def _answer(self, works: list[Work], *, committed: bool = False) -> None:
        """Hand ``works`` over to the event loop; the list is empty afterwards."""
        with self._lock:
            self._answered += works
            works.clear()
            self._committed |= committed
            if self._scheduled:
                return
            self._scheduled = True
        self._call(self._deliver)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(function, *args)

    # On the event loop.

    def _deliver(self) -> None:
        with self._lock:
            works, self._answered = self._answered, []
            committed, self._committed = self._committed, False
            self._scheduled = False
        for work in works:
            if work.future.done():
                continue
            if work.error is None:
                work.future.set_result(work.result)
            else:
                work.future.set_exception(work.error)
        for callback in list(self._listeners.values()) if committed else ():
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - reported; one listener must not keep the others from hearing
                self._loop.call_exception_handler({"message": "a listener of commits failed", "exception": error})


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _not_reopened(error: StoreError) -> StoreError:
    known = type(error)(f"the database was not reopened after a failed COMMIT: {error.args[0]}", hint=error.hint)
    known.__cause__ = error
    return known
