"""Rebuilding a read model from the archive beside the one in use, and replacing its rows in one transaction (rule F3).

The process that serves it does it, in small steps with pauses, so that one process writes a database. What is replayed
is what the serving inbox has passed with effect: in the archive's own order, which is nearly the order in which it
happened over all origins, and by place what the archive does not have in that order. A pass follows the other until
little is new; then the consumer holds still for a moment, the last difference is replayed, and the rows are replaced.

Killed at any line it goes on where it was: effect and progress are in the same transactions of the tables beside, and
the tables in use know of it only by the transaction that replaces their rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
from anyio.abc import TaskStatus

from forebay.archive_reading import ArchiveReader
from forebay.backoff import Backoff
from forebay.building import Building, GivenUpError, StandsError
from forebay.catching_up import CatchingUp
from forebay.consumer import Consumer
from forebay.crash_points import reach
from forebay.errors import ConfigurationError, LinkError, StoreError, TopologyError
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.outbox import Outbox
from forebay.projection import FAILED, LACKING, RUNNING, Lacking, Rebuild, asked, effects, finish, stand
from forebay.replaying import progress
from forebay.scripts import MigrationSet
from forebay.stores import ServiceStore
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between looks whether a rebuild was asked for or given up."""

SMALL = 500
"""Places that one pass may leave for the moment in which the consumer holds still."""

STILL = 10.0
"""Seconds for which it holds still at most, before its rows are replaced; then it goes on, and another pass begins."""

CLOCKS = 5 * 60
"""Seconds by which this clock and the archive's may differ."""


class Beside(Protocol):
    """The tables beside those in use, wherever they are: a file, or a schema."""

    def check(self, tx: Transaction) -> None:
        """Refuse tables in use whose rows cannot be replaced. Raises ``ConfigurationError``."""

    async def open(self, migrations: Sequence[MigrationSet]) -> ServiceStore:
        """Open the tables, made where they are missing. Raises ``StoreError``."""
        ...

    async def remove(self) -> None:
        """Remove the tables, if there are any. Raises ``StoreError``."""

    async def close(self) -> None:
        """Let another process have them; the store that ``open`` returned is closed."""

    def replace(self, tx: Transaction) -> int:
        """Replace the rows of the tables in use by theirs; return how many there are now."""
        ...


class Rebuilding:
    """Rebuilds the read model of one service when that is asked for. Start it with ``run``.

    Args:
        version: of the read model that this release's handlers make.
        consumer: reads for the service.
        handlers: the service's.
        store: the tables in use.
        tables: those beside.
        migrations: which make the tables.
        connection: to the broker.
        outbox: the service's: it has no lanes, so that whatever emits fails.
        archive: what it reads.
        settings: the service's own.
    """

    def __init__(
        self,
        version: int,
        consumer: Consumer,
        handlers: Handlers,
        store: UnitStore,
        tables: Beside,
        migrations: Sequence[MigrationSet],
        connection: Connection,
        outbox: Outbox,
        archive: ArchiveReader,
        settings: Any = None,
    ) -> None:
        self._version = version
        self._consumer = consumer
        self._handlers = handlers
        self._store = store
        self._tables = tables
        self._migrations = migrations
        self._connection = connection
        self._outbox = outbox
        self._archive = archive
        self._settings = settings
        self._lacking: list[Lacking] = []
        self._clean = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look for what was asked, and do it, until cancelled."""
        task_status.started()
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            wait = INTERVAL
            try:
                rebuild = await self._store.read(asked)
                if rebuild is None and not self._clean:
                    await self._tables.remove()
                self._clean = rebuild is None
                if rebuild is not None and rebuild.state == RUNNING:
                    await self._attempt(rebuild)
                    backoff.reset()
            except (LinkError, TopologyError, StoreError, TimeoutError) as error:
                logger.warning("rebuild.paused", extra={"consumer": self._consumer.name, "reason": str(error)})
                wait = backoff.next()
            await anyio.sleep(wait)

    async def _attempt(self, rebuild: Rebuild) -> None:
        try:
            await self.rebuild(rebuild)
        except GivenUpError:
            logger.warning("rebuild.stopped", extra={"consumer": self._consumer.name})
        except StandsError as error:
            state = LACKING if self._lacking else FAILED
            await self._store.write(stand, rebuild, state, str(error), self._lacking)
            extra = {"consumer": self._consumer.name, "reason": str(error)}
            logger.error("rebuild.failed", extra=extra)  # noqa: TRY400 - told to who asked, it is no bug

    async def rebuild(self, rebuild: Rebuild) -> None:
        """Build the tables beside, from where they are, and replace the rows of those in use.

        Raises:
            StandsError: an event cannot be replayed, events are lacking, or the tables cannot be replaced.
            LinkError, TopologyError, StoreError: it can go on later.
        """
        self._lacking = []
        seen_before = await self._caught_up()
        beside = await self._open(rebuild)
        try:
            units = UnitStore(beside, self._outbox, self._settings)
            building = Building(rebuild, self._handlers, self._consumer, self._store, units, self._archive)
            known = await building.begun(self._version, seen_before)
            logger.info(
                "rebuild.begun",
                extra={"consumer": self._consumer.name, "version": self._version, "replayed": known.replayed},
            )
            reach("rebuild.begun")
            while await building.run_pass(still=False) > SMALL:
                pass
            async with self._consumer.still():
                with anyio.fail_after(STILL):
                    await _last_pass(building)
                lacking = self._lacking = building.lacking
                if lacking and not rebuild.accept_lacking:
                    raise StandsError(_told(lacking))
                await beside.close()
                with anyio.CancelScope(shield=True):
                    rows = await self._store.write(self._swap, rebuild, building)
        finally:
            with anyio.CancelScope(shield=True):
                await beside.close()
                await self._tables.close()
        reach("rebuild.swapped")
        await self._tables.remove()
        extra = {"consumer": self._consumer.name, "version": self._version, "replayed": building.replayed, "rows": rows}
        logger.info("rebuild.swapped", extra=extra)

    def _swap(self, work: UnitOfWork, rebuild: Rebuild, building: Building) -> int:
        if not finish(work, rebuild, self._version, building.replayed, building.lacking):
            raise GivenUpError("the rebuild was given up")
        if sorted(effects(work)) != sorted(building.effects):  # another process reads for the service as well
            raise LinkError("something took effect during the last pass")
        reach("rebuild.swapping")
        rows = self._tables.replace(work)
        reach("rebuild.replaced")
        return rows

    async def _caught_up(self) -> int:
        """Wait until the consumer has read what is in the stream: foreign events of before were met then (I7).

        Returns:
            Milliseconds since 1970: what was archived before was in the stream.
        """
        seen_before = int((time.time() - CLOCKS) * 1000)
        while not self._consumer.reading:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(INTERVAL)
        state = await stream_state(self._connection, self._consumer.stream)
        catching_up = CatchingUp(self._consumer, self._store, self._connection)
        for partition in range(PARTITIONS):
            while not await catching_up.has_read(partition, state):  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(INTERVAL)
        return seen_before

    async def _open(self, rebuild: Rebuild) -> ServiceStore:
        try:
            await self._store.read(self._tables.check)
        except ConfigurationError as error:
            raise StandsError(str(error)) from error
        beside = await self._tables.open(self._migrations)
        known = await beside.read(progress)
        if known is None or (known.id, known.version) == (rebuild.id, self._version):
            return beside
        await beside.close()
        await self._tables.remove()
        return await self._tables.open(self._migrations)


async def _last_pass(building: Building) -> None:
    """Run the pass in which nothing takes effect; an archive that is not as far yet is waited for."""
    while True:
        try:
            await building.run_pass(still=True)
        except LinkError:
            await anyio.sleep(0.05)
        else:
            return


def _told(lacking: Sequence[Lacking]) -> str:
    events = sum(each.last - each.first + 1 for each in lacking)
    where = ", ".join(f"{'/'.join(each.origin[:3])} {each.epoch} {each.first}-{each.last}" for each in lacking[:3])
    more = f" and {len(lacking) - 3} more ranges" if len(lacking) > 3 else ""
    return (
        f"{events} events that had an effect are not in the archive: {where}{more}; the tables in use stay."
        " `--accept-lacking` goes on without them"
    )
