"""What the cold chain tells: temperatures of fridges as they were read, and alarms."""

from __future__ import annotations

from typing import Annotated

import msgspec

from forebay import Event

MilliDegrees = Annotated[int, msgspec.Meta(ge=-273_150, le=1_000_000)]
"""Thousandths of a degree Celsius: sums and comparisons of integers are exact."""


class FridgeRead(Event, service="coldchain", kind="fridge-read", version=1, lane="telemetry", key="fridge"):
    """A fridge's temperature was read; it happened at the event's time."""

    fridge: str
    milli_degrees: MilliDegrees


class AlarmRaised(Event, service="coldchain", kind="alarm-raised", version=1, lane="ledger", key="fridge"):
    """A fridge became warmer than its limit; it happened at the event's time, that of the reading."""

    fridge: str
    milli_degrees: MilliDegrees
    max_milli_degrees: MilliDegrees


class AlarmCleared(Event, service="coldchain", kind="alarm-cleared", version=1, lane="ledger", key="fridge"):
    """A fridge is as cold again as its limit and hysteresis ask; it happened at the event's time.

    The limit is null where it was taken away.
    """

    fridge: str
    milli_degrees: MilliDegrees
    max_milli_degrees: MilliDegrees | None
