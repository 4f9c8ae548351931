"""The consumer of commands on a node: one durable, which the core made for this service when it registered the node.

A node may ask for its own durable and reset it, and see nothing else of the stream (rule S5): what shows that the
position of its database still stands is the message that is delivered there first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from forebay.command import Destination
from forebay.consumer import Consumer
from forebay.dispatching import STREAM
from forebay.errors import TopologyError
from forebay.handlers import Handlers
from forebay.jetstream.claims import check_claim
from forebay.jetstream.connection import Connection
from forebay.jetstream.pulling import Delivery as Pulled
from forebay.jetstream.pulling import Pull
from forebay.jetstream.streams import consumer_info
from forebay.jetstream.topology.checks import durable_problems
from forebay.jetstream.topology.nodes import INCARNATION, durable_of, node_spec
from forebay.parking import Whose
from forebay.partitions import AllPartitions
from forebay.positions import Position, positions_of
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

HEARTBEAT = 14.0
"""Seconds of silence on an open pull after which the broker says a word: a link that is paid by the byte is idle."""


class CommandConsumer(Consumer):
    """Takes the commands for one service of one node. Start it with ``run``; a node without a link waits for one."""

    def __init__(
        self,
        destination: Destination,
        handlers: Handlers,
        store: UnitStore,
        store_id: str,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.monotonic,
        whose: Whose | None = None,
    ) -> None:
        super().__init__(
            destination.service,
            handlers,
            store,
            store_id,
            connection,
            stream=STREAM,
            partitions=AllPartitions(1),
            clock=clock,
            whose=whose,
        )
        self._destination = destination
        self._expected: Position | None = None
        self._distrusted: Position | None = None

    def durable(self, partition: int) -> str:  # noqa: ARG002 - there is one
        """The name of the one durable."""
        return durable_of(self._destination)

    async def position_before(self, sequence: int) -> Position:  # noqa: ARG002 - nothing can be looked at
        """Return the beginning: a node may not look what stands where, and dedup does the rest."""
        return Position(self.incarnation or "", 0, "")

    async def _begin(self) -> None:
        durable = self.durable(0)
        info = await consumer_info(self._connection, self.stream, durable)
        if problems := durable_problems(info.config, node_spec(self._destination), None):
            raise TopologyError("; ".join(problems), hint="register the node anew: `forebay nodes add`")
        incarnation = info.metadata.get(INCARNATION)
        if incarnation is None:
            raise TopologyError(f"durable {durable} was not made by `forebay nodes add`", hint="register the node")
        check_claim(durable, info, self._store_id)
        self.incarnation = incarnation
        self._broken = None
        self.turns += 1
        self.committed.clear()
        await self._retries.look()
        position = (await self._store.read(positions_of, self.stream)).get(0)
        stands = position is not None and position.incarnation == incarnation and position != self._distrusted
        self._arrivals.clear(0)
        self._expected = position if stands and position is not None and position.sequence else None
        self.committed[0] = 0
        pull = Pull(
            self._connection,
            self.stream,
            durable,
            deliver=partial(self._deliver, 0),
            on_broken=partial(self._pull_broken, 0),
            heartbeat=HEARTBEAT,
        )
        self._pulls[0] = pull
        await pull.begin_at(self._expected.sequence if self._expected else 1)

    def _deliver(self, partition: int, pull: Pull, pulled: Pulled) -> None:
        if self._broken is not None:
            return  # what comes behind a command that should not stand there must not move the position past it
        expected, self._expected = self._expected, None
        if expected is None:
            super()._deliver(partition, pull, pulled)
        elif (pulled.stream_sequence, pulled.headers.get("Nats-Msg-Id", "")) == (
            expected.sequence,
            expected.message_id,
        ):
            self.committed[0] = expected.sequence  # it was committed already
            pull.consumed(1)
        else:
            self._distrusted = expected
            self._break(f"another command stands at {expected.sequence}: the stream is read from its beginning")
