"""How many events a second the gateway keeps when they come in bulk, beside an ``executemany`` of the same rows."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from bench.contest import Benchmark, Goal, Measure
from bench.effects import check_once
from bench.failures import EffectsError, LeftOutError
from bench.profiling import profiled
from bench.program import ENVIRONMENT, ROOT
from forebay.testing.nats_server import free_port
from forebay.testing.service_process import ServiceProcess

NODE = "house-1"
PER_REQUEST = 1_000
"""Events of a request."""
CONNECTIONS = 2
MOST = 400_000
"""Events that are made for a run."""
TABLES = (
    "select name from sqlite_schema where type = 'table' and name in ('forebay_outbox', 'client_event', 'client_id')"
)
"""The tables in which the gateway keeps a row for each event."""

PRAGMAS = (
    "auto_vacuum=incremental",
    "journal_mode=wal",
    "synchronous=full",
    "wal_autocheckpoint=256",
    f"journal_size_limit={4 * 2**20}",
    "cache_size=-2000",
    "temp_store=memory",
)
"""What the engine's store sets as well; foreign keys are not looked at, which SQLite does not do unasked."""

RATE = Measure(name="events", unit="events/s")

_TOLD = """
The gateway of this project takes requests of 1,000 events over two connections, without a broker. The CloudEvents
batch has an id and a source for each, which the gateway remembers, so that a repeated request does nothing; an event
is about 150 bytes of JSON. Measured from the first request to the last answer. Beside it the rows that it wrote (the
outbox's, and those by which a repetition is known) are inserted into a database of the same tables and indexes, in
the same number of transactions with the same pragmas, by `executemany` and nothing else: what SQLite does alone.
"""


class Mode(msgspec.Struct, frozen=True):
    """How events stand in a request."""

    content_type: str
    begin: bytes
    between: bytes
    end: bytes


BATCH = Mode("application/cloudevents-batch+json", b"[", b",", b"]")
LINES = Mode("application/x-ndjson", b"", b"\n", b"\n")


async def gateway(mode: Mode, seconds: float, folder: Path) -> dict[str, float]:
    """Post requests for so long."""
    async with asyncio.timeout(300):
        count, took = await _post(mode, seconds, folder)
    return {RATE.name: count / took}


async def executemany(seconds: float, folder: Path) -> dict[str, float]:
    """Insert the rows that the gateway would write in so many seconds."""
    count, _ = await _post(BATCH, seconds, folder)
    source, target = _path(folder), folder / "bare.db"
    with contextlib.closing(sqlite3.connect(source)) as database:
        schema, inserts = [], {}
        for (table,) in database.execute(TABLES).fetchall():
            query = "select sql from sqlite_schema where tbl_name = ? and sql is not null"
            schema += [sql for (sql,) in database.execute(query, (table,))]
            # As they came: in the order of a primary key that is a digest they would be inserted faster.
            order = "length(message_id), message_id" if table.startswith("client") else "epoch, sequence"
            rows = database.execute(f"select * from {table} order by {order}").fetchall()
            if rows:  # one of them is the table of a release before
                inserts[f"insert into {table} values ({', '.join('?' * len(rows[0]))})"] = rows
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as database:
        for pragma in PRAGMAS:
            database.execute(f"pragma {pragma}")
        for sql in schema:
            database.execute(sql)
        began = time.perf_counter()
        for first in range(0, count, PER_REQUEST):
            database.execute("begin immediate")
            for insert, rows in inserts.items():
                database.executemany(insert, rows[first : first + PER_REQUEST])
            database.execute("commit")
        took = time.perf_counter() - began
    check_once(_numbers(target), range(count))
    return {RATE.name: count / took}


async def _post(mode: Mode, seconds: float, folder: Path) -> tuple[int, float]:
    """Start the gateway and post; return how many events it keeps, and the seconds that it took."""
    process = ServiceProcess(
        ["edge.gateway"],
        node=NODE,
        project=ROOT,
        data=folder / "data",
        nats=f"nats://127.0.0.1:{free_port()}",
        options=["--log-level", "error"],
        environment={**ENVIRONMENT, "FOREBAY_MAX_DATABASE": "8GiB"},
    )
    requests = iter([_request(mode, first) for first in range(0, MOST if seconds > 1 else 5_000, PER_REQUEST)])
    process.start()
    try:
        await process.ready()
        async with profiled("gateway", process.pid):
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                posting = [
                    tasks.create_task(_connection(process.port, requests, began + seconds)) for _ in range(CONNECTIONS)
                ]
            took = time.perf_counter() - began
        process.stop()
        count = sum(task.result() for task in posting) * PER_REQUEST
        check_once(_numbers(_path(folder)), range(count))
        return count, took
    finally:
        process.kill()


async def _connection(port: int, requests: Iterator[bytes], until: float) -> int:
    """Post one request after the other; return how many were accepted.

    Raises:
        EffectsError: one was refused.
        LeftOutError: the gateway does not know this media type.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    try:
        for request in requests:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = head.find(b"content-length:")
            body = await reader.readexactly(int(head[at + 15 :].split(b"\r", 1)[0]))
            if head.startswith(b"http/1.1 415"):
                raise LeftOutError("this gateway does not take the media type")
            if not head.startswith(b"http/1.1 201"):
                raise EffectsError(f"a request was refused: {head[:40].decode()} {body[:200].decode()}")
            done += 1
            if time.perf_counter() > until:
                break
        return done
    finally:
        writer.close()


def _request(mode: Mode, first: int) -> bytes:
    body = mode.begin + mode.between.join(map(_event, range(first, first + PER_REQUEST))) + mode.end
    return b"POST /gateway/events HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        mode.content_type.encode(),
        len(body),
        body,
    )


def _event(number: int) -> bytes:
    return (
        b'{"specversion":"1.0","id":"%d","source":"/meters/%d","type":"com.example.metered",'
        b'"time":"2026-03-01T12:00:00Z","data":{"meter":"meter-%d","number":%d,"cents":%d}}'
        % (number, number % 7, number % 7, number, number % 1000)
    )


def _path(folder: Path) -> Path:
    return folder / "data" / "nodes" / NODE / "gateway.db"


def _numbers(path: Path) -> Sequence[int]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        bodies = database.execute("select body from forebay_outbox").fetchall()
    return [msgspec.json.decode(body)["number"] for (body,) in bodies]


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    seconds = 0.5 if quick else 3.0
    name, bare = "bulk ingest", "executemany of the same rows"
    return Benchmark(
        name="bulk-writes",
        title="Edge: durable writes in bulk",
        told=" ".join(_TOLD.split()),
        measures=(RATE,),
        columns={
            "forebay, CloudEvents batch": partial(gateway, BATCH, seconds),
            "forebay, NDJSON": partial(gateway, LINES, seconds),
            bare: partial(executemany, seconds),
        },
        goals=tuple(
            Goal(name=name, column=f"forebay, {of}", measure=RATE.name, **figure)
            for of in ("CloudEvents batch", "NDJSON")
            for figure in ({"value": 0.6, "beside": bare}, {"value": 150_000.0, "hint": True})
        ),
    )
