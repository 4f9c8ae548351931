"""How fast a relay drains a backlog, beside other outboxes and what the server takes at most in atomic batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.atomic_batches import pour
from bench.backlog import FRAMED, SINGLE, Kind, relaying, write_backlog
from bench.consumption import FRAME, packing, postgres_server
from bench.contest import Benchmark, Goal, Measure, Run
from bench.effects import check_once
from bench.environments import NATS_OUTBOX, SQLOUTBOX, python_with
from bench.fleet import Fleet, broker, reading
from bench.peers.leaf_pair import HUB_STREAM, LeafPair
from bench.program import Program
from bench.stream_reading import Look, stored
from forebay.jetstream.publishing import Outgoing
from forebay.testing.nats_server import NatsServer

RATE = Measure(name="events", unit="events/s")
SYNCS = {"always": "always", "default": "2m"}

_TOLD = """
A node has a backlog on its disk when it finds its broker; measured from outside: from the first look at the stream
that finds something, without what it finds, to the first that finds everything (a look each 10 ms). Each relay is a
process that is started then. `always` and `default` are the broker's `sync_interval`. The limit is what the same
server takes in atomic batches of at most 1,000 messages or 1 MiB that were put together beforehand and are poured
into a bare socket, four under way. nats-outbox: its own command with 1,000 events a tick, the most that it allows,
and no line of log for each event. sqloutbox leaves the sending to a writer of one's own: here one that publishes a
batch concurrently and waits for all acknowledgements; its pause between two batches of 500 is set from a second to a
millisecond. Its file is written with `synchronous=NORMAL`, which it does not let one change: it promises less. Leaf
node: a leaf's stream that holds the backlog, sourced by a stream of the hub which is made then.
"""


async def relayed(kind: Kind, count: int, sync: str, folder: Path) -> dict[str, float]:
    """Write a backlog, start the process whose relay sends it, return events a second."""
    server = NatsServer(folder / "nats", sync_interval=sync)
    await server.start()
    try:
        async with broker(server.url, ["ledger"]):
            pass
        await write_backlog(kind, count, folder)
        async with Look(server.url, subject=kind.stored_subject) as look, relaying(server.url, folder) as process:
            said = partial(process.log.read_text, errors="replace")
            took = await look.until(count, said, process.pid)
        check_once(await stored(server.url), range(count))
    finally:
        server.kill()
    return {RATE.name: took.rate}


async def poured(count: int, sync: str, folder: Path, *, framed: bool = False) -> dict[str, float]:
    """Measure the server's limit."""
    server = NatsServer(folder / "nats", sync_interval=sync)
    await server.start()
    try:
        async with broker(server.url, ["ledger"]):
            pass
        fleet = Fleet(1)
        seconds = await pour(server.url, fleet.frames(count, FRAME, packing()) if framed else fleet.make(count))
        check_once(await stored(server.url), range(count))
    finally:
        server.kill()
    return {RATE.name: count / seconds}


async def sqloutbox(count: int, sync: str, folder: Path) -> dict[str, float]:
    """Measure sqloutbox with a writer that publishes to JetStream."""
    python = await python_with(SQLOUTBOX)
    server = NatsServer(folder / "nats", sync_interval=sync)
    await server.start()
    module = [python, "-m", "bench.peers.relay_sqloutbox"]
    try:
        async with broker(server.url, ["ledger"]):
            pass
        await finished(Program([*module, "write", str(folder / "outbox"), str(count)], folder / "write.log"))
        relay = Program([*module, "relay", str(folder / "outbox"), server.url], folder / "relay.log")
        try:
            async with Look(server.url) as look:
                took = await look.until(count, relay.tail)
        finally:
            relay.kill()
        check_once(await stored(server.url), range(count))
    finally:
        server.kill()
    return {RATE.name: took.rate}


async def nats_outbox(count: int, sync: str, folder: Path) -> dict[str, float]:
    """Measure nats-outbox on PostgreSQL."""
    python = await python_with(NATS_OUTBOX)
    server = NatsServer(folder / "nats", sync_interval=sync)
    database = postgres_server()
    await server.start()
    database.start()
    try:
        async with broker(server.url, ["ledger"]):
            pass
        url = database.create_database().replace("postgresql:", "postgresql+asyncpg:", 1)
        writing = [python, "-m", "bench.peers.backlog_nats_outbox", url, str(count)]
        await finished(Program(writing, folder / "write.log"))
        command = [str(Path(python).parent / "nats-outbox"), "relay", "start", "--log-level", "WARNING"]
        settings = {"OUTBOX_DATABASE_URL": url, "OUTBOX_NATS_URL": server.url, "OUTBOX_BATCH_SIZE": "1000"}
        relay = Program(command, folder / "relay.log", settings)
        try:
            async with Look(server.url) as look:
                took = await look.until(count, relay.tail)
        finally:
            relay.kill()
        check_once(await stored(server.url), range(count))
    finally:
        database.close()
        server.kill()
    return {RATE.name: took.rate}


async def sourced(count: int, sync: str, folder: Path) -> dict[str, float]:
    """Measure a leaf node's stream that is sourced by a stream of the hub."""
    pair = LeafPair(folder, sync, atomic=True)
    try:
        await pair.link()
        await pour(pair.leaf_url, lean(count))
        async with Look(pair.hub_url, HUB_STREAM) as look:
            await pair.start_hub()
            took = await look.until(count)
        check_once(await stored(pair.hub_url, HUB_STREAM), range(count))
    finally:
        await pair.close()
    return {RATE.name: took.rate}


def lean(count: int) -> list[Outgoing]:
    """Return events as one would send them to a leaf node: with nothing but the header against duplicates."""
    return [Outgoing("evt.house-1.meter.metered", {"Nats-Msg-Id": f"house-1-{at}"}, reading(at)) for at in range(count)]


async def finished(program: Program) -> None:
    """Wait for a program to end.

    Raises:
        RuntimeError: it failed; the message ends with its log.
    """
    if code := await program.ended():
        raise RuntimeError(f"it ended with {code}: {program.tail()}")


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    ours, limit, framed = (3_000, 3_000, 5_000) if quick else (60_000, 80_000, 300_000)
    # Where each message is synced alone a peer sends a few hundred a second.
    peers = {"always": 100, "default": 300} if quick else {"always": 2_500, "default": 8_000}
    columns: dict[str, Run] = {}
    goals: list[Goal] = []
    for name, sync in SYNCS.items():
        columns |= {
            f"forebay, {name}": partial(relayed, SINGLE, ours, sync),
            f"limit, {name}": partial(poured, limit, sync),
            f"forebay, in frames, {name}": partial(relayed, FRAMED, framed, sync),
            f"limit, in frames, {name}": partial(poured, framed, sync, framed=True),
            f"sqloutbox, {name}": partial(sqloutbox, peers[name], sync),
            f"nats-outbox, PostgreSQL, {name}": partial(nats_outbox, peers[name], sync),
            f"leaf node, {name}": partial(sourced, limit if name == "default" else peers[name], sync),
        }
        for of, hint in (("", 27_000.0), ("in frames, ", 300_000.0)):
            title = f"relay, {of}`sync_interval: {name}`"
            column = f"forebay, {of}{name}"
            goals.append(Goal(name=title, column=column, measure=RATE.name, value=0.8, beside=f"limit, {of}{name}"))
            if name == "always":
                goals.append(Goal(name=title, column=column, measure=RATE.name, value=hint, hint=True))
    return Benchmark(
        name="draining",
        title="Edge: draining a backlog",
        told=" ".join(_TOLD.split()),
        measures=(RATE,),
        columns=columns,
        goals=tuple(goals),
    )
