"""The statements of commands, on each database that a service of the core may have."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from forebay import Command, Lane, UnitOfWork, UnitStore
from forebay.command import Destination
from forebay.destinations import _WITH_SOMETHING
from forebay.dispatching import _ON_DISK, _WITHHELD, _WRITTEN_SINCE
from forebay.envelope import Message
from forebay.expiring import KEPT, expired, record_expired
from forebay.freeing import free, head, standing
from forebay.outbox import Outbox
from forebay.postgres import PostgresStore
from forebay.registry import known, note_registered, remove_node
from forebay.scripts import MigrationSet
from forebay.sqlite import SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.transaction import Transaction

ENGINE = MigrationSet("forebay", files("forebay") / "migrations")


class Reserve(Command, service="stock", kind="reserve", key="order"):
    order: str


class Core(NamedTuple):
    store: UnitStore
    outbox: Outbox


@pytest.fixture(params=["sqlite", "postgres"])
async def core(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Core]:
    outbox = Outbox("core", "orders", [Lane("ledger")], sends=True)
    opened: SqliteStore | PostgresStore
    if request.param == "sqlite":
        opened = await SqliteStore.open(tmp_path / "orders.db", migrations=[ENGINE])
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        opened = await PostgresStore.open(server.create_database(), "orders", migrations=[ENGINE])
    try:
        await opened.write(outbox.bind, uuid.uuid4().hex)
        yield Core(UnitStore(opened, outbox), outbox)
    finally:
        await opened.close()


def send(tx: UnitOfWork, *nodes: str) -> list[str]:
    return [tx.send(Reserve(order=str(at)), to=node) for at, node in enumerate(nodes)]


async def test_i1_destinations_have_sequences_and_floors_of_their_own(core: Core) -> None:
    ids = await core.store.write(send, "store-1", "store-2", "store-1")
    epoch, _, last = ids[2].rpartition("-")
    assert last == "2"
    await core.store.write(free, "ledger", epoch, 1, limit=10, destination="store-1/stock")

    def left(tx: Transaction) -> list[list[tuple[int, int]]]:
        return [
            [(each.first, each.last) for each in standing(tx, "ledger", to)]
            for to in ("store-1/stock", "store-2/stock", "store-3/stock", "")
        ]

    assert await core.store.read(left) == [[(2, 2)], [(1, 1)], [], []]
    oldest = await core.store.read(head, "ledger", "store-1/stock")
    assert oldest is not None
    assert (oldest.what, oldest.first, oldest.last) == ("rows", 2, 2)


async def test_the_relay_finds_the_destinations_that_were_written_to(core: Core) -> None:
    await core.store.write(send, "store-1", "store-2")

    def ask(tx: Transaction, /, sql: str, **params: Any) -> list[str]:
        return sorted(row["destination"] for row in tx.execute(sql, **params))

    seen = (await core.store.read(lambda tx: tx.execute("select max(clock) as at from forebay_origin")))[0]["at"]
    await core.store.write(send, "store-2", "store-3")
    assert await core.store.read(ask, _ON_DISK) == ["store-1/stock", "store-2/stock", "store-3/stock"]
    assert await core.store.read(ask, _WRITTEN_SINCE, seen=seen) == ["store-2/stock", "store-3/stock"]
    assert await core.store.read(ask, _WITHHELD) == []


async def test_a_removed_node_keeps_its_drops_and_its_reason_and_is_not_asked(core: Core) -> None:
    await core.store.write(send, "store-1", "store-2", "store-1")
    await core.store.write(note_registered, Destination("store-1", "stock"))
    assert await core.store.read(known) == [Destination("store-1", "stock")]
    assert await core.store.write(remove_node, "store-1", "closed") == 2
    assert await core.store.read(known) == []

    def asked(tx: Transaction) -> list[str]:
        return [row["destination"] for row in tx.execute(_WITH_SOMETHING)]

    assert await core.store.read(asked) == ["store-2/stock"]
    gone = await core.store.read(lambda tx: tx.execute("select first, last from forebay_dropped"))
    assert [(row["first"], row["last"]) for row in gone] == [(1, 2)]
    await core.store.write(note_registered, Destination("store-1", "stock"))
    assert await core.store.read(known) == [Destination("store-1", "stock")]


async def test_the_latest_expired_commands_stay_on_record(core: Core) -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)

    def message(number: int) -> Message:
        return Message(
            message_id=f"m-{number}", node="core", service="orders", kind="reserve", id="x", source="/core/orders",
            type="stock.reserve.v1", time=at, destination="store-1/stock",
        )  # fmt: skip

    def record(tx: UnitOfWork) -> None:
        for number in range(KEPT + 5):
            record_expired(cast("Transaction", tx), message(number), at)

    await core.store.write(record)
    rows = await core.store.read(expired, KEPT * 2)
    assert [rows[0]["message_id"], len(rows)] == [f"m-{KEPT + 4}", KEPT]
