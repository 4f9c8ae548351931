"""The shelf of one product: what its events come to, and what may happen to it next.

What somebody wants (to have pieces kept) can be refused. What has happened (a sale, a count) cannot: where it leaves
fewer pieces than should be there, that is told as a shortage.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec
from msgspec.structs import replace

from contracts.stock import (
    ShortageFound,
    UnitsCollected,
    UnitsCounted,
    UnitsReceived,
    UnitsReleased,
    UnitsReserved,
    UnitsSold,
)
from forebay import Aggregate, Event, Transaction
from forebay.aggregate import load

MOST_ON_HAND = 10**15
"""Pieces beyond which nothing is counted, either way: a till takes any number of 64 bits, and sums have to fit, too."""

MOST_KEPT = 10**9
"""Pieces of a product that can be kept for one order: what a line of an order may say."""


class Shelf(Aggregate, name="shelf"):
    """The stock of one product; its id is the product's number."""

    on_hand: int = 0
    reserved: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def product(self) -> int:
        """The product's number."""
        return int(self.id)

    @property
    def kept(self) -> int:
        """Pieces that are kept for orders."""
        return sum(self.reserved.values())

    @property
    def available(self) -> int:
        """Pieces that can be promised; below zero where pieces are missing."""
        return self.on_hand - self.kept

    def lacking(self, order: str, quantity: int) -> int:
        """Return how many pieces are missing to keep ``quantity`` for an order; 0 where there are enough."""
        there = max(0, min(MOST_KEPT, self.available + self.reserved.get(order, 0)))
        return max(0, min(MOST_KEPT, quantity - there))

    def receive(self, quantity: int, reference: str) -> list[Event]:
        """Decide on a delivery."""
        return [UnitsReceived(product=self.product, quantity=quantity, reference=reference)]

    def sell(self, quantity: int, basket: str) -> list[Event]:
        """Tell of a sale, and of what is missing after it."""
        sold = UnitsSold(product=self.product, quantity=quantity, basket=basket)
        return [sold, *self._shortage(self.on_hand - quantity)]

    def count(self, counted: int, reference: str) -> list[Event]:
        """Tell of a count, and of what is missing by it."""
        told = UnitsCounted(product=self.product, counted=counted, reference=reference)
        return [told, *self._shortage(counted)]

    def reserve(self, order: str, quantity: int, until: datetime) -> list[Event]:
        """Decide to keep pieces for an order.

        Raises:
            ValueError: there are too few: see ``lacking``.
        """
        if self.lacking(order, quantity):
            raise ValueError(f"product {self.id}: {quantity} are wanted, {self.available} are available")
        return [UnitsReserved(product=self.product, order=order, quantity=quantity, until=until)]

    def release(self, order: str) -> list[Event]:
        """Decide to keep nothing for an order any more; nothing where nothing was."""
        return [
            UnitsReleased(product=self.product, order=order, quantity=quantity) for quantity in self._kept_for(order)
        ]

    def collect(self, order: str) -> list[Event]:
        """Tell that what was kept for an order has left; nothing where nothing was."""
        return [
            UnitsCollected(product=self.product, order=order, quantity=quantity) for quantity in self._kept_for(order)
        ]

    def _kept_for(self, order: str) -> Iterable[int]:
        return [self.reserved[order]] if order in self.reserved else []

    def _shortage(self, on_hand: int) -> list[Event]:
        """Return the shortage that fewer pieces bring about, where more are missing than before."""
        missing = self.kept - on_hand
        if missing <= max(0, -self.available):
            return []
        on_hand, missing = _bounded(on_hand), _bounded(missing)
        return [ShortageFound(product=self.product, on_hand=on_hand, reserved=self.kept, missing=missing)]


def find_shelf(tx: Transaction, product: int) -> Shelf:
    """Return the shelf of a product as it is; an empty one where nothing is known of it."""
    return load(tx, Shelf, str(product))


@Shelf.applies(UnitsReceived)
def _received(shelf: Shelf, event: UnitsReceived) -> Shelf:
    return replace(shelf, on_hand=_bounded(shelf.on_hand + event.quantity))


@Shelf.applies(UnitsSold)
def _sold(shelf: Shelf, event: UnitsSold) -> Shelf:
    return replace(shelf, on_hand=_bounded(shelf.on_hand - event.quantity))


@Shelf.applies(UnitsReserved)
def _reserved(shelf: Shelf, event: UnitsReserved) -> Shelf:
    return replace(shelf, reserved={**shelf.reserved, event.order: event.quantity})


@Shelf.applies(UnitsReleased)
def _released(shelf: Shelf, event: UnitsReleased) -> Shelf:
    return replace(shelf, reserved=_without(shelf, event.order))


@Shelf.applies(UnitsCollected)
def _collected(shelf: Shelf, event: UnitsCollected) -> Shelf:
    on_hand = _bounded(shelf.on_hand - event.quantity)
    return replace(shelf, on_hand=on_hand, reserved=_without(shelf, event.order))


@Shelf.applies(UnitsCounted)
def _counted(shelf: Shelf, event: UnitsCounted) -> Shelf:
    return replace(shelf, on_hand=_bounded(event.counted))


@Shelf.applies(ShortageFound)
def _short(shelf: Shelf, _: ShortageFound) -> Shelf:
    return shelf  # it says what the event before it came to


def _without(shelf: Shelf, order: str) -> dict[str, int]:
    return {name: quantity for name, quantity in shelf.reserved.items() if name != order}


def _bounded(pieces: int) -> int:
    return max(-MOST_ON_HAND, min(MOST_ON_HAND, pieces))
