"""The one thread of a store that writes: it takes what waits, commits it as one group, and answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar
from uuid import uuid4

import psycopg

from forebay.backoff import Backoff
from forebay.crash_points import reach
from forebay.errors import ForebayError, StoreError
from forebay.postgres.address import Address
from forebay.postgres.failures import store_error
from forebay.postgres.foreign import channel_of
from forebay.postgres.group import Group
from forebay.postgres.readers import Readers
from forebay.postgres.session import WRITER, Backend, Connection, check, connect, end_backend, end_frozen
from forebay.work import Answers, Work, WorkQueue, settle

T = TypeVar("T")

TICK = 1.0
"""Seconds between looks after the session while nothing is written."""

TELL_EVERY = 0.02
"""Seconds between two words to the process in charge about what was committed here, at least."""

TURNS = 0.5
"""Seconds after a collision for which every group waits for its turn."""

LONGEST_PAUSE = 2.0
"""Seconds between attempts to connect again, at most: what waits should go on soon after the database is back."""

CLOSE_GRACE = 5.0
"""Seconds that queries may go on after the store was told to close; then they are interrupted."""

logger = logging.getLogger(__name__)


class Writer:
    """Commits units of work in the order in which they were submitted, on a session of its own.

    It never waits for a group to fill: while one group is synced to disk the next one gathers.

    Once the session is lost it connects again, with pauses, and refuses what is submitted meanwhile. Before it goes on
    it sees to it that the lost session is gone: a COMMIT whose answer was lost may be under way there (rule O6). Each
    new session is an opening: the next event takes a new epoch (I2).

    Attributes:
        backend: the server's process behind the session.
        problem: why nothing can be written now; empty while it can.
        uncertain: whether a COMMIT may be under way on a session that was lost.
        collisions: transactions that were run again because they collided with another process's.
        in_charge: whether this process looks after what is committed; else it tells the one that does.
        stopped: done once the thread has closed its session.
    """

    def __init__(self, address: Address, readers: Readers, prepare: Callable[[Connection], None]) -> None:
        """Make a writer for the running event loop; nothing happens before ``start``.

        Args:
            address: the database and the schema.
            readers: closed at the end.
            prepare: brings the schema up to date on the first session, on the writer's thread.
        """
        self._address = address
        self._readers = readers
        self._prepare = prepare
        self._answers = Answers()
        self._queue = WorkQueue()
        self._connection: Connection | None = None
        self._backoff = Backoff(first=0.2, most=LONGEST_PAUSE)
        self._connect_at = 0.0
        self._in_turn_until = 0.0
        self._looked_at = 0.0
        self._untold = False
        self._told_at = 0.0
        self.in_charge = False
        self.on_session: list[Callable[[Connection], None]] = []
        self.backend: Backend | None = None
        self.problem = ""
        self.uncertain = False
        self.collisions = 0
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Open the session on a new thread. Raises what opening it raises."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        Thread(target=self._run, args=(opened,), name="forebay-postgres-writer", daemon=True).start()
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
        self._queue.submit(work)

    async def beside(self, task: Callable[[Connection], T]) -> T:
        """Run ``task`` with the session on the writer's thread, between two groups, outside a transaction.

        Raises:
            StoreError: there is no session, or the database failed; what the task did may be done.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(Work(task, (), {}, future, beside=True))
        return await future

    def stop(self) -> None:
        """Take no more units; the thread ends after those that are queued."""
        self._queue.stop()

    def committed_elsewhere(self) -> None:
        """Let those who listen know that another process has committed something."""
        self._answers.give([], committed=True)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after commits; return a function that ends it."""
        return self._answers.listen(callback)

    # From here on: the writer's thread.

    def _run(self, opened: asyncio.Future[None]) -> None:
        works: list[Work] | None = None
        try:
            try:
                self._open(self._prepare)
            except Exception as error:  # noqa: BLE001 - raised by start()
                self._answers.call(settle, opened, error)
                return
            self._answers.call(settle, opened, None)
            while (works := self._queue.take(self._idle_time())) is not None:
                self._run_all(works)
                self._tell()
                if self._looked_at + TICK <= time.monotonic():
                    self._look()
        finally:
            self._end(works or [])

    def _idle_time(self) -> float:
        """Return the seconds after which there is something to do though nothing is written."""
        due = self._looked_at + TICK
        if self._untold and self._connection is not None:
            due = min(due, self._told_at + TELL_EVERY)
        return max(0.0, due - time.monotonic())

    def _tell(self) -> None:
        """Tell the process in charge that something was committed here."""
        if not self._untold or self._connection is None or time.monotonic() < self._told_at + TELL_EVERY:
            return
        try:
            self._connection.execute("select pg_notify($1, '')", [channel_of(self._address.schema)])
        except psycopg.Error as error:
            self._lose(error)
        self._untold, self._told_at = False, time.monotonic()

    def _run_all(self, works: list[Work]) -> None:
        """Run groups, and what is to run beside them, in their order."""
        while works:
            if works[0].beside:
                self._run_beside(works.pop(0))
            else:
                end = next((at for at, work in enumerate(works) if work.beside), len(works))
                group, works[:] = works[:end], works[end:]
                self._commit(group)

    def _run_beside(self, work: Work) -> None:
        connection = self._connection or self._reopened()
        if connection is None:
            work.fail(StoreError(self.problem))
        elif not work.abandoned:
            work.started = True
            try:
                work.result = work.unit(connection)
            except psycopg.Error as error:
                work.fail(store_error(error, "looking after the session's locks"))
                self._lose(error)  # what it holds is not known for sure any more
            except Exception as error:  # noqa: BLE001 - it is the caller's, and raised there
                work.fail(error)
        self._answers.give([work])

    def _commit(self, works: list[Work]) -> None:
        connection = self._connection or self._reopened()
        if connection is None:
            reason = self.problem
            for work in works:
                work.fail(StoreError(reason))
            self._answers.give(works)
            return
        # Who collided a moment ago will again: it waits for its turn at once.
        group = Group(connection, in_turn=time.monotonic() < self._in_turn_until)
        verdict = group.run(works)
        if group.collisions:
            self.collisions += group.collisions
            self._in_turn_until = time.monotonic() + TURNS
        if verdict.broken is not None:
            self.uncertain = True
            self._lose(verdict.broken)
        self._untold |= verdict.committed and not self.in_charge
        self._answers.give(works, committed=verdict.committed)
        reach("write.answered")

    def _look(self) -> None:
        """Look whether the session still lives, and open another where it does not; end those of frozen processes."""
        self._looked_at = time.monotonic()
        if self._connection is None:
            self._reopened()
            return
        try:
            end_frozen(self._connection, self._address)
        except psycopg.Error as error:
            self._lose(error)
            self._reopened()

    def _lose(self, error: Exception) -> None:
        self.problem = f"the connection to the database is lost: {store_error(error, 'the session').args[0]}"
        logger.error("store.session_lost", extra={"database": str(self._address), "error": self.problem})
        self._close_connection()

    def _reopened(self) -> Connection | None:
        """Open another session if it is time to try that; return None where there is none."""
        if time.monotonic() < self._connect_at:
            return None
        try:
            connection = self._open(None)
        except (ForebayError, psycopg.Error) as error:
            self.problem = str(error)
            self._connect_at = time.monotonic() + self._backoff.next()
            logger.warning("store.session_refused", extra={"database": str(self._address), "error": self.problem})
            return None
        self._backoff.reset()
        logger.warning(
            "store.session_opened", extra={"database": str(self._address), "pid": connection.info.backend_pid}
        )
        # What was uncertain may be there after all, and nobody was told.
        self._answers.give([], committed=True)
        return connection

    def _open(self, prepare: Callable[[Connection], None] | None) -> Connection:
        connection = connect(self._address, WRITER)
        try:
            backend = check(connection, self._address)
            if self.backend is not None:
                end_backend(connection, self.backend)
            if prepare is not None:
                prepare(connection)
            connection.execute("update forebay_opening set opening = $1", [uuid4().hex])
            for callback in self.on_session:
                callback(connection)
        except psycopg.Error as error:
            connection.close()
            raise store_error(error, f"opening {self._address}") from error
        except BaseException:
            connection.close()
            raise
        self.backend, self._connection = backend, connection
        self.problem, self.uncertain = "", False
        self._looked_at = time.monotonic()
        return connection

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _end(self, works: list[Work]) -> None:
        """Close everything and answer whoever still waits, also when a unit killed the thread."""
        self._queue.end(works)
        self._answers.give(works)
        self._readers.close(CLOSE_GRACE)
        self._close_connection()
        self._answers.call(settle, self.stopped, None)
