"""What the totals are made of: sales added up in memory, and one upsert for each total that a batch touches.

The statements run with sorted keys: several readers that write the same totals take their locks in one order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from contracts.till import Line, SaleRecorded
from core.sales.departments import department_of
from forebay import UnitOfWork

MAX_UNITS = 10**9
"""Units of one line: with more of them the sums of nine thousand million lines would leave 64 bits."""

_SALES = "sales", "lines", "cents"
_LINES = "lines", "units", "cents"


def _upsert(table: str, keys: tuple[str, ...], sums: tuple[str, ...]) -> str:
    names = ", ".join((*keys, *sums))
    values = ", ".join(f":{name}" for name in (*keys, *sums))
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
    return f"insert into {table} ({names}) values ({values}) on conflict ({', '.join(keys)}) do update set {added}"


_TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "store_total": (("node",), _SALES),
    "day_total": (("node", "day"), _SALES),
    "hour_total": (("node", "hour"), _SALES),
    "department_total": (("node", "department"), _LINES),
    "product_total": (("product",), _LINES),
}
_UPSERTS = {table: _upsert(table, keys, sums) for table, (keys, sums) in _TABLES.items()}


class Totals:
    """The sums of one batch of sales."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[tuple[Any, ...], list[int]]] = {table: {} for table in _TABLES}

    def add(self, sale: SaleRecorded, node: str, at: datetime) -> None:
        """Count one sale in; it happened at ``at``, which is aware.

        Raises:
            ValueError: a line has more than ``MAX_UNITS`` units.
        """
        moment = at.astimezone(UTC)
        amounts = 1, len(sale.lines), sale.cents
        self._add("store_total", (node,), amounts)
        self._add("day_total", (node, moment.date().isoformat()), amounts)
        self._add("hour_total", (node, moment.strftime("%Y-%m-%dT%H")), amounts)
        for line in sale.lines:
            self._add_line(node, line)

    def write(self, tx: UnitOfWork) -> None:
        """Add the sums to the totals."""
        for table, sums in self._sums.items():
            names = (*_TABLES[table][0], *_TABLES[table][1])
            rows = [dict(zip(names, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
            tx.executemany(_UPSERTS[table], rows)

    def _add_line(self, node: str, line: Line) -> None:
        if line.quantity > MAX_UNITS:
            raise ValueError(f"{line.quantity} units of product {line.product} are more than any sum of lines can hold")
        amounts = 1, line.quantity, line.cents
        self._add("product_total", (line.product,), amounts)
        self._add("department_total", (node, department_of(line.product)), amounts)

    def _add(self, table: str, key: tuple[Any, ...], amounts: tuple[int, int, int]) -> None:
        sums = self._sums[table].setdefault(key, [0, 0, 0])
        for at, amount in enumerate(amounts):
            sums[at] += amount
