"""What more processes of a consumer bring on one PostgreSQL, and who uses up the processors then."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.atomic_batches import pour
from bench.consumption import NODES, RATE, postgres_server, start_ours, until_all
from bench.contest import Benchmark, Goal, Measure
from bench.effects import Effects, check_once
from bench.fleet import Fleet, broker
from bench.resident import machine_busy, processor_seconds
from forebay.identity import PARTITIONS
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until

if TYPE_CHECKING:
    from bench.consumption import Stoppable
    from forebay.testing.postgres_server import PostgresServer

PROCESSES = (1, 2, 4)
SPREAD = 60.0
"""Seconds for the partitions to be spread over the processes."""

CONSUMERS = Measure(name="consumers", unit="processors", more_is_better=False)
DATABASE = Measure(name="PostgreSQL", unit="processors", more_is_better=False)
BROKER = Measure(name="broker", unit="processors", more_is_better=False)
EVENT = Measure(name="all three", unit="\N{MICRO SIGN}s of a processor an event", more_is_better=False)
BUSY = Measure(name="machine busy", unit="%", more_is_better=False)

_TOLD = """
The same consumer as "forebay, PostgreSQL" above, in one, two and four processes that share the partitions of the
stream. They are frozen once each has its share, the events are published, and they go on together. Beside the rate
stands who took the processors meanwhile: 1.5 is one and a half of them all the time; "all three" is what consumers,
PostgreSQL and broker together spend on an event. Where the machine is busy to nearly 100 %, more processes cannot bring
more: this many processors, divided by that, are the most that any number of them can.
"""

_SPREAD = """
select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 and granted and mode = 'ExclusiveLock'
group by pid having count(*) >= %s"""


async def measure(processes: int, count: int, folder: Path) -> dict[str, float]:
    """Let so many processes consume ``count`` events."""
    messages = Fleet(NODES).make(count)
    server = NatsServer(folder / "nats", sync_interval="2m")
    database = postgres_server()
    await server.start()
    database.start()
    members: list[Stoppable] = []
    effects: Effects | None = None
    try:
        async with broker(server.url, ["ledger"]):
            pass
        url = database.create_database()
        said: Callable[[], str] = str
        for at in range(processes):
            (folder / str(at)).mkdir()
            member, effects, said = await start_ours("ledger", server.url, folder / str(at), url)
            members.append(member)
        await until(partial(_spread, database, url, processes), limit=SPREAD, every=0.2, what=said)
        assert effects is not None  # noqa: S101 - there is at least one process
        pids = [member.pid or 0 for member in members]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await pour(server.url, messages)
        others = {DATABASE.name: partial(processor_seconds, database.pid or 0, children=True)}
        others[BROKER.name] = partial(processor_seconds, server.pid or 0)
        before = {name: used() for name, used in others.items()}
        consumed = _used(pids)
        async with machine_busy() as busy:
            began = time.perf_counter()
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            took = await until_all(effects, count, said, pids[0], "first of the consumers")
            seconds = time.perf_counter() - began
        found = {name: (used() - before[name]) / seconds for name, used in others.items()}
        found[CONSUMERS.name] = (_used(pids) - consumed) / seconds
        spent = sum(found.values()) * seconds / count * 1e6
        for member in members:
            member.kill()
        check_once(effects.numbers(), range(count))
    finally:
        for member in members:
            member.kill()
        if effects is not None:
            effects.close()
        database.close()
        server.kill()
    return {RATE.name: took.rate, **found, EVENT.name: spent, BUSY.name: busy.share * 100}


async def _spread(database: PostgresServer, url: str, processes: int) -> bool:
    """Whether each process has its share of the partitions."""
    query = _SPREAD % (PARTITIONS // processes)
    rows = await asyncio.to_thread(database.execute, query, url.rpartition("/")[2])
    return len(rows) >= processes


def _used(pids: Sequence[int]) -> float:
    return sum(processor_seconds(pid) for pid in pids)


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    count = 1_000 if quick else 60_000
    columns = {f"{at} {'process' if at == 1 else 'processes'}": partial(measure, at, count) for at in PROCESSES}
    return Benchmark(
        name="scaling",
        title="Core: more processes on one PostgreSQL",
        told=" ".join(_TOLD.split()),
        measures=(RATE, CONSUMERS, DATABASE, BROKER, EVENT, BUSY),
        columns=columns,
        goals=(
            Goal(
                name="PostgreSQL, from 1 to 4 processes (unless it or the cores are the limit)",
                column="4 processes",
                measure=RATE.name,
                value=3,
                beside="1 process",
            ),
        ),
    )
