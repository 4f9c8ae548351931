"""How fast it recovers: a broker that was killed, and a hole of a thousand events. ``python -m bench.recovery``.

One node and one consumer in this process, with the settings that ``forebay run`` has, and a real nats-server. Prints
the figures and writes them with ``--json``.

The pauses between a connection's attempts grow until one has lasted for 30 seconds, so many kills in a row would
measure those: few at a time tell more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.peers.report import Machine, machine
from forebay import Event, Lane, Service, UnitOfWork
from forebay.gaps import holes
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outcomes import Stored
from forebay.jetstream.publishing import Outgoing
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until

NODE = "house-1"
LIMIT = 60.0
"""Seconds after which a wait is given up, and the run with it."""


class Opened(Event, service="door", kind="opened", key="door"):
    """One event."""

    number: int
    door: str = "front"


class Spread(msgspec.Struct, frozen=True):
    """Seconds: how many, and how they are spread."""

    count: int
    median: float
    p99: float
    most: float


class Result(msgspec.Struct, frozen=True):
    """Everything measured.

    Attributes:
        after_kill: from the broker's port being open until the next event takes effect.
        hole_seen: from the first event after the hole being forwarded until the consumer has it as a hole.
        hole_closed: from there until all of its events took effect.
    """

    machine: Machine
    after_kill: Spread
    hole_of: int
    hole_seen: Spread
    hole_closed: Spread


class Pair:
    """A node and a consumer at work."""

    def __init__(self, server: NatsServer, node: RunningService, core: RunningService, seen: set[int]) -> None:
        self.server = server
        self.node = node
        self.core = core
        self.seen = seen
        self.number = 0

    async def write(self, count: int) -> range:
        """Write events; return their numbers."""
        first = self.number + 1
        self.number += count

        def emit(tx: UnitOfWork) -> None:
            for number in range(first, self.number + 1):
                tx.emit(Opened(number=number))

        await self.node.store.write(emit)
        return range(first, self.number + 1)

    async def took_effect(self, numbers: Sequence[int]) -> float:
        """Wait until the last of the events took effect; return the time."""
        await until(lambda: numbers[-1] in self.seen, limit=LIMIT)
        return time.perf_counter()


def _consumer(seen: set[int]) -> Service:
    audit = Service("audit")

    @audit.on(Opened)
    def note(tx: UnitOfWork, event: Opened) -> None:
        tx.execute("update forebay_store set node = node")
        seen.add(event.number)

    return audit


@asynccontextmanager
async def _connected(url: str, name: str) -> AsyncIterator[Connection]:
    connection = Connection(ConnectionConfig(servers=[url], name=name, inbox_prefix=f"_INBOX_{name}"))
    async with anyio.create_task_group() as tasks:
        await tasks.start(connection.run)
        await connection.wait_connected()
        try:
            yield connection
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _serving(declared: Service, node: str, connection: Connection, folder: Path) -> AsyncIterator[RunningService]:
    service = RunningService(declared, node, folder / node / f"{declared.name}.db", connection, {})
    try:
        await service.open(None, grace=3600.0)
        async with anyio.create_task_group() as tasks:
            await service.start(tasks)
            try:
                yield service
            finally:
                tasks.cancel_scope.cancel()
    finally:
        await service.close()


@asynccontextmanager
async def _pair(folder: Path) -> AsyncIterator[Pair]:
    server, seen = NatsServer(folder / "nats"), set[int]()
    await server.start()
    door = Service("door", lanes=[Lane("ledger", budget="64MiB")])
    try:
        async with _connected(server.url, NODE) as edge, _connected(server.url, "core") as core:

            async def request(subject: str, body: bytes) -> bytes:
                return (await core.request(subject, body, timeout=5)).body

            await apply_topology(request, desired(None, derived=[consumer_spec("audit", ["door"])]))
            async with (
                _serving(door, NODE, edge, folder) as node,
                _serving(_consumer(seen), "core", core, folder) as audit,
            ):
                yield Pair(server, node, audit, seen)
    finally:
        server.kill()


async def _after_kill(pair: Pair, times: int) -> list[float]:
    found = []
    for at in range(times):
        await pair.took_effect(await pair.write(1))
        pair.server.kill()
        written = await pair.write(1)
        await anyio.sleep(random.uniform(0.1, 5.0))
        await pair.server.start()
        opened = time.perf_counter()
        found.append(await pair.took_effect(written) - opened)
        print(f"kill {at + 1}/{times}: {found[-1]:.2f} s", flush=True)
    return found


async def _hole(pair: Pair, size: int) -> tuple[float, float]:
    """Let the node believe that so many events were stored, and send on."""
    publisher = pair.node._publisher
    assert publisher is not None  # noqa: S101
    publish, lost = publisher.publish, await pair.write(0)
    stolen = range(pair.number + 1, pair.number + size + 1)

    async def stealing(messages: Sequence[Outgoing], **options: Any) -> list[Any]:
        passed = [each for each in messages if msgspec.json.decode(each.body)["number"] not in stolen]
        outcomes = iter(await publish(passed, **options) if passed else [])
        return [next(outcomes) if each in passed else Stored(1, duplicate=False) for each in messages]

    publisher.publish = stealing  # type: ignore[method-assign]
    lost = await pair.write(size)
    later = await pair.write(1)
    await until(lambda: _all_sent(pair), limit=LIMIT)
    forwarded = time.perf_counter()
    publisher.publish = publish  # type: ignore[method-assign]

    async def known() -> bool:
        return bool(await pair.core.store.read(holes)) or later[-1] in pair.seen

    await until(known, limit=LIMIT)
    seen = time.perf_counter()
    closed = await pair.took_effect([*lost, *later])
    return seen - forwarded, closed - seen


def _all_sent(pair: Pair) -> bool:
    sent = pair.node.relay.lanes["ledger"].sent if pair.node.relay else None
    return sent is not None and sent.sequence >= pair.number


async def measure(kills: int, hole_runs: int, hole: int) -> Result:
    """Run everything; raises ``TimeoutError`` where something takes longer than ``LIMIT``."""
    with tempfile.TemporaryDirectory() as folder:
        async with _pair(Path(folder)) as pair:
            await pair.took_effect(await pair.write(10))
            kill = await _after_kill(pair, kills)
            seen, closed = [], []
            for at in range(hole_runs):
                one, two = await _hole(pair, hole)
                seen.append(one)
                closed.append(two)
                print(f"hole {at + 1}/{hole_runs}: seen after {one:.2f} s, closed after {two:.2f} s", flush=True)
    return Result(machine(Path(tempfile.gettempdir())), _spread(kill), hole, _spread(seen), _spread(closed))


def _spread(found: list[float]) -> Spread:
    ordered = sorted(found)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Spread(len(ordered), *(round(each, 3) for each in (statistics.median(ordered), p99, ordered[-1])))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="kills of the broker")
    parser.add_argument("--holes", type=int, default=10, help="holes")
    parser.add_argument("--hole", type=int, default=1000, help="events of a hole")
    parser.add_argument("--json", type=Path, help="write the result there")
    chosen = parser.parse_args()
    result = asyncio.run(measure(chosen.kills, chosen.holes, chosen.hole))
    for name in ("after_kill", "hole_seen", "hole_closed"):
        spread: Spread = getattr(result, name)
        print(f"{name}: median {spread.median} s, p99 {spread.p99} s, most {spread.most} s, of {spread.count}")
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


if __name__ == "__main__":
    main()
