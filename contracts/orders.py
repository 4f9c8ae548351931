"""What the orders tell: click and collect, from its placing to its end."""

from __future__ import annotations

from typing import Annotated

import msgspec

from contracts.stock import StockLine
from forebay import Event

Cents = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class OrderPlaced(Event, service="orders", kind="order-placed", key="order"):
    """A customer wants to collect these pieces at a store; ``store`` is the node there."""

    order: str
    store: str
    lines: list[StockLine]
    cents: Cents


class PaymentTaken(Event, service="orders", kind="payment-taken", key="order"):
    """The provider has the order's money."""

    order: str
    cents: Cents


class PaymentDeclined(Event, service="orders", kind="payment-declined", key="order"):
    """The provider does not take the order's money, and says why."""

    order: str
    reason: str


class PaymentReturned(Event, service="orders", kind="payment-returned", key="order"):
    """Nothing of the order's money is with the provider any more; ``cents`` is what went back."""

    order: str
    cents: Cents


class OrderConfirmed(Event, service="orders", kind="order-confirmed", key="order"):
    """The pieces are kept at the store and paid for: the customer can come."""

    order: str


class OrderCancelled(Event, service="orders", kind="order-cancelled", key="order"):
    """The order came to nothing: nothing is kept for it, and nothing is paid."""

    order: str
    reason: str
