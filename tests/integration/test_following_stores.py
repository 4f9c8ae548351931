"""Following on every database that a service may have: the same lines of SQL, and the same effects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from forebay import Lane, Message, UnitOfWork
from forebay.followed import FollowedLane
from forebay.followers import Followers
from forebay.following import Followed, Follower
from forebay.freeing import free
from forebay.handlers import Handlers
from forebay.outbox import Outbox
from forebay.postgres import PostgresStore
from forebay.protocol.confirmation import Confirmations
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.unit_of_work import UnitStore
from tests.integration.arrivals import ENGINE
from tests.integration.rig import NODE, DoorOpened, Measured, measure, note, numbers, open_doors, rows

Open = Callable[[str, list[MigrationSet]], Awaitable[Any]]
LANES = [Lane("ledger", budget="8MiB"), Lane("telemetry", budget=4000, when_full="drop-oldest")]
NOTES = {
    "sqlite": "create table note (id integer primary key, node text not null, number integer not null);",
    "postgres": "create table note (id bigserial primary key, node text not null, number bigint not null);",
}


class House:
    """A door and a lamp that follows it, each with a store, and what a confirmation knows of the lamp."""

    def __init__(self, door: Any, lamp: Any) -> None:
        self.outbox = Outbox(NODE, "door", LANES)
        self.door = UnitStore(door, self.outbox)
        self.lamp = UnitStore(lamp, Outbox(NODE, "lamp", []))
        self.failing: set[int] = set()
        self.known: dict[str, Confirmations] = {}
        self.followers = Followers(self.outbox, self.door, self.known, lambda: 0.0)
        handlers = Handlers()
        handlers.add(DoorOpened, self._opened, batch=False)
        handlers.add(Measured, self._measured, batch=True)
        lanes = [FollowedLane(self.outbox, self.door, lane.name) for lane in LANES]
        self.follower = Follower(
            "lamp", NODE, handlers, self.lamp, "lamp-1", [Followed("door", "door-1", lanes, self.followers.wake)]
        )

    def _opened(self, tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        note(tx, message.node, event.number)
        if event.number in self.failing:
            raise ValueError("the bulb is broken")

    @staticmethod
    def _measured(tx: UnitOfWork, events: list[Measured], messages: list[Message]) -> None:
        for event, message in zip(events, messages, strict=True):
            note(tx, message.node, 1000 + event.number)

    async def follow(self) -> None:
        while await self.follower.take_next():
            pass


@pytest.fixture(params=["sqlite", "postgres"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async def open_sqlite(name: str, sets: list[MigrationSet]) -> SqliteStore:
        return await SqliteStore.open(tmp_path / f"{name}.db", migrations=sets)

    async def open_postgres(name: str, sets: list[MigrationSet]) -> PostgresStore:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return await PostgresStore.open(server.create_database(), name, migrations=sets)

    opening: dict[str, Open] = {"sqlite": open_sqlite, "postgres": open_postgres}
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    (migrations / f"0001_lamp.{request.param}.sql").write_text(NOTES[request.param])
    async with AsyncExitStack() as stack:
        stores = []
        for name, sets in (("door", [ENGINE]), ("lamp", [ENGINE, MigrationSet("lamp", migrations)])):
            store = await opening[request.param](name, sets)
            stack.push_async_callback(store.close)
            stores.append(store)
        house = House(*stores)
        await house.door.write(house.outbox.bind, "door-1")
        await house.lamp.write(Outbox(NODE, "lamp", []).bind, "lamp-1")
        yield house


async def test_events_drops_and_gaps_reach_the_follower(house: House) -> None:
    ids = await house.door.write(open_doors, 1, 20)
    await house.door.write(free, "ledger", ids[0][:32], 5, limit=100)
    await house.door.write(measure, 1, 30)
    [(dropped,)] = await rows(house.door, "select dropped from forebay_origin where lane = 'telemetry'")
    assert dropped > 0
    await house.follow()
    kept = [1000 + number for number in range(dropped + 1, 31)]
    assert await numbers(house.lamp) == [*range(6, 21), *kept]
    gaps = await rows(house.lamp, "select lane, kind, first, last from forebay_gap order by id")
    assert gaps == [("ledger", "gap", 1, 5), ("telemetry", "drop", 1, dropped)]


async def test_a_failing_event_is_parked_and_retried_by_its_own_reader(house: House) -> None:
    house.failing = {2}
    await house.door.write(open_doors, 1, 3)
    await house.follow()
    assert await numbers(house.lamp) == [1]
    house.failing = set()
    await house.lamp.write(lambda tx: tx.execute("update forebay_parked set retry_at = 0 where retry_at is not null"))
    house.follower.look_again()
    await house.follow()
    assert await numbers(house.lamp) == [1, 2, 3]


async def test_a_follower_is_remembered_asked_removed_and_remembered_again(house: House) -> None:
    await house.door.write(open_doors, 1, 3)
    await house.followers.add("lamp", house.follower.answer)
    assert (house.followers.names, house.followers.absent) == (["lamp@node"], [])
    await house.follow()
    assert await house.followers.ask()
    assert [each.watermark for each in house.known["lamp@node"]._latest.values()] == [3]
    other = Followers(house.outbox, house.door, {}, lambda: 0.0)
    await other.load()
    assert other.absent == ["lamp"]
    assert "removed" in await house.door.write(other.remove, "lamp", "sold")
    await other.removed()
    assert (other.names, other.absent) == ([], [])
    await house.followers.add("lamp", house.follower.answer)
    assert await rows(house.door, "select service, removed_at, removed_why from forebay_follower") == [
        ("lamp", None, None)
    ]
