"""The partitions of one consumer, shared by the processes that have its schema open."""

from __future__ import annotations

import logging

from forebay.partitions import NotTheReaderError, Shares
from forebay.postgres.locks import SessionLocks
from forebay.postgres.session import Connection
from forebay.postgres.writer import Writer
from forebay.protocol.shares import next_move

logger = logging.getLogger(__name__)


class SharedPartitions:
    """Implements ``forebay.partitions.Partitions`` by locks of the writing session.

    What is held belongs to one session: another one begins with nothing, and until the next look every unit of work
    that needs a partition is refused. What is held is known on the writer's thread, where units ask for it.
    """

    shared = True

    def __init__(self, writer: Writer, schema: str, count: int) -> None:
        self._writer = writer
        self._schema = schema
        self._count = count
        self._locks = SessionLocks(schema)
        self._held: frozenset[int] = frozenset()
        self._joined = False
        writer.on_session.append(self._forget)

    async def look(self) -> Shares:
        """Take what is free and due to this process; return what it holds, and how much of it is too much.

        Raises:
            StoreError: the database is away.
        """
        return await self._writer.beside(self._look)

    async def release(self, partitions: frozenset[int]) -> None:
        """Give partitions up. Raises ``StoreError``."""

        def give(connection: Connection) -> None:
            for partition in partitions & self._held:
                self._locks.give(connection, partition)
                self._held -= {partition}

        await self._writer.beside(give)

    def require(self, partition: int) -> None:
        """Refuse a unit of work on a partition that this session does not hold. On the writer's thread.

        Raises:
            NotTheReaderError: it is not held.
        """
        if partition not in self._held:
            raise NotTheReaderError(f"partition {partition} of {self._schema} is not this process's to read")

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return in SQL, with its parameters, which rows are this process's."""
        held = ", ".join(map(str, sorted(self._held)))
        return (f"partition in ({held})", {}) if held else ("1 = 0", {})

    # On the writer's thread.

    def _forget(self, _: Connection) -> None:
        self._held = frozenset()
        self._joined = False

    def _look(self, connection: Connection) -> Shares:
        if not self._joined:
            self._locks.join(connection)
            self._joined = True
        me = connection.info.backend_pid
        move = next_move(me, self._locks.held(connection), self._count)
        taken = frozenset(each for each in move.take if self._locks.take(connection, each))
        if taken:
            self._held |= taken
            logger.info("consumer.partitions_taken", extra={"consumer": self._schema, "partitions": sorted(taken)})
        return Shares(self._held, move.give)


class Charge:
    """What only one process does for a schema: sending its events, asking who has them, firing its timers."""

    def __init__(self, writer: Writer, schema: str) -> None:
        self._writer = writer
        self._schema = schema
        self._locks = SessionLocks(schema)
        self._held = False
        writer.on_session.append(self._forget)

    async def has(self) -> bool:
        """Whether this process has it, after an attempt to take it. Raises ``StoreError``."""
        return await self._writer.beside(self._take)

    def require(self) -> None:
        """Refuse a unit of work where this session does not have it. On the writer's thread.

        Raises:
            NotTheReaderError: it does not.
        """
        if not self._held:
            raise NotTheReaderError(f"another process sends the events of {self._schema}")

    def _forget(self, _: Connection) -> None:
        self._held = self._writer.in_charge = False

    def _take(self, connection: Connection) -> bool:
        self._held = self._writer.in_charge = self._held or self._locks.take_charge(connection)
        return self._held
