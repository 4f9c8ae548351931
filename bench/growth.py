"""What the core's databases grow by: an epoch, an archived event; and how many nodes it takes."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from bench.consumption import LIMIT, NODES, RATE, start_ours
from bench.contest import Benchmark, Measure, Run
from bench.effects import SqliteEffects, check_once
from bench.fleet import Fleet, broker, publish
from bench.program import PATHS, ROOT
from forebay.jetstream.publishing import Publisher
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until

EPOCH = Measure(name="inbox", unit="bytes an epoch", more_is_better=False)
EVENT = Measure(name="archive", unit="bytes an event", more_is_better=False)
SIZE = Measure(name="database in all", unit="MiB", more_is_better=False)
MOST = 1_000_000
"""Events of the largest archive unless ``--most`` says otherwise."""

_TOLD = """
Nodes: each of so many simulated nodes sends one event, its first, and so opens an epoch that the core remembers for
ever; what the inbox takes (its table and its indexes, whole pages) is divided by the nodes. Archived: 64 nodes send so
many events to the archive of this project, which keeps every body and an inbox beside them. Events a second are those
of the whole time from the first effect to the last.
"""


async def nodes(count: int, folder: Path) -> dict[str, float]:
    """Let so many nodes send an event each."""
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    path = folder / "data" / "core" / "ledger.db"
    try:
        async with broker(server.url, ["ledger"]) as connection, Publisher(connection, "EVENTS") as publisher:
            await publish(publisher, Fleet(count).make(count))
            process, effects, _ = await start_ours("ledger", server.url, folder, "")
            try:
                seconds = await _reach(effects.count, count)
            finally:
                process.kill()
                effects.close()
            check_once(effects.numbers(), range(count))
    finally:
        server.kill()
    return {RATE.name: count / seconds, EPOCH.name: _bytes(path, "forebay_inbox") / count, SIZE.name: _mib(path)}


async def archived(count: int, folder: Path) -> dict[str, float]:
    """Let 64 nodes send so many events to the archive."""
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    core = ServiceProcess(
        ["core.archive"],
        node="core",
        project=ROOT,
        data=folder / "data",
        nats=server.url,
        options=["--log-level", "warning"],
        environment={"PYTHONPATH": PATHS},
    )
    path = folder / "data" / "core" / "archive.db"
    effects, fleet = SqliteEffects(path, "archived"), Fleet(NODES)
    try:
        async with (
            broker(server.url, ["archive"], service="*") as connection,
            Publisher(connection, "EVENTS") as publisher,
        ):
            core.start()
            await core.ready()
            began = time.perf_counter()
            # In parts: a backlog of ten million messages would measure the broker.
            while fleet.numbers < count:
                await publish(publisher, fleet.make(min(10_000, count - fleet.numbers)))
                await _reach(effects.count, fleet.numbers)
            seconds = time.perf_counter() - began
            core.stop()
            check_once(_archived(path), range(count))
    finally:
        effects.close()
        core.kill()
        server.kill()
    return {RATE.name: count / seconds, EVENT.name: _bytes(path, "archived") / count, SIZE.name: _mib(path)}


async def _reach(count: Callable[[], int], wanted: int) -> float:
    """Wait for so many effects; return the seconds since the last look that found none."""
    began = time.perf_counter()

    def reached() -> bool:
        nonlocal began
        found = count()
        if not found:
            began = time.perf_counter()
        return found >= wanted

    await until(reached, limit=LIMIT, every=0.005)
    return time.perf_counter() - began


def _bytes(path: Path, table: str) -> int:
    """Return what the pages of a table and of its indexes take."""
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        query = "select sum(pgsize) from dbstat where name in (select name from sqlite_schema where tbl_name = ?)"
        return int(database.execute(query, (table,)).fetchone()[0])


def _mib(path: Path) -> float:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        pages, size = (database.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return float(pages * size) / 2**20


def _archived(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        return [int(msgspec.json.decode(body)["number"]) for (body,) in database.execute("select body from archived")]


def benchmark(quick: bool, most: int = MOST) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works, ``most`` is the number of events of the largest."""
    fleets = (100, 200) if quick else (1_000, 10_000)
    sizes = [500, 1_000] if quick else [10**power for power in range(3, 9) if 10**power <= most]
    columns: dict[str, Run] = {f"{count:,} nodes": partial(nodes, count) for count in fleets}
    columns |= {f"{count:,} archived": partial(archived, count) for count in sizes}
    return Benchmark(
        name="growth",
        title="Core: what it grows by",
        told=" ".join(_TOLD.split()),
        measures=(RATE, EPOCH, EVENT, SIZE),
        columns=columns,
    )
