"""A leaf node with JetStream of its own, sourced by a stream of the hub: what needs no forebay at all.

Set up as the server's documentation does it: a JetStream domain on either side, a file stream on the leaf that takes
the writes, a file stream on the hub that sources it through the domain's API, ``Nats-Msg-Id`` on every message. The
writer waits for the leaf's acknowledgement and sends again under the same id until it has it. The consumer is a
durable pull consumer with explicit acknowledgement; one SQLite transaction (WAL, FULL) holds a row for the message id
and the effect, and the acknowledgement goes after its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from bench.peers.pair import Event, api, messages
from forebay.testing.nats_server import NatsServer, free_port
from forebay.testing.waiting import until

EDGE_STREAM, HUB_STREAM, DURABLE = "EDGE", "HUB", "books"
WRITE_TIMEOUT = 1.0
"""Seconds until a write without an acknowledgement is sent again."""
FETCH, FETCH_TIMEOUT = 100, 0.5
"""Messages of one transaction, and the seconds that a fetch waits for the first."""
ACK_WAIT = 2.0
"""Seconds until the hub delivers again; as in the other column."""
READY = 60.0
"""Seconds for a stream to be there."""
FRESH = 3.0
"""Seconds since the hub last heard of its source, below which the link between them counts as working."""

_EDGE = {
    "name": EDGE_STREAM,
    "subjects": ["evt.>"],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_bytes": 1 << 30,
    "duplicate_window": 120_000_000_000,
    "num_replicas": 1,
}
_HUB = {
    "name": HUB_STREAM,
    "sources": [{"name": EDGE_STREAM, "external": {"api": "$JS.leaf.API"}}],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_bytes": 1 << 30,
    "duplicate_window": 120_000_000_000,
    "num_replicas": 1,
}
_CONSUMER = {
    "durable_name": DURABLE,
    "ack_policy": "explicit",
    "deliver_policy": "all",
    "ack_wait": int(ACK_WAIT * 1e9),
    "max_deliver": -1,
    "max_ack_pending": 1000,
}
_TABLES = """
create table if not exists inbox (message_id text primary key) without rowid, strict;
create table if not exists effect (position integer primary key, key text not null, number integer not null) strict;
"""


class LeafPair:
    """One leaf, one hub, one consumer; see ``Pair``.

    Args:
        folder: holds all of it.
        sync_interval: of both servers' stores.
        hub_sync_interval: of the hub's, where it is another.
        atomic: whether the leaf's stream takes atomic batches, so that a backlog is written fast.
        compression: of the link, in the words of the server's configuration; its default if empty.
        port: that the hub listens on for leaves; a free one if None.
        through: the port that the leaf connects to, such as a link's that leads to ``port``; ``port`` if None.
    """

    def __init__(
        self,
        folder: Path,
        sync_interval: str,
        *,
        hub_sync_interval: str = "",
        atomic: bool = False,
        compression: str = "",
        port: int | None = None,
        through: int | None = None,
    ) -> None:
        listening = port or free_port()
        compressing = f"compression: {compression}, " if compression else ""
        self._edge = _EDGE | ({"allow_atomic": True} if atomic else {})
        self._hub = NatsServer(folder / "hub", sync_interval=hub_sync_interval or sync_interval)
        self._leaf = NatsServer(folder / "leaf", sync_interval=sync_interval)
        # The block takes the place of the one before it in the file: a domain must be named in it.
        self._hub.extra = (
            _jetstream(self._hub, "hub") + f'leafnodes {{ {compressing}listen: "127.0.0.1:{listening}" }}\n'
        )
        self._leaf.extra = (
            _jetstream(self._leaf, "leaf")
            + f'leafnodes {{ remotes: [{{ {compressing}url: "nats-leaf://127.0.0.1:{through or listening}" }}] }}\n'
        )
        self.edge_store = folder / "leaf" / "store"
        self.hub_store = folder / "hub" / "store"
        self.effects = folder / "effects.db"
        self.effects_query = "select key, number from effect order by position"
        self._writer = Client()
        self._reader = Client()
        self._consuming: asyncio.Task[None] | None = None

    @property
    def edge_pid(self) -> int | None:
        """The leaf server's process."""
        return self._leaf.pid

    @property
    def leaf_url(self) -> str:
        """Where clients connect to the leaf."""
        return self._leaf.url

    @property
    def hub_url(self) -> str:
        """Where clients connect to the hub."""
        return self._hub.url

    async def start(self) -> None:
        """Start both servers, make the streams, and start the consumer."""
        await self.start_servers()
        await self._reader.connect(self._hub.url, **_RECONNECT)
        await self.start_consumer()

    async def start_servers(self) -> None:
        """Start both servers and make the streams; what consumes is started by somebody else."""
        with contextlib.closing(open_database(self.effects)) as database:
            database.executescript(_TABLES)
        await self.link()
        await self.start_hub()
        await self._writer.connect(self._leaf.url, **_RECONNECT)

    async def link(self) -> None:
        """Start both servers and make the leaf's stream; the hub has none yet."""
        await self._hub.start()
        await self.start_edge()
        # A source that is made before the leaf is there waits for 40 s; an operator would see to that.
        await until(self._linked, limit=READY, every=0.1, what="the hub reaches the leaf")

    async def close(self) -> None:
        """End everything."""
        await self.stop_consumer()
        for client in (self._writer, self._reader):
            if not (client.is_connected or client.is_reconnecting):
                continue
            with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
                await asyncio.wait_for(client.close(), 2)
        self._leaf.kill()
        self._hub.kill()

    async def write(self, event: Event) -> bool:
        """Publish to the leaf and wait for its acknowledgement."""
        headers = {"Nats-Msg-Id": f"{event.key}-{event.number}"}
        try:
            answer = await self._writer.request(
                f"evt.shop.meter.{event.key}", str(event.number).encode(), timeout=WRITE_TIMEOUT, headers=headers
            )
        except (TimeoutError, nats.errors.Error, OSError):
            return False
        return b'"seq":' in answer.data and b'"error"' not in answer.data

    async def stop_edge(self) -> None:
        """End the leaf with SIGTERM."""
        await self._leaf.stop()

    def kill_edge(self) -> None:
        """End the leaf with SIGKILL."""
        self._leaf.kill()

    async def start_edge(self) -> None:
        """Start the leaf, and create its stream where there is none."""
        await self._leaf.start()
        await _ensure(self._leaf.url, f"STREAM.CREATE.{EDGE_STREAM}", f"STREAM.INFO.{EDGE_STREAM}", self._edge)

    async def stop_hub(self) -> None:
        """End the hub with SIGTERM."""
        await self._hub.stop()

    def kill_hub(self) -> None:
        """End the hub with SIGKILL."""
        self._hub.kill()

    async def start_hub(self) -> None:
        """Start the hub, and create its stream and consumer where there is none."""
        await self._hub.start()
        await _ensure(self._hub.url, f"STREAM.CREATE.{HUB_STREAM}", f"STREAM.INFO.{HUB_STREAM}", _HUB)
        durable = f"{HUB_STREAM}.{DURABLE}"
        create = {"stream_name": HUB_STREAM, "config": _CONSUMER}
        await _ensure(self._hub.url, f"CONSUMER.DURABLE.CREATE.{durable}", f"CONSUMER.INFO.{durable}", create)

    async def stop_consumer(self) -> None:
        """End the consumer between two of its steps."""
        if self._consuming is not None:
            self._consuming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._consuming
            self._consuming = None

    async def start_consumer(self) -> None:
        """Start the consumer."""
        self._consuming = asyncio.create_task(self._consume())

    async def stored_at_hub(self) -> int:
        """How many messages the hub's stream has."""
        return await messages(self._hub.url, HUB_STREAM)

    async def says_done(self) -> bool:
        """Whether the source has no lag over a working link, and the consumer has nothing open."""
        stream = await api(self._hub.url, f"STREAM.INFO.{HUB_STREAM}")
        consumer = await api(self._hub.url, f"CONSUMER.INFO.{HUB_STREAM}.{DURABLE}")
        sources = stream.get("sources")
        if not isinstance(sources, list) or "num_pending" not in consumer:
            return False
        working = all(0 <= each["active"] < FRESH * 1e9 and each["lag"] == 0 for each in sources)
        return working and not consumer["num_pending"] and not consumer["num_ack_pending"]

    async def _linked(self) -> bool:
        return "config" in await api(self._hub.url, f"STREAM.INFO.{EDGE_STREAM}", domain="leaf")

    async def _consume(self) -> None:
        with contextlib.closing(open_database(self.effects, check_same_thread=False)) as database:
            await consume(self._reader, database)


async def consume(client: Client, database: sqlite3.Connection) -> None:
    """Consume until cancelled: what came together takes effect in a transaction, and is then acknowledged."""
    context = client.jetstream()
    subscription = await context.pull_subscribe_bind(durable=DURABLE, stream=HUB_STREAM)
    try:
        while True:
            try:
                batch = await subscription.fetch(FETCH, timeout=FETCH_TIMEOUT)
                rows = [((each.headers or {})["Nats-Msg-Id"], *_event(each.subject, each.data)) for each in batch]
                await asyncio.to_thread(_apply, database, rows)
                for each in batch:
                    await each.ack()
            except (TimeoutError, nats.errors.Error, nats.js.errors.Error, OSError):
                await asyncio.sleep(0.02)
    finally:
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()


def _jetstream(server: NatsServer, domain: str) -> str:
    store = f'store_dir: "{server.folder / "store"}"'
    return f"jetstream {{ {store}, sync_interval: {server.sync_interval}, domain: {domain} }}\n"


async def _ensure(url: str, create: str, info: str, body: object) -> None:
    async def there() -> bool:
        if "config" in await api(url, info):
            return True
        await api(url, create, body)
        return False

    await until(there, limit=READY, every=0.05, what=f"{info} at {url}")


def open_database(path: Path, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """Open the consumer's database: what it has committed is on disk."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
    database.execute("pragma journal_mode=wal")
    database.execute("pragma synchronous=full")
    return database


def _apply(database: sqlite3.Connection, rows: list[tuple[str, str, int]]) -> None:
    database.execute("begin immediate")
    for message_id, key, number in rows:
        if database.execute("insert or ignore into inbox values (?)", (message_id,)).rowcount:
            database.execute("insert into effect (key, number) values (?, ?)", (key, number))
    database.execute("commit")


def _event(subject: str, data: bytes) -> tuple[str, int]:
    return subject.rpartition(".")[2], int(data)


async def _ignore(error: Exception) -> None:
    """Say nothing: lost connections are what this is about."""


_RECONNECT: dict[str, Any] = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.1, "error_cb": _ignore}
