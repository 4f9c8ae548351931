"""Reservations: pieces that are kept for an order until a time, of all its products or of none.

All that an order needs is on the same disk, so it is one transaction. Each product's shelf has its own events; the one
that answers for the whole order is told to whoever asked, be it the core or somebody in the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from contracts.stock import OrderCollected, StockLine, StockRefused, StockReleased, StockReserved
from edge.stock.shelf import Shelf, find_shelf
from forebay import Event, Transaction, UnitOfWork
from forebay.aggregate import append
from forebay.envelope import percent_decode, percent_encode
from forebay.timers import Timer, cancel_timer, set_timer

OWNER = "reservation"
"""Whose timers these are; the instance is the order, percent-encoded."""

_UNTIL = "until"


class Reservation(msgspec.Struct, frozen=True):
    """What is kept for an order, and until when."""

    order: str
    lines: list[StockLine]
    until: datetime


def find_reservation(tx: Transaction, order: str) -> Reservation | None:
    """Return what is kept for an order, or None."""
    rows = tx.execute("select product, quantity, until from kept where order_id = :id order by product", id=order)
    if not rows:
        return None
    lines = [StockLine(row["product"], row["quantity"]) for row in rows]
    return Reservation(order, lines, datetime.fromtimestamp(rows[0]["until"] / 1000, UTC))


def reserve(
    tx: UnitOfWork, order: str, lines: Iterable[StockLine], until: datetime, now: datetime
) -> Reservation | list[StockLine]:
    """Keep pieces for an order in place of what was kept for it before, and answer StockReserved.

    Returns:
        what is kept. Where something is short or ``until`` is past, nothing is kept for the order any more, the answer
        is StockRefused, and what is missing is returned.
    """
    wanted = Counter[int]()
    for line in lines:
        wanted[line.product] += line.quantity
    shelves = [find_shelf(tx, product) for product in sorted(wanted)]
    missing = [(shelf.product, shelf.lacking(order, wanted[shelf.product])) for shelf in shelves]
    short = [StockLine(product, lacking) for product, lacking in missing if lacking]
    until = datetime.fromtimestamp(round(until.timestamp() * 1000) / 1000, UTC)
    if short or not shelves or until <= now:
        _let_go(tx, order, Shelf.release)
        tx.emit(StockRefused(order=order, short=short))
        return short
    before = find_reservation(tx, order)
    gone = [line.product for line in before.lines if line.product not in wanted] if before else []
    _move(tx, order, [find_shelf(tx, product) for product in gone], Shelf.release)
    for shelf in shelves:
        append(tx, shelf, *shelf.reserve(order, wanted[shelf.product], until))
    kept = Reservation(order, [StockLine(shelf.product, wanted[shelf.product]) for shelf in shelves], until)
    _write(tx, kept)
    tx.emit(StockReserved(order=order, lines=kept.lines, until=until))
    return kept


def release(tx: UnitOfWork, order: str) -> list[StockLine]:
    """Keep nothing for an order any more, answer StockReleased, and return what was kept."""
    lines = _let_go(tx, order, Shelf.release)
    tx.emit(StockReleased(order=order, lines=lines))
    return lines


def collect(tx: UnitOfWork, order: str) -> list[StockLine]:
    """Take what was kept for an order out of the stock, answer OrderCollected, and return what it was."""
    lines = _let_go(tx, order, Shelf.collect)
    tx.emit(OrderCollected(order=order, lines=lines))
    return lines


def expire(tx: UnitOfWork, timer: Timer) -> None:
    """Release an order that was not collected in time."""
    release(tx, percent_decode(timer.instance))


def _write(tx: UnitOfWork, kept: Reservation) -> None:
    tx.execute("delete from kept where order_id = :id", id=kept.order)
    until = round(kept.until.timestamp() * 1000)
    tx.executemany(
        "insert into kept (order_id, product, quantity, until) values (:id, :product, :quantity, :until)",
        [{"id": kept.order, "product": line.product, "quantity": line.quantity, "until": until} for line in kept.lines],
    )
    set_timer(tx, OWNER, percent_encode(kept.order), _UNTIL, kept.until)


def _let_go(tx: UnitOfWork, order: str, decide: Callable[[Shelf, str], Sequence[Event]]) -> list[StockLine]:
    kept = find_reservation(tx, order)
    if kept is None:
        return []
    _move(tx, order, [find_shelf(tx, line.product) for line in kept.lines], decide)
    tx.execute("delete from kept where order_id = :id", id=order)
    cancel_timer(tx, OWNER, percent_encode(order), _UNTIL)
    return kept.lines


def _move(
    tx: UnitOfWork, order: str, shelves: Iterable[Shelf], decide: Callable[[Shelf, str], Sequence[Event]]
) -> None:
    for shelf in shelves:
        append(tx, shelf, *decide(shelf, order))
