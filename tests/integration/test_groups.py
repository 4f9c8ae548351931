"""Several processes with one consumer on one database share the partitions of its stream (S2, S5, S7, C1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay import Message, Service, UnitOfWork
from forebay.errors import StoreError
from forebay.identity import PARTITIONS, partition_of
from forebay.jetstream.connection import Connection
from forebay.partitions import NotTheReaderError
from forebay.protocol.confirmation import Answer, Question
from forebay.protocol.shares import next_move
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests import stores
from tests.integration.rig import (
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    serving,
)

NODES = sorted({partition_of(f"house-{n}"): f"house-{n}" for n in range(60, 0, -1)}.values())
"""A node for each partition."""


@pytest.fixture(autouse=True)
def on_postgres(store_kind: str) -> Iterator[None]:
    stores.choose("postgres")
    yield
    stores.choose(store_kind)


def audit() -> Service:
    service = Service("audit")

    @service.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        note(tx, message.node, event.number)

    return service


@asynccontextmanager
async def member(server: NatsServer, folder: Path) -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node="core") as connection,
        serving(audit(), connection, folder, node="core", schema=NOTES) as service,
    ):
        yield service


def held(*members: RunningService) -> list[int]:
    """Return how many partitions each reads, the least first; none where one is read twice or by nobody."""
    reads = [each.consumer.partitions for each in members if each.consumer is not None and each.consumer.reading]
    every = sorted(partition for each in reads for partition in each)
    return sorted(map(len, reads)) if every == list(range(PARTITIONS)) else []


async def shared(expected: list[int], *members: RunningService) -> bool:
    return held(*members) == expected


@asynccontextmanager
async def nodes(server: NatsServer, folder: Path) -> AsyncIterator[list[RunningService]]:
    """Run a node for each partition; they keep SQLite, as edge nodes do."""
    stores.choose("sqlite")
    async with AsyncExitStack() as stack:
        found = []
        for name in NODES:
            connection = await stack.enter_async_context(connected(server.url, node=name))
            found.append(await stack.enter_async_context(serving(door(), connection, folder, node=name)))
        stores.choose("postgres")
        yield found


async def test_members_share_the_partitions_and_take_over_in_order_s7(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node="admin") as admin, nodes(nats_server, tmp_path) as houses:
        await apply(admin, "audit")
        async with member(nats_server, tmp_path) as one:
            await eventually(partial(shared, [8], one))
            for house in houses:
                await house.store.write(open_doors, 1, 20)
            async with member(nats_server, tmp_path) as two, AsyncExitStack() as stack:
                await eventually(partial(shared, [4, 4], one, two))
                for house in houses:
                    await house.store.write(open_doors, 21, 40)
                three = await stack.enter_async_context(member(nats_server, tmp_path))
                await eventually(partial(shared, [2, 3, 3], one, two, three))
                for house in houses:
                    await house.store.write(open_doors, 41, 60)
                await eventually(partial(_noted, one, 60))
                await stack.aclose()
                await eventually(partial(shared, [4, 4], one, two))
            await eventually(partial(shared, [8], one))
            for house in houses:
                await house.store.write(open_doors, 61, 80)
            await eventually(partial(_noted, one, 80))


async def _noted(service: RunningService, last: int) -> bool:
    return all([await numbers(service.store, name) == list(range(1, last + 1)) for name in NODES])


async def test_c1_one_answer_comes_and_it_comes_from_the_reader_of_the_nodes_partition(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with member(nats_server, tmp_path) as one, member(nats_server, tmp_path) as two:
            await eventually(partial(shared, [4, 4], one, two))
            for name in NODES:
                assert len(await answers(admin, name)) == 1


async def answers(connection: Connection, node: str) -> list[Answer]:
    """Return all answers to a question that come before one to a later question does."""
    found: list[Answer] = []
    inbox = f"{connection.config.inbox_prefix}.answers.{node}"
    subscription = await connection.subscribe(inbox, lambda reply: found.append(_decoded(reply.body)))
    await connection.publish(f"confirm.event.audit.{node}", msgspec.json.encode(Question(1, [])), reply=inbox)
    await eventually(partial(_any, found))
    await connection.request(f"confirm.event.audit.{node}", msgspec.json.encode(Question(1, [])), timeout=5)
    await subscription.unsubscribe()
    return found


async def _any(found: list[Answer]) -> bool:
    return bool(found)


def _decoded(body: bytes) -> Answer:
    return msgspec.json.decode(body, type=Answer)


async def test_a_reader_whose_session_is_gone_commits_nothing_until_it_has_its_partitions_again_s7(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with member(nats_server, tmp_path) as one:
            await eventually(partial(shared, [8], one))
            assert one.consumer is not None
            url = stores.url_of(tmp_path / "core")
            assert url is not None
            stores.server().execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'forebay audit writer%'",
                url.rpartition("/")[2],
            )

            def steal(work: UnitOfWork) -> None:
                one.consumer._partitions.require(3)  # type: ignore[union-attr]
                note(work, "thief", 1)

            with pytest.raises(StoreError):
                await one.store.write(steal)
            while True:
                try:
                    await one.store.write(steal)
                except NotTheReaderError:
                    await anyio.sleep(0.01)
                except StoreError:
                    await anyio.sleep(0.01)
                else:
                    break
            await eventually(partial(shared, [8], one))


@given(st.integers(1, 9), st.integers(1, 20), st.randoms(use_true_random=False))
def test_whoever_comes_and_goes_the_shares_become_even_and_stay(members: int, count: int, chance: object) -> None:
    held: dict[int, set[int]] = {}
    pick = chance.randrange  # type: ignore[attr-defined]
    for member in range(members):
        held[member] = set()
        for _ in range(pick(3)):
            _look(held, pick(member + 1), count)
        if len(held) > 1 and pick(4) == 0:
            held.pop(next(iter(held)))
    for _ in range(4 * count + 4):
        for member in sorted(held, key=lambda _: pick(100)):
            _look(held, member, count)
    least, extra = divmod(count, len(held))
    assert sorted(map(len, held.values())) == sorted([least] * (len(held) - extra) + [least + 1] * extra)
    before = {member: set(each) for member, each in held.items()}
    for member in held:
        _look(held, member, count)
    assert held == before


def _look(held: dict[int, set[int]], member: int, count: int) -> None:
    if member not in held:
        return
    move = next_move(member, held, count)
    for partition in move.take:
        assert all(partition not in each for each in held.values())
        held[member].add(partition)
    for partition in sorted(held[member])[: move.give]:
        held[member].remove(partition)
