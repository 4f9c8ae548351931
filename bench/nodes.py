"""What ten thousand nodes cost beside one: the same number of events, and the questions that each node asks."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import nats

from bench.consumption import RATE, start_ours, until_all
from bench.contest import Benchmark, Goal, Measure
from bench.effects import check_once
from bench.failures import EffectsError
from bench.fleet import Fleet, fill
from bench.services.metering import Metered
from forebay.protocol.confirmation import VERSION, Answer, ChainLink, OriginQuestion, Question
from forebay.testing.nats_server import NatsServer

CONSUMER = "ledger"
UNDER_WAY = 64
"""Questions that are open at a time."""
TIMEOUT = 30.0
"""Seconds for an answer."""

EPOCH = Measure(name="inbox", unit="bytes an epoch", more_is_better=False)
ANSWERS = Measure(name="confirmations", unit="answers/s")

_TOLD = """
The identities are simulated, broker and consumer are real. So many events come from one node, from 64 and from
10,000, one after the other, each node with an epoch of its own; each takes effect in SQLite, by a handler for single
events. The inbox is its table with its indexes, whole pages (4 KiB at least), by epochs. Then nodes ask the consumer
how far it is, as each does in the intervals of its confirmations, 64 questions under way; each answer is compared
with what the node sent. Up to 8 partitions are read by one process; the events of one node are all in one.
"""


async def measure(nodes: int, count: int, questions: int, folder: Path) -> dict[str, float]:
    """Let so many nodes send ``count`` events together, and ask ``questions`` times."""
    fleet = Fleet(nodes)
    messages = fleet.make(count)
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    try:
        await fill(server.url, [CONSUMER], messages)
        process, effects, said = await start_ours(CONSUMER, server.url, folder, "")
        try:
            took = await until_all(effects, count, said, process.pid)
            answers = await _ask(server.url, fleet, nodes, count, questions)
        finally:
            process.kill()
            effects.close()
        check_once(effects.numbers(), range(count))
    finally:
        server.kill()
    size = table_bytes(folder / "data" / "core" / f"{CONSUMER}.db", "forebay_inbox")
    return {RATE.name: took.rate, EPOCH.name: size / nodes, ANSWERS.name: answers}


async def _ask(url: str, fleet: Fleet, nodes: int, count: int, questions: int) -> float:
    """Ask as one node after the other; return answers a second.

    Raises:
        EffectsError: an answer is not what the node sent.
    """
    client: Any = await nats.connect(url)
    left = iter(range(questions))

    async def ask() -> None:
        for at in left:
            node = at % nodes
            epoch = fleet.epoch(node)
            sent = count // nodes + (node < count % nodes)
            origin = OriginQuestion(
                service=Metered.spec.service,
                lane=Metered.spec.lane,
                chain=[ChainLink(epoch, "none")],
                floor=None,
                forwarded=f"{epoch}-{sent}",
                stream_sequence=None,
                drops=[],
                withheld=[],
            )
            body = msgspec.json.encode(Question(VERSION, [origin]))
            answer = await client.request(f"confirm.event.{CONSUMER}.house-{node}", body, timeout=TIMEOUT)
            epochs = msgspec.json.decode(answer.data, type=Answer).epochs
            if epochs[epoch].watermark != sent:
                raise EffectsError(f"house-{node} sent {sent} events, and {epochs[epoch].watermark} are confirmed")

    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UNDER_WAY):
                tasks.create_task(ask())
        return questions / (time.perf_counter() - began)
    finally:
        await client.close()


def table_bytes(path: Path, table: str) -> int:
    """Return what the pages of a table and of its indexes take."""
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        query = "select sum(pgsize) from dbstat where name in (select name from sqlite_schema where tbl_name = ?)"
        return int(database.execute(query, (table,)).fetchone()[0])


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    count, most, questions = (2_000, 200, 100) if quick else (100_000, 10_000, 5_000)
    columns = {
        "1 node": partial(measure, 1, count, questions),
        "64 nodes": partial(measure, 64, count, questions),
        f"{most:,} nodes": partial(measure, most, count, questions),
    }
    return Benchmark(
        name="nodes",
        title="Core: ten thousand nodes",
        told=" ".join(_TOLD.split()),
        measures=(RATE, EPOCH, ANSWERS),
        columns=columns,
        goals=(
            Goal(name="inbox, 10,000 nodes", column=f"{most:,} nodes", measure=EPOCH.name, value=300),
            Goal(name="inbox, 10,000 nodes", column=f"{most:,} nodes", measure=RATE.name, value=0.9, beside="1 node"),
        ),
    )
