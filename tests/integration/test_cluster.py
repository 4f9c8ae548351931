"""Three servers with the repository's own cluster.conf, streams with three replicas, and leaders that go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from forebay import Lane, Message, Service, UnitOfWork
from forebay.consumer import Consumer
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outage import OutageConfig
from forebay.jetstream.outcomes import Stored, Uncertain
from forebay.jetstream.publishing import Publisher
from forebay.jetstream.streams import api_request, stream_state
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.running import RunningService
from forebay.testing.nats_cluster import NatsCluster
from forebay.testing.waiting import until
from tests.integration.rig import NOTES, DoorOpened, eventually, messages, note, numbers, open_doors, serving

CONFIG = Path(__file__).parents[2] / "jetstream-config"
NODE = "store-330"
CORE, STORE = "core:core-secret", "store-330:store-secret"
PASSWORDS = {"FOREBAY_CORE_PASSWORD": "core-secret", "FOREBAY_STORE_330_PASSWORD": "store-secret"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """One cluster for both tests: it takes seconds to find its leader."""
    made = NatsCluster(
        tmp_path_factory.mktemp("nats"),
        configuration=CONFIG / "servers" / "cluster.conf",
        environment=PASSWORDS,
        user=CORE,
    )
    try:
        with asyncio.Runner() as runner:
            runner.run(made.start())
        yield made
    finally:
        made.kill()


@asynccontextmanager
async def connected(urls: list[str], node: str) -> AsyncIterator[Connection]:
    config = ConnectionConfig(
        servers=urls, name=node, inbox_prefix=f"_INBOX_{node}", outage=OutageConfig(quick_cap=0.2)
    )
    connection = Connection(config)
    async with anyio.create_task_group() as tasks:
        await tasks.start(connection.run)
        with anyio.fail_after(20):
            await connection.wait_connected()
        try:
            yield connection
        finally:
            tasks.cancel_scope.cancel()


async def apply(core: Connection, folder: Path) -> None:
    """Apply the repository's streams as cluster.conf says: with three replicas."""
    for name in ("streams", "consumers"):
        (folder / name).mkdir(parents=True)
    for file in (CONFIG / "streams").glob("*.yaml"):
        text = file.read_text()
        assert "num_replicas: 1" in text
        (folder / "streams" / file.name).write_text(text.replace("num_replicas: 1", "num_replicas: 3"))

    async def request(subject: str, body: bytes) -> bytes:
        return (await core.request(subject, body, timeout=10)).body

    await apply_topology(request, desired(folder, derived=[consumer_spec("audit", ["door"])]))


def audit() -> Service:
    service = Service("audit")

    @service.on(DoorOpened)
    def count(tx: UnitOfWork, opened: DoorOpened, message: Message) -> None:
        note(tx, message.node, opened.number)

    return service


def consumer_of(service: RunningService) -> Consumer:
    assert service.consumer is not None
    return service.consumer


async def confirmed(service: RunningService) -> bool:
    assert service.confirming is not None
    books = await service.confirming.books()
    return bool(books) and all(book.pending == 0 for book in books)


async def test_an_id_whose_first_copy_is_in_flight_is_uncertain_and_stored_once(
    cluster: NatsCluster, tmp_path: Path
) -> None:
    async with connected(cluster.urls(), "core") as core:
        await apply(core, tmp_path / "config")
        leader = await cluster.leader("EVENTS")
    others = [each for each in cluster.servers.values() if each is not leader]
    at_leader = [url for url in cluster.urls(STORE) if url.endswith(f":{leader.port}")]
    async with connected(at_leader, NODE) as edge, Publisher(edge, "EVENTS", timeout=2) as publisher:
        for server in others:
            server.pause()  # no majority: what the leader takes stays in flight
        try:
            (first,) = await publisher.publish(messages(1, 1))
            (again,) = await publisher.publish(messages(1, 1))
        finally:
            for server in others:
                server.resume()
        assert isinstance(first, Uncertain)
        assert isinstance(again, Uncertain)
        assert again.why == "duplicate message id is in process"  # 10158, no PubAck and no refusal

        async def stored() -> bool:
            (outcome,) = await publisher.publish(messages(1, 1))
            return isinstance(outcome, Stored)

        await eventually(stored, 30)
    async with connected(cluster.urls(), "core") as core:
        assert (await stream_state(core, "EVENTS")).last == 1


async def has(service: RunningService, count: int) -> bool:
    return len(await numbers(service.store, NODE)) == count


async def test_a_leader_that_dies_or_steps_down_costs_nothing_and_doubles_nothing(
    cluster: NatsCluster, tmp_path: Path
) -> None:
    door = Service("door", lanes=[Lane("ledger", budget="8MiB")])
    async with (
        connected(cluster.urls(STORE), NODE) as edge,
        connected(cluster.urls(), "core") as core,
    ):
        await apply(core, tmp_path / "config")
        async with (
            serving(door, edge, tmp_path, node=NODE) as node,
            serving(audit(), core, tmp_path, node="core", schema=NOTES) as service,
        ):
            await node.store.write(open_doors, 1, 300)
            await until(lambda: consumer_of(service).totals.applied > 0, limit=30)

            leader = await cluster.leader("EVENTS")
            await node.store.write(open_doors, 301, 600)
            leader.kill()  # with events on their way in and out
            await node.store.write(open_doors, 601, 900)
            await eventually(lambda: has(service, 900), 60)

            await leader.start()
            await node.store.write(open_doors, 901, 1200)
            await api_request(core, "STREAM.LEADER.STEPDOWN.EVENTS")
            await node.store.write(open_doors, 1201, 1500)
            await eventually(lambda: has(service, 1500), 60)

            assert await numbers(service.store, NODE) == list(range(1, 1501))
            await eventually(lambda: confirmed(node), 30)
            assert not service.problems()
