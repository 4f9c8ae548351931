"""Hearing of what other processes have committed: LISTEN on a session of its own, idle while all is quiet.

A process that is not in charge says NOTIFY after its commits, in a transaction of its own: within the one that it tells
of it would make all commits of the server wait for one another. What is said while nobody listens, or not said because
a process died in between, is found by a look now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from zlib import crc32

import anyio
import psycopg
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.errors import StoreError
from forebay.postgres.address import Address
from forebay.postgres.failures import store_error
from forebay.postgres.session import Connection, connect

logger = logging.getLogger(__name__)

LOOK = 15.0
"""Seconds after which there may be something though nobody said so."""


def channel_of(schema: str) -> str:
    """Return the channel of a schema; should two share one, their processes would only look in vain."""
    return f"forebay_{crc32(schema.encode()):08x}"


class ForeignCommits:
    """Tells of commits of other processes while it runs. Start it with ``run``.

    Args:
        address: the database and the schema.
        wake: called on the event loop; it must be cheap.
    """

    def __init__(self, address: Address, wake: Callable[[], None]) -> None:
        self._address = address
        self._wake = wake

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; a session that is lost is opened again."""
        task_status.started()
        backoff = Backoff(first=0.2, most=LOOK)
        while True:
            try:
                async with self._listening() as heard:
                    backoff.reset()
                    while not heard.lost:
                        self._wake()  # at first, too: nobody listened until now
                        with anyio.move_on_after(LOOK):
                            await heard.something()
            except StoreError as error:
                logger.info("store.not_listening", extra={"database": str(self._address), "error": str(error)})
            self._wake()
            await anyio.sleep(backoff.next())

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[_Heard]:
        connection = await anyio.to_thread.run_sync(self._connect)
        loop, number = asyncio.get_running_loop(), connection.fileno()
        heard = _Heard(connection)
        loop.add_reader(number, heard.read)
        try:
            yield heard
        finally:
            loop.remove_reader(number)
            connection.close()

    def _connect(self) -> Connection:
        connection = connect(self._address, "listener")
        try:
            connection.execute(f"listen {channel_of(self._address.schema)}".encode())
        except psycopg.Error as error:
            connection.close()
            raise store_error(error, "LISTEN") from error
        return connection


class _Heard:
    """What arrives on a listening session.

    Attributes:
        lost: whether the session has ended.
    """

    def __init__(self, connection: Connection) -> None:
        self.lost = False
        self._session = connection.pgconn
        self._event = anyio.Event()

    def read(self) -> None:
        """Take what has arrived; called when there is something to read."""
        try:
            self._session.consume_input()
            while self._session.notifies() is not None:
                self._event.set()
        except psycopg.Error:
            self.lost = True
            self._event.set()

    async def something(self) -> None:
        """Wait for a notification, or for the end of the session."""
        await self._event.wait()
        self._event = anyio.Event()
