"""What no release could read is due when another one starts, on every database that a service may have (rule S2)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from forebay import Event, UnitOfWork, upcasts
from forebay.handlers import Handlers
from forebay.intake import take_all
from forebay.outbox import Outbox
from forebay.parking import Whose
from forebay.postgres import PostgresStore
from forebay.retries import Retries
from forebay.sqlite import SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.unit_of_work import UnitStore
from tests.integration.arrivals import ENGINE, Stream
from tests.integration.rig import rows


class SoldV1(Event, service="till", kind="sold", version=1, key="basket"):
    basket: str


class Sold(Event, service="till", kind="sold", version=2, key="basket"):
    basket: str
    cents: int


@upcasts(SoldV1)
def for_nothing(old: SoldV1) -> Sold:
    return Sold(basket=old.basket, cents=0)


class Release:
    """A release of a consumer that handles one version, and keeps what its handler saw."""

    def __init__(self, event: type[Event], store: UnitStore) -> None:
        self.seen: list[Any] = []
        self.handlers = Handlers()
        self.handlers.add(event, self._handle, batch=False)
        whose = Whose("core", ("lamp",), followed=False)
        self.retries = Retries("sales", self.handlers, store, lambda _: None, time.monotonic, whose)

    def _handle(self, _: UnitOfWork, event: Any) -> None:
        self.seen.append(event)


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UnitStore]:
    opened: SqliteStore | PostgresStore
    if request.param == "sqlite":
        opened = await SqliteStore.open(tmp_path / "sales.db", migrations=[ENGINE])
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        opened = await PostgresStore.open(server.create_database(), "sales", migrations=[ENGINE])
    try:
        yield UnitStore(opened, Outbox("core", "sales", []))
    finally:
        await opened.close()


async def parked(store: UnitStore) -> list[str]:
    return [reason for (reason,) in await rows(store, "select reason from forebay_parked order by id")]


async def test_an_unknown_version_waits_and_is_read_by_the_release_that_knows_it_s2(store: UnitStore) -> None:
    def sold(sequence: int, version: int, body: bytes) -> Any:
        return stream.event(sequence, body, kind="sold", type=f"till.sold.v{version}", key="b")

    old, stream = Release(SoldV1, store), Stream()
    deliveries = [sold(1, 1, b'{"basket":"b"}'), sold(2, 2, b'{"basket":"b","cents":5}'), sold(3, 1, b'{"basket":"b"}')]
    await store.write(take_all, old.handlers, "EVENTS", "2017", deliveries, True)
    assert await parked(store) == ["unknown-version", "behind"]
    await store.write(put_off)
    await old.retries.look()
    assert not await old.retries.run_due()

    new = Release(Sold, store)
    await new.retries.begin()
    while await new.retries.run_due():
        pass
    assert await parked(store) == []
    assert new.seen == [Sold(basket="b", cents=5), Sold(basket="b", cents=0)]


async def test_what_failed_for_another_reason_keeps_its_pause(store: UnitStore) -> None:
    release = Release(SoldV1, store)
    delivery = Stream().event(1, b'{"basket":"b"}', kind="sold", type="till.sold.v1", key="b")
    failing = {delivery.headers["Nats-Msg-Id"]: "the shelf is full"}
    await store.write(take_all, release.handlers, "EVENTS", "2017", [delivery], True, failing)
    await store.write(put_off)
    await release.retries.begin()
    assert not await release.retries.run_due()
    assert await parked(store) == ["handler"]


def put_off(tx: UnitOfWork) -> None:
    """Let the next retries be minutes away, as they are after a few."""
    tx.execute("update forebay_parked set retry_at = retry_at + 290000 where retry_at is not null")
