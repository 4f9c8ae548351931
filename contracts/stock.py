"""The stock of a store: what the core may ask of it, what it answers, and what happens to each product."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from forebay import Command, Event

# What 64 bits hold: a database keeps no more.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Quantity = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class StockLine(msgspec.Struct, frozen=True):
    """So many pieces of one product."""

    product: Number
    quantity: Quantity


class ReserveStock(Command, service="stock", kind="reserve-stock", key="order"):
    """Keep these pieces for an order until a time; all of them, or none."""

    order: str
    lines: list[StockLine]
    until: Time


class ReleaseStock(Command, service="stock", kind="release-stock", key="order"):
    """Keep nothing for an order any more; one for which nothing is kept is released as well."""

    order: str


class CollectOrder(Command, service="stock", kind="collect-order", key="order"):
    """The customer has taken what was kept for the order: it leaves the stock."""

    order: str


class StockReserved(Event, service="stock", kind="stock-reserved", key="order"):
    """Everything that the order asked for is kept for it."""

    order: str
    lines: list[StockLine]
    until: Time


class StockRefused(Event, service="stock", kind="stock-refused", key="order"):
    """Nothing is kept for the order; ``short`` is what there was too little of, with the pieces that are missing."""

    order: str
    short: list[StockLine]


class StockReleased(Event, service="stock", kind="stock-released", key="order"):
    """Nothing is kept for the order any more; ``lines`` is what was."""

    order: str
    lines: list[StockLine]


class OrderCollected(Event, service="stock", kind="order-collected", key="order"):
    """What was kept for the order has left the stock; no lines where nothing was kept any more."""

    order: str
    lines: list[StockLine]


# What happens to the stock of one product, in its order: the history from which the node tells what is there.


class UnitsReceived(Event, service="stock", kind="units-received", key="product"):
    """Pieces came in; ``reference`` names the delivery."""

    product: Number
    quantity: Quantity
    reference: str


class UnitsSold(Event, service="stock", kind="units-sold", key="product"):
    """Pieces went over the till: a fact, even where there were fewer."""

    product: Number
    quantity: Number
    basket: str


class UnitsReserved(Event, service="stock", kind="units-reserved", key="product"):
    """So many pieces are kept for an order; it says how many in all, not how many more."""

    product: Number
    order: str
    quantity: Quantity
    until: Time


class UnitsReleased(Event, service="stock", kind="units-released", key="product"):
    """No pieces are kept for an order any more; ``quantity`` is how many were."""

    product: Number
    order: str
    quantity: Quantity


class UnitsCollected(Event, service="stock", kind="units-collected", key="product"):
    """The pieces that were kept for an order left the stock."""

    product: Number
    order: str
    quantity: Quantity


class UnitsCounted(Event, service="stock", kind="units-counted", key="product"):
    """Somebody counted: so many pieces are there, whatever was thought; ``reference`` names the count."""

    product: Number
    counted: Number
    reference: str


class ShortageFound(Event, service="stock", kind="shortage-found", key="product"):
    """Fewer pieces are there than should be: more are kept for orders than are there, or more were sold than came in.

    It follows the event that brought it about, each time that more pieces are missing than before.
    """

    product: Number
    on_hand: int
    reserved: Number
    missing: Number
