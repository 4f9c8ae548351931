"""forebay itself: ``forebay run`` on the edge and in the core as real processes, and one broker as the hub.

The broker's ``sync_interval`` is the default of the server, not the ``always`` of forebay's own configuration, so that
this column has no advantage there. Everything else is as it is shipped, but for ``ack_wait``: 2 s, as in the other
columns.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from bench.peers.pair import Event, messages
from tests.faults.system import System

NODE, CONSUMER, STREAM = "shop", "books", "EVENTS"
WRITE_TIMEOUT = 1.0
"""Seconds until a write without an answer is sent again."""


class ForebayPair:
    """One edge process, one broker, one core process; see ``Pair``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._system = System(folder, seed, nodes=(NODE,), consumers=(CONSUMER,), grace="24h", sync_interval="2m")
        self.edge_store = self._system.database(NODE, "meter").parent
        self.hub_store = self._system.broker_store
        self.effects = self._system.database("core", CONSUMER)
        self.effects_query = "select meter, number from effect order by position"
        self._http = httpx.AsyncClient(timeout=WRITE_TIMEOUT, trust_env=False)

    @property
    def edge_pid(self) -> int | None:
        """The edge process."""
        return self._system.edges[NODE].pid

    async def start(self) -> None:
        """Start everything, and return when a write can be accepted."""
        await self._system.__aenter__()

    async def close(self) -> None:
        """End everything."""
        await self._http.aclose()
        await self._system.__aexit__(None, None, None)

    async def write(self, event: Event) -> bool:
        """Post one reading to the edge."""
        reading = {"number": event.number, "meter": event.key, "lane": "ledger"}
        try:
            answer = await self._http.post(f"{self._system.edges[NODE].url}/meter/readings", json=[reading])
        except httpx.HTTPError:
            return False
        return answer.status_code == 201

    async def stop_edge(self) -> None:
        """End the edge process with SIGTERM."""
        await asyncio.to_thread(self._system.edges[NODE].stop)

    def kill_edge(self) -> None:
        """End the edge process with SIGKILL."""
        self._system.edges[NODE].kill()

    async def start_edge(self) -> None:
        """Start the edge process."""
        # Its memory of the database is written without system calls; after a power cut there is none.
        for file in self.edge_store.glob("*-shm"):
            file.unlink()
        self._system.edges[NODE].start()
        await self._system.edges[NODE].ready()

    async def stop_hub(self) -> None:
        """End the broker with SIGTERM."""
        await self._system.broker.stop()

    def kill_hub(self) -> None:
        """End the broker with SIGKILL."""
        self._system.broker.kill()

    async def start_hub(self) -> None:
        """Start the broker, and apply the topology where there is none."""
        await self._system.broker.start()
        if not any(self.hub_store.glob(f"jetstream/*/streams/{STREAM}")):
            await self._system.apply()

    async def stop_consumer(self) -> None:
        """End the core process with SIGTERM."""
        await asyncio.to_thread(self._system.core.stop)

    async def start_consumer(self) -> None:
        """Start the core process."""
        self._system.core.start()
        await self._system.core.ready()

    async def stored_at_hub(self) -> int:
        """How many messages the stream has."""
        return await messages(self._system.broker.url, STREAM)

    async def says_done(self) -> bool:
        """Never: it has what was acknowledged, or is waited for until the limit."""
        return False
