"""The stock of a store beside its till, run together as one process runs them, and asked by the core."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.stock import (
    CollectOrder,
    OrderCollected,
    ReleaseStock,
    ReserveStock,
    ShortageFound,
    StockLine,
    StockRefused,
    StockReleased,
    StockReserved,
    UnitsReceived,
    UnitsSold,
)
from edge.stock.app import stock
from edge.stock.goods import find_level, receive
from edge.stock.shelf import Shelf
from edge.till.app import NewLine, NewSale, record_sale, till
from forebay import Command, Event, Lane, Message, Service, UnitOfWork
from forebay.aggregate import history_of
from forebay.command import Destination
from forebay.jetstream.topology.registering import register
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import NODE, apply, connected, eventually, rows, serving
from tests.integration.together import followed_all, together

ROOT = Path(__file__).parents[2]
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
SCHEMAS = {
    name: (ROOT / "edge" / name / "migrations" / f"0001_{name}.sqlite.sql").read_text(encoding="utf-8")
    for name in ("till", "stock")
}


async def test_sales_of_the_till_move_the_shelves_once_each_across_a_restart(tmp_path: Path) -> None:
    sold = []
    for attempt in range(2):
        async with together(tmp_path, till, stock, schemas=SCHEMAS) as running:
            store = running["stock"].store
            if attempt == 0:
                await store.write(receive, [StockLine(7, 5)], "D-1", NOON)
            for number in range(2):
                lines = [NewLine(product=7, quantity=2, cents=100), NewLine(product=8, quantity=0, cents=0)]
                sale = NewSale(basket=f"b-{attempt}-{number}", household=1, at=NOON, lines=lines)
                sold.append((await running["till"].store.write(record_sale, sale)).sale.event)
            await followed_all(running["stock"], 2)
            level = await store.read(find_level, 7)
            entries = await store.read(history_of, Shelf, "7")
    assert level is not None
    assert (level.on_hand, level.available) == (-3, -3)
    assert [type(entry.event) for entry in entries] == [
        UnitsReceived,
        UnitsSold,
        UnitsSold,
        UnitsSold,
        ShortageFound,
        UnitsSold,
        ShortageFound,
    ]
    causes = [entry.cause for entry in entries if isinstance(entry.event, UnitsSold)]
    assert causes == [f"{event}/stock/0" for event in sold]


def buyers() -> Service:
    """A service of the core that asks stores for goods, and notes what they answer."""
    declared = Service("buyers", lanes=[Lane("ledger", budget="8MiB")])

    def note(tx: UnitOfWork, _: Event, message: Message) -> None:
        tx.execute("insert into answer (kind, cause) values (:kind, :cause)", kind=message.kind, cause=message.cause)

    for event in (StockReserved, StockRefused, StockReleased, OrderCollected):
        declared.on(event)(note)
    return declared


def ask(tx: UnitOfWork, command: Command) -> str:
    return tx.send(command, to=NODE)


async def test_what_the_core_asks_of_a_store_is_done_once_and_answered_with_the_command_as_the_cause(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    answers = "create table answer (id integer primary key, kind text not null, cause text);"
    until = datetime.now(UTC) + timedelta(days=1)
    async with connected(nats_server.url, node="core") as center, connected(nats_server.url, node=NODE) as edge:
        await apply(center, "buyers", services=["stock"])

        async def request(subject: str, body: bytes) -> bytes:
            return (await center.request(subject, body, timeout=5)).body

        await register(request, Destination(NODE, "stock"))
        async with (
            serving(buyers(), center, tmp_path, node="core", schema=answers) as core,
            together(tmp_path, till, stock, connection=edge, schemas=SCHEMAS) as node,
        ):
            await node["stock"].store.write(receive, [StockLine(7, 5)], "D-1", NOON)
            asked = [
                await core.store.write(ask, command)
                for command in (
                    ReserveStock(order="o-1", lines=[StockLine(7, 4)], until=until),
                    ReserveStock(order="o-2", lines=[StockLine(7, 2)], until=until),
                    CollectOrder(order="o-1"),
                    ReleaseStock(order="o-2"),
                )
            ]

            async def answered() -> bool:
                return len(await rows(core.store, "select id from answer")) == len(asked)

            await eventually(answered, 30)
            said = await rows(core.store, "select kind, cause from answer order by id")
            level = await node["stock"].store.read(find_level, 7)
    kinds = {cause.rpartition("/stock/")[0]: kind for kind, cause in said}
    assert kinds == dict(
        zip(asked, ["stock-reserved", "stock-refused", "order-collected", "stock-released"], strict=True)
    )
    assert level is not None
    assert (level.on_hand, level.reserved) == (1, 0)
