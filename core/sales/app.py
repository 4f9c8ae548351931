"""What the stores have sold, kept up to date by the tills' events: by store, day, hour, department and product.

The totals are sums, so that one upsert adds a whole batch of sales of a node or a product. They follow from the events
alone: they are rebuilt from the archive when the read model gets another version.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

from litestar.params import FromPath, FromQuery, QueryParameter

from contracts.till import SaleRecorded
from core.sales.departments import department_of
from core.sales.queries import (
    Days,
    Departments,
    Hours,
    Products,
    ProductTotal,
    Stores,
    StoreTotal,
    all_stores,
    days_of,
    departments_of,
    hours_of,
    one_product,
    one_store,
    products_after,
)
from core.sales.totals import Totals
from forebay import Message, Service, Transaction, UnitOfWork, UnitStore
from forebay.identity import NAME
from forebay.problems import ProblemError, invalid, phrase
from forebay.projection import version_in_use

PRODUCTS = 2
"""The version of the read model since which there are hours, departments and products."""

MAX_PAGE = 1000
"""Products of one page, at most."""

MAX_NUMBER = 2**63 - 1
"""The greatest number of a product."""

sales = Service("sales", projection=PRODUCTS)


@sales.on(SaleRecorded, batch=True)
def add_up(tx: UnitOfWork, recorded: list[SaleRecorded], messages: list[Message]) -> None:
    """Add sales to the totals; each counts for the UTC day and hour in which it happened."""
    totals = Totals()
    for sale, message in zip(recorded, messages, strict=True):
        totals.add(sale, message.node, message.time)
    totals.write(tx)


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


@sales.get("/hours", problems=(422, 503))
async def list_hours(
    store: UnitStore, node: FromQuery[str], day: Annotated[str, QueryParameter(description="A UTC day, YYYY-MM-DD.")]
) -> Hours:
    """Return what a node has sold in each UTC hour of a day.

    503 while the read model in use has no hours yet, which is so until it was rebuilt.
    """
    wanted = _node(node), _day(day)

    def hours(tx: Transaction) -> Hours:
        _check_built(tx)
        return Hours(*wanted, hours_of(tx, *wanted))

    return await store.read(hours)


@sales.get("/departments", problems=(422, 503))
async def list_departments(store: UnitStore, node: FromQuery[str]) -> Departments:
    """Return what a node has sold of each department; 503 while the read model in use has none yet."""
    wanted = _node(node)

    def found(tx: Transaction) -> Departments:
        _check_built(tx)
        return Departments(wanted, departments_of(tx, wanted))

    return await store.read(found)


@sales.get("/products", problems=(422, 503))
async def list_products(
    store: UnitStore,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before.")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Products of a page, at most.")] = 100,
) -> Products:
    """Return what all nodes have sold of each product, by number, a page at a time; 503 while there are none yet."""
    behind = _cursor(after)

    def found(tx: Transaction) -> Products:
        _check_built(tx)
        rows = products_after(tx, behind, limit + 1)
        page = [ProductTotal(product, department_of(product), *amounts) for product, *amounts in rows[:limit]]
        return Products(page, str(page[-1].product) if len(rows) > limit else None)

    return await store.read(found)


@sales.get("/products/{product:str}", problems=(404, 422, 503))
async def show_product(store: UnitStore, product: FromPath[str]) -> ProductTotal:
    """Return what all nodes have sold of one product; 404 for one that nobody has bought yet."""
    number = _number(product, "product")

    def found(tx: Transaction) -> tuple[int, int, int] | None:
        _check_built(tx)
        return one_product(tx, number)

    amounts = await store.read(found)
    if amounts is None:
        raise ProblemError(404, phrase(404), f"no sale of product {number} has arrived", field="product")
    return ProductTotal(number, department_of(number), *amounts)


def _check_built(tx: Transaction) -> None:
    """Refuse to show totals that would lack what was sold before this release."""
    if version_in_use(tx) < PRODUCTS:
        detail = "these totals are not complete yet: `forebay projection rebuild sales` makes them"
        raise ProblemError(503, phrase(503), detail)


def _node(name: str) -> str:
    if not NAME.fullmatch(name):
        raise invalid(f"{name!r} is not a node's name", "node")
    return name


def _day(text: str) -> str:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise invalid(f"{text!r} is not a day, YYYY-MM-DD", "day") from None
    if day.isoformat() != text:
        raise invalid(f"{text!r} is not a day, YYYY-MM-DD", "day")
    return text


def _cursor(text: str | None) -> int:
    return -1 if text is None else _number(text, "after")


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_NUMBER):
        raise invalid(f"{text!r} is not a product's number", field)
    return int(text)
