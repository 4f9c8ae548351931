"""Whether what waited in the stream when the link came up was read: until then a deadline may have passed in vain.

While a process, its link or the broker was away, answers went into the stream in time and nobody read them. A saga that
gave up before it has looked there would undo what was done as it should be.
"""

from __future__ import annotations

from forebay.consumer import Consumer
from forebay.errors import LinkError, TopologyError
from forebay.identity import PARTITIONS
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import StreamState, consumer_info, stream_state
from forebay.positions import positions_of
from forebay.unit_of_work import UnitStore


class CatchingUp:
    """Tells for one consumer how far it is, by whichever of its processes.

    Args:
        consumer: reads for the service.
        store: where its positions are.
        connection: to the broker.
    """

    def __init__(self, consumer: Consumer, store: UnitStore, connection: Connection) -> None:
        self._consumer = consumer
        self._store = store
        self._connection = connection
        self._caught_up_since = -1

    async def done(self) -> bool:
        """Whether all that the stream had when this connection came up was read; False while there is none.

        Raises:
            StoreError: the database failed.
        """
        if not self._connection.connected:
            return False
        generation = self._connection.generation
        if generation != self._caught_up_since:
            try:
                if not await self._has_read_all():
                    return False
            except (LinkError, TopologyError):
                return False
            self._caught_up_since = generation
        return True

    async def has_read(self, partition: int, state: StreamState) -> bool:
        """Whether what a stream has of a partition was read, by this process or another one.

        Raises:
            LinkError: the broker did not answer.
        """
        position = (await self._store.read(positions_of, self._consumer.stream)).get(partition)
        at = position.sequence if position is not None and position.incarnation == state.created else 0
        if at >= state.last:
            return True
        info = await consumer_info(self._connection, self._consumer.stream, f"{self._consumer.name}-{partition}")
        return info.pending == 0 and info.delivered <= at

    async def _has_read_all(self) -> bool:
        if not self._consumer.reading:
            return False
        state = await stream_state(self._connection, self._consumer.stream)
        for partition in range(PARTITIONS):
            if not await self.has_read(partition, state):
                return False
        return True
