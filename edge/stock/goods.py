"""Goods that come, go and are counted: what happens to a shelf whether or not anybody planned it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from contracts.stock import StockLine
from contracts.till import SaleRecorded
from edge.stock.shelf import Shelf, find_shelf
from forebay import Transaction, UnitOfWork
from forebay.aggregate import append, history_of, load
from forebay.errors import VersionConflictError


class Level(msgspec.Struct, frozen=True):
    """What there is of a product; ``available`` is below zero where pieces are missing.

    The version counts what happened to it; it is null for a time of the past.
    """

    product: int
    on_hand: int
    reserved: int
    available: int
    version: int | None


def level_of(shelf: Shelf) -> Level:
    """Return what a shelf says of itself."""
    return Level(shelf.product, shelf.on_hand, shelf.kept, shelf.available, shelf.version or None)


def receive(tx: UnitOfWork, lines: Iterable[StockLine], reference: str, at: datetime) -> list[Level]:
    """Take in a delivery; return the products as they are now, in the order of the lines."""
    return [_receive(tx, line, reference, at) for line in lines]


def sell(tx: UnitOfWork, sale: SaleRecorded, at: datetime) -> None:
    """Take a sale out of the stock; lines of nothing change nothing."""
    for line in sale.lines:
        if line.quantity:
            shelf = find_shelf(tx, line.product)
            append(tx, shelf, *shelf.sell(line.quantity, sale.basket), time=at)


def count(
    tx: UnitOfWork, product: int, counted: int, reference: str, at: datetime, version: int | None = None
) -> Level:
    """Set how many pieces are there.

    Args:
        tx: the unit of work.
        product: which.
        counted: how many.
        reference: names the count.
        at: when it was counted.
        version: the product's version when the counting began; what happened since then was or was not counted.

    Raises:
        VersionConflictError: the product has another version.
    """
    shelf = find_shelf(tx, product)
    if version is not None and version != shelf.version:
        raise VersionConflictError(f"product {product}", version, shelf.version)
    return level_of(append(tx, shelf, *shelf.count(counted, reference), time=at))


def find_level(tx: Transaction, product: int, at: datetime | None = None) -> Level | None:
    """Return what there is of a product, or was there at a time; None where nothing is known of it."""
    if not history_of(tx, Shelf, str(product), limit=1):
        return None
    return level_of(load(tx, Shelf, str(product), at=at))


def _receive(tx: UnitOfWork, line: StockLine, reference: str, at: datetime) -> Level:
    shelf = find_shelf(tx, line.product)
    return level_of(append(tx, shelf, *shelf.receive(line.quantity, reference), time=at))
