"""What the tests against a real broker share: a running connection, streams, services, conditions with limits."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from forebay import Event, Lane, Service, UnitOfWork
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outage import OutageConfig
from forebay.jetstream.publishing import Outgoing
from forebay.jetstream.streams import api_request
from forebay.jetstream.topology import ConsumerSpec, apply_topology, consumer_spec, desired
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitStore
from tests.stores import url_of, written_for

SUBJECT = "evt.store-330.till.sale-recorded"
NODE = "house-1"
GRACE = 3600.0
"""Seconds; long enough that nothing is freed unless a test asks for it."""


@asynccontextmanager
async def started(server: NatsServer) -> AsyncIterator[NatsServer]:
    try:
        await server.start()
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def connected(url: str, *, node: str = "store-330", ping_interval: float = 10.0) -> AsyncIterator[Connection]:
    config = ConnectionConfig(
        servers=[url],
        name=node,
        inbox_prefix=f"_INBOX_{node}",
        ping_interval=ping_interval,
        outage=OutageConfig(quick_cap=0.2),
    )
    connection = Connection(config)
    async with anyio.create_task_group() as tasks:
        await tasks.start(connection.run)
        with anyio.fail_after(10):
            await connection.wait_connected()
        try:
            yield connection
        finally:
            tasks.cancel_scope.cancel()


async def create_stream(connection: Connection, **settings: Any) -> None:
    transform = "evt.{{partition(8,1)}}.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}"
    config = {
        "name": "EVENTS",
        "subjects": ["evt.*.*.*"],
        "subject_transform": {"src": "evt.*.*.*", "dest": transform},
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_bytes": 1 << 28,
        "num_replicas": 1,
        "allow_atomic": True,
        "allow_direct": True,
        "duplicate_window": 120_000_000_000,
    }
    await api_request(connection, "STREAM.CREATE.EVENTS", {**config, **settings})


async def create_durable(connection: Connection, durable: str = "sales-0", **settings: Any) -> None:
    config = {
        "durable_name": durable,
        "ack_policy": "all",
        "max_deliver": -1,
        "max_ack_pending": -1,
        "filter_subject": "evt.*.>",
    }
    body = {"stream_name": "EVENTS", "config": {**config, **settings}}
    await api_request(connection, f"CONSUMER.DURABLE.CREATE.EVENTS.{durable}", body)


def messages(first: int, last: int, *, subject: str = SUBJECT, body: bytes = b"") -> list[Outgoing]:
    return [Outgoing(subject, {"Nats-Msg-Id": f"id-{n}"}, body or b"%d" % n) for n in range(first, last + 1)]


async def until(condition: Callable[[], bool], limit: float = 10.0) -> None:
    with anyio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 -- any condition, most set no event
            await anyio.sleep(0.005)


class DoorOpened(Event, service="door", kind="door-opened", key="door"):
    number: int
    door: str = "front"


class Measured(Event, service="door", kind="measured", lane="telemetry"):
    number: int


def door(*, budget: str | int = "8MiB") -> Service:
    """Declare an edge service that only emits, in two lanes."""
    return Service("door", lanes=[Lane("ledger", budget=budget), Lane("telemetry", budget=budget)])


def open_doors(tx: UnitOfWork, first: int, last: int) -> list[str]:
    return [tx.emit(DoorOpened(number=number)) for number in range(first, last + 1)]


def measure(tx: UnitOfWork, first: int, last: int) -> list[str]:
    return [tx.emit(Measured(number=number)) for number in range(first, last + 1)]


NOTES = "create table note (id integer primary key, node text not null, number integer not null);"
"""The table of a consuming service; without a constraint, so that a double effect shows as two rows."""


def note(tx: UnitOfWork, node: str, number: int) -> None:
    tx.execute("insert into note (node, number) values (:node, :number)", node=node, number=number)


@asynccontextmanager
async def serving(
    declared: Service,
    connection: Connection,
    folder: Path,
    *,
    node: str = NODE,
    schema: str | Path = "",
    grace: float = GRACE,
    prepare: Callable[[RunningService], None] = lambda _: None,
) -> AsyncIterator[RunningService]:
    """Run one service as a process does.

    ``schema`` is the tables of its own, or the folder of its migrations; ``prepare`` may change its parts before they
    start.
    """
    migrations = schema if isinstance(schema, Path) else folder / f"{declared.name}-migrations" if schema else None
    if migrations is not None and isinstance(schema, str):
        migrations.mkdir(parents=True, exist_ok=True)
        for ending, text in written_for(schema).items():
            (migrations / f"0001_{declared.name}.{ending}").write_text(text)
    path, url = folder / node / f"{declared.name}.db", url_of(folder / node)
    service = RunningService(declared, node, path, connection, {}, url=url)
    try:
        await service.open(migrations, grace=grace)
        prepare(service)
        async with anyio.create_task_group() as tasks:
            await service.start(tasks)
            try:
                yield service
            finally:
                tasks.cancel_scope.cancel()
    finally:
        await service.close()


async def apply(connection: Connection, *consumers: str, services: Sequence[str] = ("door",)) -> None:
    """Apply the packaged streams, and durables for consumers of these services."""

    async def request(subject: str, body: bytes) -> bytes:
        return (await connection.request(subject, body, timeout=5)).body

    specs: list[ConsumerSpec] = [consumer_spec(name, services) for name in consumers]
    await apply_topology(request, desired(None, derived=specs))


async def rows(store: UnitStore, sql: str) -> list[tuple[Any, ...]]:
    """Return a query's rows as tuples."""

    def query(tx: Transaction) -> list[Row]:
        return tx.execute(sql)

    return [tuple(row[name] for name in row.keys()) for row in await store.read(query)]  # noqa: SIM118


async def numbers(store: UnitStore, node: str = NODE) -> list[int]:
    """Return what a consumer noted of a node, in the order of its effects."""
    return [row[0] for row in await rows(store, f"select number from note where node = '{node}' order by id")]


async def eventually(condition: Callable[[], Awaitable[object]], limit: float = 15.0, *, every: float = 0.02) -> None:
    """Wait for an asynchronous condition."""
    with anyio.fail_after(limit):
        while not await condition():  # noqa: ASYNC110 -- any condition, most set no event
            await anyio.sleep(every)
