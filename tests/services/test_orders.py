"""Click and collect: what the customer is told, what store and provider are asked, and that all of it agrees."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.stock import StockLine, StockRefused, StockReleased, StockReserved
from core.orders.collecting import SAGAS, OrderSettings
from core.orders.paying import Payments, answered
from core.orders.provider import Answer, ProviderError, Taken
from core.orders.stand_in import StandIn, StandInSettings
from forebay.event import Event
from forebay.saga.instances import story
from forebay.timers import Timers
from tests.integration.arrivals import Core, Stream
from tests.services.core_app import ORDERS, application, client_of, open_core

LINES = [StockLine(product=7, quantity=2)]
UNTIL = datetime(2030, 1, 1, tzinfo=UTC)


class Shop:
    """The orders with their routes, their timers under a clock of their own, and a store that answers as it is told."""

    def __init__(self, core: Core, client: httpx.AsyncClient) -> None:
        self.core = core
        self.http = client
        self.later = timedelta()
        self._stream = Stream()
        self._answers = 0
        self.timers = Timers(SAGAS.timers, core.store, lambda: (datetime.now(UTC) + self.later).timestamp())

    async def place(self, order: str = "o-1", **changes: Any) -> httpx.Response:
        body = {"order": order, "store": "store-330", "lines": [{"product": 7, "quantity": 2}], "cents": 500}
        return await self.http.post("/orders", json={**body, **changes})

    async def status(self, order: str = "o-1") -> tuple[str, str | None]:
        found = (await self.http.get(f"/orders/{order}")).json()
        return found["status"], found.get("reason")

    async def commands(self) -> list[tuple[str, str]]:
        """The commands that were sent, in order: kind and message id."""
        rows = await self.core.rows(
            "select r.kind, e.epoch || '-' || r.sequence as id from forebay_outbox r"
            " join forebay_epoch e on e.id = r.epoch join forebay_origin o on o.id = e.origin"
            " where o.destination <> '' order by r.hlc"
        )
        return [(row["kind"], row["id"]) for row in rows]

    async def events(self) -> list[str]:
        """The kinds of the events that were emitted, in order."""
        rows = await self.core.rows(
            "select r.kind from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
            " join forebay_origin o on o.id = e.origin where o.destination = '' order by r.hlc"
        )
        return [row["kind"] for row in rows]

    async def answer(self, event: Event, command: str) -> None:
        """Let the store answer a command, by the stream."""
        self._answers += 1
        taken = await self.core.take(
            [
                self._stream.event(
                    self._answers,
                    msgspec.json.encode(event),
                    service="stock",
                    kind=event.spec.kind,
                    type=event.spec.type,
                    cause=f"{command}/stock/0",
                )
            ]
        )
        assert taken.parked == 0, await self.core.rows("select detail from forebay_parked")

    async def reserve(self, order: str = "o-1") -> None:
        command = next(each for kind, each in reversed(await self.commands()) if kind == "reserve-stock")
        await self.answer(StockReserved(order=order, lines=LINES, until=UNTIL), command)

    async def release(self, order: str = "o-1") -> None:
        command = next(each for kind, each in reversed(await self.commands()) if kind == "release-stock")
        await self.answer(StockReleased(order=order, lines=LINES), command)


def payments(shop: Shop, stand_in: StandIn | None = None, **changes: Any) -> Payments:
    return Payments(stand_in or StandIn(StandInSettings()), shop.core.store, OrderSettings(**changes))


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_core(tmp_path, ORDERS) as core, client_of(application({ORDERS: core})) as client:
        yield Shop(core, client)


async def test_an_order_is_placed_once_and_asks_its_store_at_once(shop: Shop) -> None:
    first, again = await shop.place(), await shop.place()
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert [kind for kind, _ in await shop.commands()] == ["reserve-stock"]
    assert (await shop.place(cents=501)).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"order": "a b"}, "order"),
        ({"store": "Store 330"}, "store"),
        ({"lines": []}, "lines"),
        ({"lines": [{"product": 7, "quantity": 0}]}, "quantity"),
        ({"cents": -1}, "cents"),
        ({"card": "4711"}, "card"),
    ],
)
async def test_what_is_no_order_is_refused_with_the_field(shop: Shop, changes: dict[str, Any], field: str) -> None:
    refused = await shop.place(**changes)
    assert refused.status_code == 422
    assert field in refused.text


async def test_an_order_that_nobody_placed_is_not_found(shop: Shop) -> None:
    assert (await shop.http.get("/orders/o-9")).status_code == 404


async def test_an_order_that_is_reserved_and_paid_is_confirmed(shop: Shop) -> None:
    await shop.place()
    await shop.reserve()
    assert await shop.status() == ("reserved", None)
    stand_in = StandIn(StandInSettings())
    while await payments(shop, stand_in).settle():
        pass
    assert await shop.status() == ("confirmed", None)
    assert await shop.events() == ["order-placed", "payment-taken", "order-confirmed"]
    assert [tuple(each) for each in stand_in.accounts().values()] == [(500, 1, 0)]
    emitted = await shop.core.rows("select kind, cause from forebay_outbox where cause like 'payment:%' order by cause")
    assert [(row["kind"], row["cause"].split("/")[0], row["cause"].split("/")[2]) for row in emitted] == [
        ("payment-taken", "payment:o-1:taken", "0"),
        ("order-confirmed", "payment:o-1:taken", "1"),
    ], "a restored store that hears it again has no second effect (B5)"


async def test_a_store_that_has_too_little_ends_the_order(shop: Shop) -> None:
    await shop.place()
    (_, command), *_ = await shop.commands()
    await shop.answer(StockRefused(order="o-1", short=LINES), command)
    assert await shop.status() == ("cancelling", "the store has too little of it")
    await shop.release()
    assert await shop.status() == ("cancelled", "the store has too little of it")
    assert not await shop.core.rows("select 1 from payment")


async def test_a_store_that_does_not_answer_is_told_to_keep_nothing_after_it_was_told_to_keep(shop: Shop) -> None:
    await shop.place()
    shop.later = timedelta(minutes=11)
    assert await shop.timers.fire_due() == 1
    assert [kind for kind, _ in await shop.commands()] == ["reserve-stock", "release-stock"]
    await shop.reserve()  # it was offline, and answers in order
    await shop.release()
    assert await shop.status() == ("cancelled", "the store did not answer in time")


async def test_a_declined_payment_returns_the_stock(shop: Shop) -> None:
    await shop.place()
    await shop.reserve()
    stand_in = StandIn(StandInSettings(declines=1.0))
    while await payments(shop, stand_in).settle():
        pass
    await shop.release()
    assert await shop.status() == ("cancelled", "the card was declined")
    assert all(account.charges == account.returns for account in stand_in.accounts().values())


async def test_a_payment_that_takes_too_long_is_returned_whether_or_not_it_was_taken(shop: Shop) -> None:
    stand_in = StandIn(StandInSettings())

    class Silent:
        """Does what it is asked and never says so."""

        async def charge(self, key: str, cents: int, answer: Answer) -> None:  # noqa: ARG002
            async def nowhere(_: object) -> None: ...

            await stand_in.charge(key, cents, nowhere)
            raise ProviderError("no answer")

        refund = stand_in.refund

    await shop.place()
    await shop.reserve()
    assert await Payments(Silent(), shop.core.store, OrderSettings()).settle()
    shop.later = timedelta(minutes=11)
    await shop.timers.fire_due()
    while await payments(shop, stand_in).settle():
        pass
    await shop.release()
    assert await shop.status() == ("cancelled", "the payment took too long")
    assert [tuple(each) for each in stand_in.accounts().values()] == [(500, 1, 1)]


async def test_an_answer_of_the_provider_counts_once(shop: Shop) -> None:
    await shop.place()
    await shop.reserve()
    for _ in range(2):
        await shop.core.store.write(answered, "o-1", Taken())
    assert (await shop.events()).count("payment-taken") == 1
    assert await shop.status() == ("confirmed", None)


async def test_a_provider_that_fails_is_asked_again_and_charges_once(shop: Shop, tmp_path: Path) -> None:
    await shop.place()
    await shop.reserve()
    stand_in = StandIn(StandInSettings(accounts=str(tmp_path / "bank.db"), fails=0.5, twice=0.5))
    asked = payments(shop, stand_in)
    for _ in range(50):
        await asked.settle()
        await shop.core.store.write(lambda tx: tx.execute("update payment set next_at = 0"))
    assert await shop.status() == ("confirmed", None)
    assert [tuple(each) for each in stand_in.accounts().values()] == [(500, 1, 0)]


def test_a_refund_before_its_charge_lets_the_charge_come_to_nothing() -> None:
    stand_in = StandIn(StandInSettings())
    told: list[object] = []

    async def tell(outcome: object) -> None:
        told.append(msgspec.to_builtins(outcome))

    async def both() -> None:
        await stand_in.refund("o-1", tell)
        await stand_in.charge("o-1", 500, tell)

    asyncio.run(both())
    assert told == [{"cents": 0}, {"reason": "the card was declined"}]
    assert [tuple(each) for each in stand_in.accounts().values()] == [(0, 0, 0)]


async def test_the_story_of_an_order_tells_why_it_was_cancelled(shop: Shop) -> None:
    await shop.place()
    shop.later = timedelta(minutes=11)
    await shop.timers.fire_due()
    told = await shop.core.store.read(story, "click-and-collect", "o-1")
    assert [each.step for each in told] == ["placed", "no_answer"]
    assert "gave up: the store did not answer in time" in told[-1].did


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), count=st.integers(1, 4))
async def test_every_order_ends_and_stock_and_money_agree(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    """The store keeps what it was told in order; the provider fails, is late, and repeats."""
    folder = tmp_path_factory.mktemp("shop")
    async with open_core(folder, ORDERS) as core, client_of(application({ORDERS: core})) as client:
        shop = Shop(core, client)
        stand_in = StandIn(StandInSettings(accounts=str(folder / "bank.db"), declines=0.3, fails=0.3, twice=0.3))
        asked = payments(shop, stand_in)
        for number in range(count):
            await shop.place(f"o-{number}")
        kept: set[str] = set()
        done = 0
        for _ in range(200):
            match data.draw(st.sampled_from(["store", "store", "provider", "provider", "time"])):
                case "store":
                    commands = (await _sent(core))[done : done + 1]
                    for kind, command, order in commands:
                        done += 1
                        if kind == "release-stock":
                            kept.discard(order)
                            await shop.answer(StockReleased(order=order, lines=LINES), command)
                        elif data.draw(st.booleans()):
                            kept.add(order)
                            await shop.answer(StockReserved(order=order, lines=LINES, until=UNTIL), command)
                        else:
                            await shop.answer(StockRefused(order=order, short=LINES), command)
                case "provider":
                    await core.store.write(lambda tx: tx.execute("update payment set next_at = 0"))
                    await asked.settle()
                case "time":
                    if data.draw(st.integers(0, 5)) == 0:
                        shop.later += timedelta(minutes=11)
                        await shop.timers.fire_due()
            ended = [status for status, _ in [await shop.status(f"o-{number}") for number in range(count)]]
            if set(ended) <= {"confirmed", "cancelled"} and done == len(await _sent(core)):
                break
        else:  # whatever has not ended by now ends when all answer
            pytest.fail(f"not ended: {ended}")
        confirmed = {f"o-{number}" for number, status in enumerate(ended) if status == "confirmed"}
        paid = {key for key, account in stand_in.accounts().items() if account.charges > account.returns}
        assert kept == confirmed == paid


async def _sent(core: Core) -> list[tuple[str, str, str]]:
    rows = await core.rows(
        "select r.kind, e.epoch || '-' || r.sequence as id, r.key from forebay_outbox r"
        " join forebay_epoch e on e.id = r.epoch join forebay_origin o on o.id = e.origin"
        " where o.destination <> '' order by r.hlc"
    )
    return [(row["kind"], row["id"], row["key"]) for row in rows]


async def test_accounts_that_another_process_has_locked_do_not_stop_the_service(tmp_path: Path) -> None:
    stand_in = StandIn(StandInSettings(accounts=str(tmp_path / "bank.db")))
    told = anyio.Event()

    async def tell(_: object) -> None:
        told.set()

    other = sqlite3.connect(tmp_path / "bank.db", isolation_level=None)
    other.execute("begin immediate")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stand_in.charge, "o-1", 500, tell)
        await anyio.wait_all_tasks_blocked()  # it waits for the lock, and this goes on
        assert not told.is_set()
        other.execute("rollback")
    assert told.is_set()
    other.close()


def test_the_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="answer_within"):
        OrderSettings(answer_within=0)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"declines": 2.0}, StandInSettings)
    with pytest.raises(sqlite3.OperationalError):
        StandIn(StandInSettings(accounts="/nowhere/bank.db"))
