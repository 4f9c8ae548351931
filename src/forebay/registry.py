"""The nodes that a core service sends to, as it has found them registered (rule S4).

The durables on the stream of commands are the registry. A stream that is lost takes them with it: then the services
that know a node make its durable again, and its commands are sent again. One that was removed stays removed.
"""

from __future__ import annotations

import logging
import time

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.command import Destination, parse_destination
from forebay.dispatching import CommandRelay
from forebay.dropping import drop_all
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.jetstream.connection import Connection
from forebay.jetstream.topology.registering import register
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0
"""Seconds between looks, in memory, whether the stream of commands is another one."""


class Registry:
    """Keeps the durables of one service's destinations. Start it with ``run``."""

    def __init__(self, store: UnitStore, connection: Connection, relay: CommandRelay) -> None:
        self._store = store
        self._connection = connection
        self._relay = relay
        self._seen: str | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Make durables again where their stream is a new one, until cancelled."""
        task_status.started()
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            await self._connection.wait_connected()
            incarnation = self._relay.incarnation
            if incarnation is not None and incarnation != self._seen:
                try:
                    await self.look()
                except (LinkError, TopologyError, StoreError) as error:
                    logger.warning("registry.waits", extra={"reason": str(error)})
                    await anyio.sleep(backoff.next())
                    continue
                self._seen = incarnation
                backoff.reset()
            await anyio.sleep(LOOK_INTERVAL)

    async def look(self) -> int:
        """Make the durables that are missing; return how many. Raises as ``register`` does."""
        made = 0
        for destination in await self._store.read(known):
            if await register(self._request, destination):
                made += 1
                logger.warning("node.registered_again", extra={"destination": str(destination)})
        return made

    async def _request(self, subject: str, body: bytes) -> bytes:
        return (await self._connection.request(subject, body, timeout=5)).body


def known(tx: Transaction) -> list[Destination]:
    """Return the destinations that were found registered and were not removed."""
    rows = tx.execute(
        "select node, service from forebay_destination where registered_at is not null and removed_at is null"
        " order by node, service"
    )
    return [Destination(row["node"], row["service"]) for row in rows]


def note_registered(tx: Transaction, destination: Destination) -> None:
    """Note that a destination is registered."""
    tx.execute(
        "insert into forebay_destination (node, service, registered_at) values (:node, :service, :now)"
        " on conflict (node, service) do update set registered_at = excluded.registered_at, removed_at = null,"
        " removed_why = null",
        node=destination.node,
        service=destination.service,
        now=_now(),
    )


def remove_node(work: UnitOfWork, node: str, why: str) -> int:
    """Drop, on record, what is here for a node that will not come back; return how many commands that were.

    Their places stay as dropped ranges, and are told to the node should it ever be registered again.
    """
    rows = work.execute("select id, destination from forebay_origin where destination <> '' order by id")
    count = 0
    for row in rows:
        destination = parse_destination(row["destination"])
        if destination.node != node:
            continue
        count += drop_all(work, row["id"])
        work.execute(
            "insert into forebay_destination (node, service, removed_at, removed_why)"
            " values (:node, :service, :now, :why)"
            " on conflict (node, service) do update set removed_at = excluded.removed_at,"
            " removed_why = excluded.removed_why",
            node=destination.node,
            service=destination.service,
            now=_now(),
            why=why,
        )
    return count


def _now() -> int:
    return time.time_ns() // 1_000_000
