"""How many durable writes a second an edge service answers over HTTP, and how long one takes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from bench.contest import Benchmark, Goal, Measure, Run
from bench.effects import check_once
from bench.failures import EffectsError
from bench.fleet import broker
from bench.load import Load
from bench.profiling import profiled
from bench.program import ENVIRONMENT, Program
from forebay.testing.nats_server import NatsServer, free_port
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until

CONNECTIONS = (1, 32, 256)
NODE = "house-1"

_TOLD = """
Readings of 40 bytes are posted over keep-alive connections, each as soon as the answer before has come, by a process
of its own (`bench/load.py`: bytes over sockets, no HTTP library). Its column has that process beside a server that
gives the same bytes to whatever comes: a column near it would measure the generator. All servers run uvicorn and
Litestar in one process. forebay keeps a row and an event in one transaction; "link away" has no broker, "forwarding"
sends the events to a broker of the same machine at the same time. The plain handlers keep a row with a commit per
request: in a thread of Litestar's pool, as its documentation has it for what blocks, or on the event loop itself,
which is faster on a disk that syncs fast and stands still for everybody where it does not.
"""


def rate(connections: int) -> Measure:
    """Return the measure of answers a second over so many connections."""
    return Measure(name=f"{connections} conn.", unit="requests/s")


def p99(connections: int) -> Measure:
    """Return the measure of how long an answer takes over so many connections."""
    return Measure(name=f"p99, {connections} conn.", unit="ms", more_is_better=False, drawn=connections == 32)


@asynccontextmanager
async def ours(forwarding: bool, folder: Path) -> AsyncIterator[tuple[int, Callable[[], dict[str, list[int]]]]]:
    """Run ``forebay run``; yields its port, and what tells the numbers that it has on disk, by table."""
    module = "bench.services.meter"
    project = folder / "project"
    project.mkdir()
    (project / "forebay.toml").write_text(f'[services]\nedge = ["{module}"]\ncore = []\n')
    server = NatsServer(folder / "nats", sync_interval="2m")
    process = ServiceProcess(
        [module],
        node=NODE,
        project=project,
        data=folder / "data",
        nats=server.url,
        options=["--log-level", "error"],
        environment=ENVIRONMENT,
    )

    def kept() -> dict[str, list[int]]:
        process.stop()
        path = folder / "data" / "nodes" / NODE / "meter.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            bodies = database.execute("select body from forebay_outbox").fetchall()
            return {
                "reading": _numbers(path),
                "forebay_outbox": [msgspec.json.decode(body)["number"] for (body,) in bodies],
            }

    try:
        if forwarding:
            await server.start()
            async with broker(server.url, ["ledger"]):
                pass
        process.start()
        await process.ready()
        async with profiled("edge process", process.pid):
            yield process.port, kept
    finally:
        process.kill()
        server.kill()


@asynccontextmanager
async def peer(kind: str, folder: Path) -> AsyncIterator[tuple[int, Callable[[], dict[str, list[int]]]]]:
    """Run one of ``bench.peers.http_server``; yields as ``ours`` does."""
    port, path = free_port(), folder / "readings.db"
    command = [sys.executable, "-m", "bench.peers.http_server", kind, str(port), str(path)]
    program = Program(command, folder / "server.log")

    async def accepts() -> bool:
        program.check()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    def kept() -> dict[str, list[int]]:
        return {"reading": _numbers(path)} if kind in ("commit", "inline") else {}

    try:
        await until(accepts, limit=60, what=lambda: program.tail())
        yield port, kept
    finally:
        program.kill()


Serving = Callable[[Path], contextlib.AbstractAsyncContextManager[tuple[int, Callable[[], dict[str, list[int]]]]]]


async def measure(serving: Serving, seconds: float, folder: Path) -> dict[str, float]:
    """Load a server with each number of connections in turn; check what it keeps."""
    found: dict[str, float] = {}
    acknowledged: list[int] = []
    first = 1
    async with serving(folder) as (port, kept):
        for connections in CONNECTIONS:
            numbers = folder / f"{connections}.numbers"
            load = await _load(port, connections, seconds, first, numbers)
            if load.refused or not load.requests:
                raise EffectsError(f"{load.requests} requests were accepted and {load.refused} refused")
            acknowledged += array("q", numbers.read_bytes())
            first = load.sent + 1
            found[rate(connections).name] = load.requests / load.seconds
            found[p99(connections).name] = load.p99_ms
        for stored in kept().values():
            check_once(stored, acknowledged, possible=range(1, first))
    return found


async def _load(port: int, connections: int, seconds: float, first: int, numbers: Path) -> Load:
    command = [sys.executable, "-m", "bench.load", str(port), "--connections", str(connections)]
    command += ["--seconds", str(seconds), "--warm-up", str(seconds / 5), "--first", str(first)]
    process = await asyncio.create_subprocess_exec(
        *command, "--acknowledged", str(numbers), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )  # fmt: skip
    said, complained = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator failed: {complained.decode(errors='replace')[-500:]}")
    return msgspec.json.decode(said, type=Load)


def _numbers(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        return [row[0] for row in database.execute("select number from reading")]


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    seconds = 0.3 if quick else 2.0
    columns: dict[str, Run] = {
        "forebay, link away": partial(measure, partial(ours, False), seconds),
        "forebay, forwarding": partial(measure, partial(ours, True), seconds),
        "Litestar, commit per request": partial(measure, partial(peer, "commit"), seconds),
        "Litestar, commit on the event loop": partial(measure, partial(peer, "inline"), seconds),
        "Litestar, stores nothing": partial(measure, partial(peer, "nothing"), seconds),
        "the load generator": partial(measure, partial(peer, "bytes"), seconds),
    }
    goals = [
        Goal(
            name="HTTP durable writes, 32 connections",
            column=column,
            measure=rate(32).name,
            value=value,
            beside=f"Litestar, {beside}",
        )
        for column in ("forebay, link away", "forebay, forwarding")
        for value, beside in (
            (3.0, "commit per request"),
            (3.0, "commit on the event loop"),
            (0.8, "stores nothing"),
        )
    ]
    return Benchmark(
        name="edge-writes",
        title="Edge: durable writes over HTTP",
        told=" ".join(_TOLD.split()),
        measures=(*map(rate, CONNECTIONS), *map(p99, CONNECTIONS)),
        columns=columns,
        goals=tuple(goals),
    )
