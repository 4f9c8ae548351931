"""The one event of the benchmarks, and the effect that it has in the core."""

from __future__ import annotations

from forebay import Event

EFFECT = "insert into effect (node, number, cents) values (:node, :number, :cents)"
"""A row for each time that an event takes effect, and nothing that would refuse a second one: the check counts them."""


class Metered(Event, service="meter", kind="metered", key="meter"):
    """One reading; numbers are given out once over all nodes of a run."""

    meter: str
    number: int
    cents: int
