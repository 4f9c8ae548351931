"""What the cold watch tells: fridges that were too warm for too long."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from forebay import Event


class ExcursionDetected(Event, service="coldwatch", kind="excursion-detected", version=1, lane="ledger", key="fridge"):
    """A fridge was above the limit for longer than it may be; it happened when that time was over.

    Attributes:
        node: whose fridge it is.
        fridge: its name there.
        since: when it became too warm, to the minute.
        warmest: the highest reading until then, in thousandths of a degree Celsius.
        limit: what was allowed, likewise.
        minutes: for how long it was allowed.
    """

    node: str
    fridge: str
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    warmest: int
    limit: int
    minutes: int
