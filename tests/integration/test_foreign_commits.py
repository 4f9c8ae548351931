"""The process in charge hears at once of what another one has committed; it looks for itself only now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from forebay import postgres
from forebay.postgres import PostgresStore
from forebay.postgres.foreign import ForeignCommits
from forebay.testing.nats_server import NatsServer
from forebay.testing.postgres_server import PostgresServer
from forebay.transaction import Transaction
from tests.integration.arrivals import ENGINE
from tests.integration.rig import NODE, apply, connected, door, eventually, open_doors, serving, until

pytestmark = pytest.mark.parametrize("store_kind", ["postgres"], indirect=True, scope="module")


def change(tx: Transaction) -> None:
    tx.execute("update forebay_store set id = id")


class Pair:
    """Two processes of a service; the first is in charge, and counts what it hears of commits."""

    def __init__(self, first: PostgresStore, second: PostgresStore) -> None:
        self.first = first
        self.second = second
        self.heard = 0
        first.on_commit(self._hear)

    def _hear(self) -> None:
        self.heard += 1

    async def hears_of(self, other: PostgresStore) -> None:
        before = self.heard
        await other.write(change)
        await until(lambda: self.heard > before, limit=5)


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.foreign, "LOOK", 600.0)


@asynccontextmanager
async def pair_on(server: PostgresServer) -> AsyncIterator[Pair]:
    url = server.create_database()
    first = await PostgresStore.open(url, "audit", migrations=[ENGINE])
    second = await PostgresStore.open(url, "audit", migrations=[ENGINE])
    assert await first.charge().has()
    assert not await second.charge().has()
    found = Pair(first, second)
    async with anyio.create_task_group() as tasks:
        await tasks.start(ForeignCommits(first.address, first._writer.committed_elsewhere).run)
        await until(lambda: found.heard > 0)  # it looks once it listens
        yield found
        tasks.cancel_scope.cancel()
    await first.close()
    await second.close()


async def test_a_commit_of_another_process_is_heard_at_once(postgres_server: PostgresServer) -> None:
    async with pair_on(postgres_server) as pair:
        for _ in range(3):
            await pair.hears_of(pair.second)


async def test_a_listening_session_that_is_lost_is_opened_again(postgres_server: PostgresServer) -> None:
    async with pair_on(postgres_server) as pair:
        before = pair.heard
        ended = postgres_server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'forebay audit listener%'"
        )
        assert len(ended) == 1
        await until(lambda: pair.heard > before + 1)  # what was committed meanwhile would be found, and it listens
        await pair.hears_of(pair.second)


async def test_what_is_not_told_yet_waits_for_the_next_session_and_nobody_spins() -> None:
    with PostgresServer() as server:
        store = await PostgresStore.open(server.create_database(), "audit", migrations=[ENGINE])
        writer = store._writer
        await store.write(change)
        server.kill()
        await until(lambda: writer.problem != "")
        writer._untold = True  # as it is where the last commit was less than 20 ms ago
        await until(lambda: writer._idle_time() > 0.5)
        await store.close()


async def test_an_event_that_another_process_wrote_is_sent_at_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection, connected(nats_server.url) as another:
        await apply(connection)
        async with serving(door(), connection, tmp_path, node=NODE) as first:
            await until(lambda: first.relay is not None and first.relay.problem is None)
            async with serving(door(), another, tmp_path, node=NODE) as second:
                for number in range(1, 4):
                    before = first.relay.published if first.relay else 0
                    await second.store.write(open_doors, number, number)

                    async def sent(more_than: int = before) -> bool:
                        return first.relay is not None and first.relay.published > more_than

                    await eventually(sent, 5)
