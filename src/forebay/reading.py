"""The parts that a service needs to read the stream of events: its consumer, and what answers for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from forebay.answering import Answering
from forebay.archive_reading import ArchiveAnswering, ArchiveReader
from forebay.clock_offsets import ClockOffsets
from forebay.closing import Closing
from forebay.consumer import Consumer
from forebay.filling import Filling
from forebay.forgetting import Forgetting
from forebay.jetstream.connection import Connection
from forebay.needs import NeedsAnswering
from forebay.outbox import Outbox
from forebay.parking import Whose
from forebay.partitions import Partitions
from forebay.projection import InUse
from forebay.rebuilding import Beside, Rebuilding
from forebay.scripts import MigrationSet
from forebay.service import Service
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What reads events; ``archive`` answers for a service that keeps them all.

    Attributes:
        reader: asks the archive for what the consumer lacks.
    """

    consumer: Consumer
    reader: ArchiveReader
    answering: Answering
    filling: Filling
    needs: NeedsAnswering
    forgetting: Forgetting
    archive: ArchiveAnswering | None


def reading(
    declared: Service,
    store: UnitStore,
    store_id: str,
    connection: Connection,
    partitions: Partitions,
    whose: Whose | None,
) -> Reading:
    """Return what reads events for a service.

    Args:
        declared: what it does.
        store: where its inbox is.
        store_id: of the database.
        connection: to the broker.
        partitions: those that this process may read.
        whose: whose parked rows are its consumer's.
    """
    handlers = declared.handlers
    consumer = Consumer(declared.name, handlers, store, store_id, connection, whose=whose, partitions=partitions)
    reader = ArchiveReader(connection, declared.name)
    closing = Closing(consumer, handlers, store, reader)
    offsets = ClockOffsets(store) if declared.windows else None
    kept = declared.archive
    return Reading(
        consumer,
        reader,
        Answering(consumer, closing, store, store_id, connection, offsets),
        Filling(consumer, handlers, store, reader),
        NeedsAnswering(consumer, handlers.services, store, connection),
        Forgetting(consumer, store, connection),
        ArchiveAnswering(consumer, store, connection, kept, store_id) if kept is not None else None,
    )


def rebuilding(
    declared: Service,
    in_use: InUse,
    reads: Reading,
    store: UnitStore,
    beside: Beside,
    migrations: Sequence[MigrationSet],
    connection: Connection,
    outbox: Outbox,
    settings: Any,
) -> Rebuilding:
    """Return what rebuilds a service's read model, and tell where the one in use is of an older version."""
    if in_use.version < in_use.declared:
        extra = {"service": declared.name, "version": in_use.version, "declared": in_use.declared}
        logger.warning("projection.outdated", extra=extra)
    return Rebuilding(
        in_use.declared,
        reads.consumer,
        declared.handlers,
        store,
        beside,
        migrations,
        connection,
        outbox,
        reads.reader,
        settings,
    )
