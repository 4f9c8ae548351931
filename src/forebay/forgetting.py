"""Forgetting foreign ids while a consumer runs: they grow with the events, and few of them may be needed (rule I7)."""

from __future__ import annotations

from contextlib import suppress

import anyio
from anyio.abc import TaskStatus

from forebay.consumer import FOREIGN_KEPT, Consumer
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.positions import forget_foreign
from forebay.unit_of_work import UnitStore

INTERVAL = 3600.0
"""Seconds between looks; a consumer forgets when it begins, too, but may then run for months."""


class Forgetting:
    """Forgets what the stream has passed. Start it with ``run``.

    Args:
        consumer: whose ids they are.
        store: where they are.
        connection: to the broker, which says how far the stream is.
    """

    def __init__(self, consumer: Consumer, store: UnitStore, connection: Connection) -> None:
        self._consumer = consumer
        self._store = store
        self._connection = connection

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Forget now and then, until cancelled."""
        task_status.started()
        while True:
            await anyio.sleep(INTERVAL)
            with suppress(LinkError, TopologyError, StoreError):  # the next look does it
                state = await stream_state(self._connection, self._consumer.stream)
                if state.created == self._consumer.incarnation:
                    await self._store.write(forget_foreign, state.first, FOREIGN_KEPT)
