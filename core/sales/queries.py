"""What is read from the totals, and the forms that HTTP answers with."""

from __future__ import annotations

import msgspec

from forebay import Transaction


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


class HourTotal(msgspec.Struct, frozen=True):
    """What one node has sold in one UTC hour, written YYYY-MM-DDTHH."""

    hour: str
    sales: int
    lines: int
    cents: int


class DepartmentTotal(msgspec.Struct, frozen=True):
    """What one node has sold of one department; ``unknown`` where the reference does not know the product."""

    department: str
    lines: int
    units: int
    cents: int


class ProductTotal(msgspec.Struct, frozen=True):
    """What all nodes have sold of one product."""

    product: int
    department: str
    lines: int
    units: int
    cents: int


class Stores(msgspec.Struct, frozen=True):
    """All nodes that have sold something, by name."""

    stores: list[StoreTotal]


class Days(msgspec.Struct, frozen=True):
    """The days on which a node has sold something, oldest first."""

    node: str
    days: list[DayTotal]


class Hours(msgspec.Struct, frozen=True):
    """The hours of one UTC day in which a node has sold something, oldest first."""

    node: str
    day: str
    hours: list[HourTotal]


class Departments(msgspec.Struct, frozen=True):
    """The departments of which a node has sold something, by name."""

    node: str
    departments: list[DepartmentTotal]


class Products(msgspec.Struct, frozen=True):
    """A page of products, by number; ``next`` is the ``after`` of the next page, if there is one."""

    products: list[ProductTotal]
    next: str | None


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


def hours_of(tx: Transaction, node: str, day: str) -> list[HourTotal]:
    """Return the totals of the hours of a node's day, oldest first."""
    rows = tx.execute(
        "select hour, sales, lines, cents from hour_total"
        " where node = :node and hour >= :first and hour < :behind order by hour",
        node=node,
        first=f"{day}T",
        behind=f"{day}U",
    )
    return [HourTotal(row["hour"], row["sales"], row["lines"], row["cents"]) for row in rows]


def departments_of(tx: Transaction, node: str) -> list[DepartmentTotal]:
    """Return the totals of a node's departments, by name."""
    rows = tx.execute(
        "select department, lines, units, cents from department_total where node = :node order by department", node=node
    )
    return [DepartmentTotal(row["department"], row["lines"], row["units"], row["cents"]) for row in rows]


def products_after(tx: Transaction, after: int, limit: int) -> list[tuple[int, int, int, int]]:
    """Return up to ``limit`` products above a number: number, lines, units and cents, by number."""
    rows = tx.execute(
        "select product, lines, units, cents from product_total where product > :after order by product limit :limit",
        after=after,
        limit=limit,
    )
    return [(row["product"], row["lines"], row["units"], row["cents"]) for row in rows]


def one_product(tx: Transaction, product: int) -> tuple[int, int, int] | None:
    """Return lines, units and cents of one product, or None if nobody has bought it."""
    rows = tx.execute("select lines, units, cents from product_total where product = :product", product=product)
    return (rows[0]["lines"], rows[0]["units"], rows[0]["cents"]) if rows else None
