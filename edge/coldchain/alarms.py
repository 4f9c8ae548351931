"""Alarms: limits per fridge, and the alarms that were raised and cleared."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from contracts.coldchain import MilliDegrees
from edge.coldchain.judging import judge
from edge.coldchain.moments import moment
from edge.coldchain.readings import Fridge, FridgeState, find_fridge
from forebay import Transaction, UnitOfWork

DEFAULT_HYSTERESIS = 500
"""Thousandths of a degree below the limit at which an alarm is cleared: it would flutter at the limit itself."""


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How warm a fridge may become: above it the alarm is raised, ``hysteresis_milli_degrees`` below it is cleared.

    No limit is null.
    """

    fridge: Fridge
    max_milli_degrees: MilliDegrees | None
    hysteresis_milli_degrees: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = DEFAULT_HYSTERESIS


class Alarm(msgspec.Struct, frozen=True):
    """An alarm: when it was raised, by which temperature and limit, and when it was cleared."""

    fridge: str
    raised_at: datetime
    milli_degrees: int
    max_milli_degrees: int
    cleared_at: datetime | None


def set_limit(tx: UnitOfWork, limit: Limit) -> FridgeState:
    """Set a fridge's limit and judge its latest reading by it."""
    tx.execute(
        "insert into fridge (fridge, max_milli_degrees, hysteresis) values (:fridge, :limit, :hysteresis)"
        " on conflict (fridge) do update set max_milli_degrees = excluded.max_milli_degrees,"
        " hysteresis = excluded.hysteresis",
        fridge=limit.fridge,
        limit=limit.max_milli_degrees,
        hysteresis=limit.hysteresis_milli_degrees,
    )
    judge(tx, limit.fridge)
    found = find_fridge(tx, limit.fridge)
    if found is None:
        raise LookupError(f"{limit.fridge!r} was written and is not there")
    return found


def list_alarms(tx: Transaction, limit: int) -> list[Alarm]:
    """Return alarms, the latest first."""
    return [
        Alarm(
            row["fridge"],
            moment(row["raised_at"]),
            row["milli_degrees"],
            row["max_milli_degrees"],
            None if row["cleared_at"] is None else moment(row["cleared_at"]),
        )
        for row in tx.execute("select * from alarm order by id desc limit :limit", limit=limit)
    ]
