"""What the till tells: sales as they were rung up."""

from __future__ import annotations

from typing import Annotated

import msgspec

from forebay import Event

# What 64 bits hold, and money of which the sum over nine million sales still fits them: a database keeps no more.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Cents = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Line(msgspec.Struct, frozen=True):
    """One line of a sale; ``cents`` is the line's total."""

    product: Number
    quantity: Number
    cents: Cents


class SaleRecorded(Event, service="till", kind="sale-recorded", version=1, lane="ledger", key="basket"):
    """A sale was rung up; it happened at the event's time."""

    basket: str
    household: Number
    lines: list[Line]
    cents: Cents
