"""How fast a relay drains a backlog, beside what the server takes at most in atomic batches."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import nats

from bench.atomic_batches import pour
from bench.contest import Benchmark, Goal, Measure
from bench.effects import check_once
from bench.fleet import Fleet, broker
from bench.services.metering import Metered
from forebay import Lane, Service, UnitOfWork
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until

NODE = "house-1"
LIMIT = 600.0
"""Seconds for the backlog."""
UNIT = 500
"""Events that are written in one unit of work."""

RATE = Measure(name="events", unit="events/s")

_TOLD = """
A node has a backlog on its disk when it finds its broker; measured from the start of its relay until the broker has
acknowledged everything. The limit is what the same server takes in atomic batches of 1,000 that were put together
beforehand and are poured into a bare socket, four under way. `always` and `default` are the server's `sync_interval`.
"""


async def relayed(count: int, sync_interval: str, folder: Path) -> dict[str, float]:
    """Write a backlog, start the relay, return events a second."""
    server = NatsServer(folder / "nats", sync_interval=sync_interval)
    await server.start()
    connection = Connection(ConnectionConfig(servers=[server.url], name=NODE, inbox_prefix=f"_INBOX_{NODE}"))
    meter = Service("meter", lanes=[Lane("ledger", budget="2GiB")])
    service = RunningService(meter, NODE, folder / "meter.db", connection, {})
    try:
        async with broker(server.url, ["ledger"]):
            pass
        await service.open(None, grace=3600.0)
        for first in range(0, count, UNIT):
            await service.store.write(_write, range(first, min(first + UNIT, count)))
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.run)
            await connection.wait_connected()
            began = time.perf_counter()
            await service.start(tasks)
            await until(lambda: _sent(service) >= count, limit=LIMIT, every=0.005)
            seconds = time.perf_counter() - began
            tasks.cancel_scope.cancel()
        check_once(await stored(server.url), range(count))
    finally:
        await service.close()
        server.kill()
    return {RATE.name: count / seconds}


async def poured(count: int, sync_interval: str, folder: Path) -> dict[str, float]:
    """Measure the server's limit."""
    server = NatsServer(folder / "nats", sync_interval=sync_interval)
    await server.start()
    try:
        async with broker(server.url, ["ledger"]):
            pass
        seconds = await pour(server.url, Fleet(1).make(count))
        check_once(await stored(server.url), range(count))
    finally:
        server.kill()
    return {RATE.name: count / seconds}


async def stored(url: str) -> list[int]:
    """Return the numbers of all events in the stream."""
    client: Any = await nats.connect(url)
    try:
        context = client.jetstream()
        total = (await context.stream_info("EVENTS")).state.messages
        subscription = await context.pull_subscribe("evt.>", stream="EVENTS")
        found: list[int] = []
        while len(found) < total:
            batch = await subscription.fetch(min(1000, total - len(found)), timeout=30)
            found += [msgspec.json.decode(message.data)["number"] for message in batch]
            for message in batch:
                await message.ack()
        return found
    finally:
        await client.close()


def _write(tx: UnitOfWork, numbers: range) -> None:
    for number in numbers:
        tx.emit(Metered(meter=f"meter-{number % 7}", number=number, cents=number % 1000))


def _sent(service: RunningService) -> int:
    sent = service.relay.lanes["ledger"].sent if service.relay else None
    return sent.sequence if sent else 0


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    count = 3_000 if quick else 200_000
    goals = [
        Goal(column=f"forebay, {sync}", measure=RATE.name, value=0.8, beside=f"limit, {sync}")
        for sync in ("always", "default")
    ]
    return Benchmark(
        name="draining",
        title="Edge: draining a backlog",
        told=" ".join(_TOLD.split()),
        measures=(RATE,),
        columns={
            "forebay, always": partial(relayed, count, "always"),
            "limit, always": partial(poured, count, "always"),
            "forebay, default": partial(relayed, count, "2m"),
            "limit, default": partial(poured, count, "2m"),
        },
        goals=tuple(goals),
    )
