"""How many bytes an event takes on a node's link, both ways, until the core has confirmed it."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from pathlib import Path

from bench.atomic_batches import pour
from bench.backlog import FRAMED, NODE, SINGLE, UNPACKED, Kind, cents, relaying, write_backlog
from bench.consumption import packing, start_ours, until_all
from bench.contest import Benchmark, Goal, Measure
from bench.effects import check_once
from bench.failures import LeftOutError
from bench.fleet import broker
from bench.peers.leaf_pair import HUB_STREAM, LeafPair
from bench.stream_reading import Look, stored
from forebay.jetstream.publishing import Outgoing
from forebay.testing.link import Link
from forebay.testing.nats_server import NatsServer, free_port
from forebay.testing.waiting import until

LIMIT = 60.0
"""Seconds for the confirmation after the last effect."""

OUT = Measure(name="to the core", unit="bytes an event", more_is_better=False)
BACK = Measure(name="back", unit="bytes an event", more_is_better=False)
BOTH = Measure(name="in all", unit="bytes an event", more_is_better=False)

_TOLD = """
A node has a backlog of readings of about 45 bytes, `{"meter":"meter-3","number":4711,"cents":86420}`, whose last
value looks like chance. A proxy between node and broker counts what passes, TCP's own headers not among it, from the
node's connection until the consumer has confirmed everything to the node. forebay's events carry the CloudEvents
headers, a time and a clock each; those of the leaf node carry nothing but `Nats-Msg-Id`, and nothing confirms there
that an effect took place: its link carries the stream alone, between the servers, from the moment when the hub
sources it. Its compression is off, the server's default (`s2_auto`, which does not compress where the link is fast),
or the strongest (`s2_best`).
"""


async def ours(kind: Kind, count: int, folder: Path) -> dict[str, float]:
    """Measure the link of a node of forebay's."""
    kind.check()
    if kind is FRAMED and packing() is None:
        raise LeftOutError("zstd is not installed")
    await write_backlog(kind, count, folder)
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    core = folder / "core"
    core.mkdir()
    try:
        async with broker(server.url, ["ledger"]):
            pass
        consumer, effects, said = await start_ours("ledger", server.url, core, "")
        try:
            with Link(server.port) as link:
                async with relaying(link.url, folder):
                    await until_all(effects, count, said, consumer.pid)
                    await until(lambda: _confirmed(folder) >= count, limit=LIMIT, what="the node has been told")
                    found = _bytes(link.carried, (0, 0), count)
        finally:
            consumer.kill()
            effects.close()
        check_once(effects.numbers(), range(count))
    finally:
        server.kill()
    return found


async def leaf(compression: str, count: int, folder: Path) -> dict[str, float]:
    """Measure the link of a leaf node; ``compression`` in the words of the server's configuration."""
    port = free_port()
    with Link(port) as link:
        pair = LeafPair(folder, "2m", atomic=True, compression=compression, port=port, through=link.port)
        try:
            await pair.link()
            subject, number = f"evt.{NODE}.meter.metered", range(count)
            messages = [Outgoing(subject, {"Nats-Msg-Id": f"{NODE}-{at}"}, _reading(at)) for at in number]
            await pour(pair.leaf_url, messages)
            before = link.carried
            async with Look(pair.hub_url, HUB_STREAM) as look:
                await pair.start_hub()
                await look.until(count)
            found = _bytes(link.carried, before, count)
            check_once(await stored(pair.hub_url, HUB_STREAM), number)
        finally:
            await pair.close()
    return found


def _bytes(carried: tuple[int, int], before: tuple[int, int], count: int) -> dict[str, float]:
    out, back = ((now - then) / count for now, then in zip(carried, before, strict=True))
    return {OUT.name: out, BACK.name: back, BOTH.name: out + back}


def _reading(number: int) -> bytes:
    return b'{"meter":"meter-%d","number":%d,"cents":%d}' % (number % 7, number, cents(number))


def _confirmed(folder: Path) -> int:
    """Return how many events the node knows to be confirmed, by the books that it keeps for people."""
    path = folder / "data" / "nodes" / NODE / "meter.db"
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        return int(database.execute("select coalesce(sum(confirmed), 0) from forebay_book").fetchone()[0])


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    count = 2_000 if quick else 20_000
    name = "bytes on the link, framed telemetry"
    framed = "forebay, in frames, zstd"
    return Benchmark(
        name="on-the-link",
        title="Edge: bytes on the link",
        told=" ".join(_TOLD.split()),
        measures=(BOTH, OUT, BACK),
        columns={
            "forebay, single messages": partial(ours, SINGLE, count),
            "forebay, in frames": partial(ours, UNPACKED, count),
            framed: partial(ours, FRAMED, count),
            "leaf node, uncompressed": partial(leaf, "off", count),
            "leaf node, default": partial(leaf, "", count),
            "leaf node, s2": partial(leaf, "s2_best", count),
        },
        goals=(
            Goal(name=name, column=framed, measure=BOTH.name, value=40),
            Goal(name=name, column=framed, measure=BOTH.name, value=1, beside="leaf node, s2"),
        ),
    )
