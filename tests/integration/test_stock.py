"""The till and the stock of a store, run together as one process runs them: sales move shelves, with no link at all."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from contracts.stock import ShortageFound, StockLine, UnitsReceived, UnitsSold
from edge.stock.app import stock
from edge.stock.goods import find_level, receive
from edge.stock.shelf import Shelf
from edge.till.app import NewLine, NewSale, record_sale, till
from forebay.aggregate import history_of
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
