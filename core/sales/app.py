"""What every store has sold, kept up to date by the tills' events.

The totals are sums, so that one upsert adds a whole batch of sales of a node or a day.
"""

from __future__ import annotations

from datetime import UTC

import msgspec
from litestar.params import FromPath, FromQuery

from contracts.till import SaleRecorded
from forebay import Message, Service, Transaction, UnitOfWork, UnitStore
from forebay.identity import NAME
from forebay.problems import ProblemError, invalid, phrase

sales = Service("sales")

_ADD_TO_STORE = """
    insert into store_total as t (node, sales, lines, cents) values (:node, :sales, :lines, :cents)
    on conflict (node) do update set
      sales = t.sales + excluded.sales, lines = t.lines + excluded.lines, cents = t.cents + excluded.cents"""

_ADD_TO_DAY = """
    insert into day_total as t (node, day, sales, lines, cents) values (:node, :day, :sales, :lines, :cents)
    on conflict (node, day) do update set
      sales = t.sales + excluded.sales, lines = t.lines + excluded.lines, cents = t.cents + excluded.cents"""


class StoreTotal(msgspec.Struct, frozen=True):
    """What one node has sold in all."""

    node: str
    sales: int
    lines: int
    cents: int


class DayTotal(msgspec.Struct, frozen=True):
    """What one node has sold on one UTC day, written YYYY-MM-DD."""

    day: str
    sales: int
    lines: int
    cents: int


class Stores(msgspec.Struct, frozen=True):
    """All nodes that have sold something, by name."""

    stores: list[StoreTotal]


class Days(msgspec.Struct, frozen=True):
    """The days on which a node has sold something, oldest first."""

    node: str
    days: list[DayTotal]


class Sum:
    """Sales that are added up before they are written."""

    __slots__ = ("cents", "lines", "sales")

    def __init__(self) -> None:
        self.sales = self.lines = self.cents = 0

    def add(self, sale: SaleRecorded) -> None:
        """Count one sale in."""
        self.sales += 1
        self.lines += len(sale.lines)
        self.cents += sale.cents

    def row(self, **key: str) -> dict[str, str | int]:
        """Return the parameters of the statement that writes it."""
        return {**key, "sales": self.sales, "lines": self.lines, "cents": self.cents}


@sales.on(SaleRecorded, batch=True)
def add_up(tx: UnitOfWork, recorded: list[SaleRecorded], messages: list[Message]) -> None:
    """Add sales to the totals of their nodes and of the UTC days on which they happened."""
    stores: dict[str, Sum] = {}
    days: dict[tuple[str, str], Sum] = {}
    for sale, message in zip(recorded, messages, strict=True):
        day = message.time.astimezone(UTC).date().isoformat()
        stores.setdefault(message.node, Sum()).add(sale)
        days.setdefault((message.node, day), Sum()).add(sale)
    tx.executemany(_ADD_TO_STORE, [total.row(node=node) for node, total in stores.items()])
    tx.executemany(_ADD_TO_DAY, [total.row(node=node, day=day) for (node, day), total in days.items()])


@sales.get("/stores", problems=(503,))
async def list_stores(store: UnitStore) -> Stores:
    """Return what every node has sold."""
    return Stores(await store.read(all_stores))


@sales.get("/stores/{node:str}", problems=(404, 422, 503))
async def show_store(store: UnitStore, node: FromPath[str]) -> StoreTotal:
    """Return what one node has sold; 404 for a node that has sold nothing yet."""
    total = await store.read(one_store, _node(node))
    if total is None:
        raise ProblemError(404, phrase(404), f"no sale of node {node!r} has arrived", field="node")
    return total


@sales.get("/days", problems=(422, 503))
async def list_days(store: UnitStore, node: FromQuery[str]) -> Days:
    """Return what a node has sold on each UTC day; no days for a node that has sold nothing yet."""
    return Days(node, await store.read(days_of, _node(node)))


def all_stores(tx: Transaction) -> list[StoreTotal]:
    """Return the totals of all nodes, by name."""
    rows = tx.execute("select node, sales, lines, cents from store_total order by node")
    return [StoreTotal(row["node"], row["sales"], row["lines"], row["cents"]) for row in rows]


def one_store(tx: Transaction, node: str) -> StoreTotal | None:
    """Return the totals of one node, or None if it has sold nothing."""
    rows = tx.execute("select node, sales, lines, cents from store_total where node = :node", node=node)
    return StoreTotal(node, rows[0]["sales"], rows[0]["lines"], rows[0]["cents"]) if rows else None


def days_of(tx: Transaction, node: str) -> list[DayTotal]:
    """Return the totals of a node's days, oldest first."""
    rows = tx.execute("select day, sales, lines, cents from day_total where node = :node order by day", node=node)
    return [DayTotal(row["day"], row["sales"], row["lines"], row["cents"]) for row in rows]


def _node(name: str) -> str:
    if not NAME.fullmatch(name):
        raise invalid(f"{name!r} is not a node's name", "node")
    return name
