"""How long it takes from the answer to a writer until the effect is committed in the core, at a steady rate."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

from bench.contest import Benchmark, Goal, Measure
from bench.effects import check_once
from bench.failures import EffectsError
from bench.fleet import broker
from bench.load import PATH
from bench.peers.leaf_pair import LeafPair
from bench.peers.pair import Event
from bench.profiling import profiled
from bench.program import ENVIRONMENT, Program
from bench.sightings import Sightings
from bench.spread import percentile
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until

NODE = "house-1"
RATES = (10, 100, 1000)
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
REQUEST_SHARES = {"p50 from the request": 0.5, "p99 from the request": 0.99}
LIMIT = 60.0
"""Seconds until the last effect after the last answer."""

_TOLD = """
Writes come at a steady rate whether the one before was answered or not, and are numbered. Measured from the answer's
arrival at the writer until the effect is seen in the core's database, which is looked at twice a millisecond; an
effect that is seen before the answer counts as 0. That alone would flatter a slow answer: "from the request" is
measured from when the write began. forebay: an edge process, a broker with the default `sync_interval`, a core
process. Leaf node: `bench/peers/leaf_pair.py`, a leaf with JetStream that acknowledges the write, a hub with the
default `sync_interval` that sources its stream, a consumer with an inbox table in a process of its own. "Synced" has
`sync_interval: always` on the leaf, so that what it acknowledged is on disk, as with forebay; by default a leaf's
disk is synced every two minutes, and the acknowledgement promises less. Ten writes go ahead of each rate and do not
count. A p99.9 of fewer than 1,000 writes is the longest.
"""

Write = Callable[[int], Awaitable[bool]]
"""Writes one number; whether it was acknowledged."""


def measure_of(name: str, rate: int) -> Measure:
    """Return the measure of a percentile at a rate."""
    return Measure(name=f"{name}, {rate}/s", unit="ms", more_is_better=False, drawn=rate == 100 and name in SHARES)


KEPT = 3.0
"""Seconds that a connection may lie idle: the server closes it after five."""


class Writers:
    """Keep-alive connections to an edge process; as many as are needed at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def write(self, number: int) -> bool:
        """Post one reading."""
        reader, writer = await self._connection()
        body = b'{"meter":"meter-%d","number":%d,"cents":1}' % (number % 7, number)
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (PATH.encode(), len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        at = head.find(b"content-length:")
        await reader.readexactly(int(head[at + 15 :].split(b"\r", 1)[0]))
        self._idle.append((time.monotonic(), reader, writer))
        return head.startswith(b"http/1.1 201")

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < KEPT:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Hang up."""
        for _, _, writer in self._idle:
            writer.close()


@asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[tuple[Write, Path]]:
    """Run edge, broker and core; yields what writes, and the core's database."""
    edge, core = "bench.services.meter", "bench.services.ledger"
    project = folder / "project"
    project.mkdir()
    (project / "forebay.toml").write_text(f'[services]\nedge = ["{edge}"]\ncore = ["{core}"]\n')
    server = NatsServer(folder / "nats", sync_interval="2m")
    processes = [
        ServiceProcess(
            [module],
            node=node,
            project=project,
            data=folder / "data",
            nats=server.url,
            options=["--log-level", "error"],
            environment=ENVIRONMENT,
        )
        for module, node in ((edge, NODE), (core, "core"))
    ]
    writers = Writers(processes[0].port)
    try:
        await server.start()
        async with broker(server.url, ["ledger"]):
            pass
        for process in processes:
            process.start()
        for process in processes:
            await process.ready()
        async with profiled("edge process", processes[0].pid), profiled("core process", processes[1].pid):
            yield writers.write, folder / "data" / "core" / "ledger.db"
    finally:
        writers.close()
        for process in processes:
            process.kill()
        server.kill()


@asynccontextmanager
async def leaf(sync_interval: str, folder: Path) -> AsyncIterator[tuple[Write, Path]]:
    """Run a leaf, a hub and a consumer; yields as ``ours`` does."""
    pair = LeafPair(folder, sync_interval, hub_sync_interval="2m")
    await pair.start_servers()
    command = [sys.executable, "-m", "bench.peers.leaf_consumer", pair.hub_url, str(pair.effects)]
    consumer = Program(command, folder / "consumer.log")

    async def write(number: int) -> bool:
        return await pair.write(Event(f"meter-{number % 7}", number))

    try:
        yield write, pair.effects
        consumer.check()
    finally:
        consumer.kill()
        await pair.close()


Running = Callable[[Path], AbstractAsyncContextManager[tuple[Write, Path]]]


async def measure(running: Running, writes: dict[int, int], folder: Path) -> dict[str, float]:
    """Write at each rate so many times, ten more before that, and return the percentiles in milliseconds."""
    found: dict[str, float] = {}
    number = 0
    begun: dict[int, float] = {}
    answered: dict[int, float] = {}
    async with running(folder) as (write, database):
        with Sightings(database) as sightings:
            for rate, count in writes.items():
                first = number + 10
                await _steadily(write, range(number, first + count), rate, begun, answered)
                number = first + count
                await until(lambda: sightings.failed or len(sightings.times) >= number, limit=LIMIT)  # noqa: B023
                if sightings.failed:
                    raise sightings.failed
                waits = [max(0.0, sightings.times[at] - answered[at]) * 1000 for at in range(first, number)]
                whole = [(sightings.times[at] - begun[at]) * 1000 for at in range(first, number)]
                found |= {measure_of(name, rate).name: percentile(waits, share) for name, share in SHARES.items()}
                for name, share in REQUEST_SHARES.items():
                    found[measure_of(name, rate).name] = percentile(whole, share)
        check_once(sightings.numbers, answered)
    return found


async def _steadily(
    write: Write, numbers: range, rate: float, begun: dict[int, float], answered: dict[int, float]
) -> None:
    """Write each number at its time, whatever became of the one before."""

    async def one(number: int) -> None:
        begun[number] = time.perf_counter()
        if not await write(number):
            raise EffectsError(f"write {number} was not acknowledged")
        answered[number] = time.perf_counter()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for at, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, began + at / rate - time.perf_counter()))
            tasks.create_task(one(number))


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    writes = {10: 5, 100: 20, 1000: 50} if quick else {10: 50, 100: 800, 1000: 6_000}
    return Benchmark(
        name="latency",
        title="From the answer at the edge to the effect in the core",
        told=" ".join(_TOLD.split()),
        measures=tuple(measure_of(name, rate) for rate in RATES for name in (*SHARES, *REQUEST_SHARES)),
        columns={
            "forebay": partial(measure, ours, writes),
            "leaf node, synced": partial(measure, partial(leaf, "always"), writes),
            "leaf node, default": partial(measure, partial(leaf, "2m"), writes),
        },
        goals=tuple(
            Goal(name="latency at 100 events/s", column="forebay", measure=measure_of(share, 100).name, **figure)
            for share, most in (("p50", 10.0), ("p99", 40.0))
            for figure in (
                {"value": most},
                {"value": 1.0, "beside": "leaf node, synced"},
                {"value": 1.0, "beside": "leaf node, default"},
            )
        ),
    )
