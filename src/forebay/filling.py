"""Filling from the archive what nobody was asked for: where a consumer begins, and holes that stay open (B4, C5).

A consumer that is added later begins with the archive, up to the archive's watermarks: it would wait for the floors of
nodes that are away. Both happen beside the reading; the inbox keeps the order, and knows what comes twice.
"""

from __future__ import annotations

import logging
import time

import anyio
from anyio.abc import TaskStatus

from forebay.archive_reading import ArchiveReader
from forebay.closing import close_deleted, delivery_of, take_aside
from forebay.consumer import Consumer
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.gaps import holes
from forebay.handlers import ALL, Handlers
from forebay.identity import PARTITIONS, Origin, partition_of
from forebay.sequences import Range
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between looks for open holes."""


class Filling:
    """Fills one consumer from the archive. Start it with ``run``."""

    def __init__(self, consumer: Consumer, handlers: Handlers, store: UnitStore, archive: ArchiveReader) -> None:
        self._consumer = consumer
        self._handlers = handlers
        self._store = store
        self._archive = archive
        self.holes = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Fill until cancelled."""
        task_status.started()
        while True:
            if self._consumer.reading:
                try:
                    await self.begin()
                    await self.fill_holes()
                except (LinkError, TopologyError, StoreError) as error:
                    logger.info("consumer.filling_waits", extra={"consumer": self._consumer.name, "reason": str(error)})
            await anyio.sleep(INTERVAL)

    async def begin(self) -> None:
        """Take in everything that the archive has, once in the store's life.

        Raises:
            LinkError: the archive did not answer.
            StoreError: the database failed.
        """
        mine = self._consumer.partitions
        begun = await self._store.read(_begun)
        if set(mine) <= begun or not await self._archive.is_there():
            return
        services = self._handlers.services
        async for page in self._archive.epochs():
            for each in page:
                partition = partition_of(each.node, PARTITIONS)
                if partition in mine and partition not in begun and (each.service in services or services == [ALL]):
                    origin = Origin(each.node, each.service, each.lane)
                    await self._fill(origin, each.epoch, 1, each.watermark)
        await self._store.write(_note_begun, mine)
        logger.info("consumer.begun_with_archive", extra={"consumer": self._consumer.name})

    async def fill_holes(self) -> None:
        """Ask the archive for what is open; what it lacks stays open. Raises as ``begin`` does."""
        found = await self._store.read(holes)
        if len(found) != self.holes:
            self.holes = len(found)
            logger.warning("consumer.holes_seen", extra={"consumer": self._consumer.name, "holes": self.holes})
        for hole in found:
            if not self._consumer.reads(partition_of(hole.node, PARTITIONS)):
                continue
            origin = Origin(hole.node, hole.service, hole.lane)
            deleted = await self._fill(origin, hole.epoch, hole.first, hole.last)
            # What the stream still has comes from there, after the archive has deleted it, too.
            partition = partition_of(hole.node, PARTITIONS)
            if deleted and await self._consumer.at_end(partition):
                taken = await self._consumer.settle(
                    close_deleted, self._handlers, origin, hole.epoch, deleted, partition=partition
                )
                extra = {"consumer": self._consumer.name, "origin": "/".join(origin[:3]), "events": taken.missing}
                logger.error("consumer.gaps_recorded", extra=extra)

    async def _fill(self, origin: Origin, epoch: str, first: int, last: int) -> list[Range]:
        """Take in what the archive has; return what it had and has deleted."""
        deleted: list[Range] = []
        known = await self._store.read(_watermark, origin, epoch)
        partition = partition_of(origin.node, PARTITIONS)
        async for events in self._archive.events(
            origin, epoch, max(first, known + 1), last, upto=0, on_deleted=deleted.extend
        ):
            self._consumer.only_while_not_suspended()
            found = [delivery_of(partition, each) for each in events]
            await self._consumer.settle(take_aside, self._handlers, found, partition=partition)
        return deleted


def _watermark(tx: Transaction, origin: Origin, epoch: str) -> int:
    rows = tx.execute(
        "select watermark from forebay_inbox where node = :node and service = :service and epoch = :epoch",
        node=origin.node,
        service=origin.service,
        epoch=epoch,
    )
    return int(rows[0]["watermark"]) if rows else 0


def has_begun(tx: Transaction) -> bool:
    """Whether a consumer has taken in what the archive had when it was new."""
    return len(_begun(tx)) == PARTITIONS


def _begun(tx: Transaction) -> set[int]:
    """Return the partitions that have begun with the archive."""
    if tx.execute("select archive_taken_at from forebay_store")[0]["archive_taken_at"] is not None:
        return set(range(PARTITIONS))
    return {row["partition"] for row in tx.execute("select partition from forebay_archive_taken")}


def _note_begun(tx: Transaction, partitions: list[int]) -> None:
    now = time.time_ns() // 1_000_000
    if len(partitions) == PARTITIONS:
        tx.execute("update forebay_store set archive_taken_at = :now", now=now)
        return
    tx.executemany(
        "insert into forebay_archive_taken (partition, taken_at) values (:partition, :now) on conflict do nothing",
        [{"partition": partition, "now": now} for partition in partitions],
    )
