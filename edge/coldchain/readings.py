"""Readings: recorded once each, told to the core, and what a fridge's latest one is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from contracts.coldchain import FridgeRead, MilliDegrees
from edge.coldchain.judging import judge
from edge.coldchain.moments import microseconds, moment
from forebay import Transaction, UnitOfWork
from forebay.problems import ProblemError, invalid
from forebay.transaction import Row

READINGS_KEPT = 10_000
"""Readings of a fridge that are kept, the latest to arrive: a week of one a minute. A repetition of these is known."""

PRUNED_EVERY = 100
"""Readings after which the oldest are looked for."""

MOST_AHEAD = timedelta(minutes=5)
"""How far the latest reading's time may be ahead of this machine's: above, any other reading is taken for later. One
fridge with a wrong clock must not silence its own alarm."""

# No slash: it is one segment of a path. No control characters: it is the ordering key of events.
Fridge = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^/\x00-\x1f\x7f-\x9f]+(?![\s\S])")]


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A temperature in thousandths of a degree Celsius; ``at`` has an offset from UTC."""

    fridge: Fridge
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    milli_degrees: MilliDegrees


class FridgeState(msgspec.Struct, frozen=True):
    """A fridge's latest reading, its limit, and since when its alarm is raised; null where there is none."""

    fridge: str
    at: datetime | None
    milli_degrees: int | None
    max_milli_degrees: int | None
    hysteresis_milli_degrees: int
    alarm_since: datetime | None


def record_readings(tx: UnitOfWork, readings: Sequence[Reading], now: datetime) -> tuple[list[str], int]:
    """Record readings and emit their events, each once; return all message ids, and how many are new.

    Raises:
        ProblemError: 409, a reading of that fridge and time is there with another temperature; 422, its time is out of
            range.
    """
    events, new = [], 0
    for index, reading in enumerate(readings):
        at = _in_range(reading, f"readings[{index}].at")
        rows = tx.execute(
            "select milli_degrees, event from reading where fridge = :fridge and at = :at", fridge=reading.fridge, at=at
        )
        if rows and rows[0]["milli_degrees"] != reading.milli_degrees:
            detail = f"{reading.fridge!r} was read at {reading.at.isoformat()} with {rows[0]['milli_degrees']}"
            raise ProblemError(409, "Conflict", detail, f"readings[{index}]")
        if rows:
            events.append(rows[0]["event"])
            continue
        events.append(_record(tx, reading, at, now))
        new += 1
    return events, new


def find_fridge(tx: Transaction, fridge: str) -> FridgeState | None:
    """Return a fridge as it stands, or None."""
    rows = tx.execute("select * from fridge where fridge = :fridge", fridge=fridge)
    return _state(rows[0]) if rows else None


def list_fridges(tx: Transaction) -> list[FridgeState]:
    """Return all fridges by name."""
    return [_state(row) for row in tx.execute("select * from fridge order by fridge")]


def _in_range(reading: Reading, field: str) -> int:
    try:
        return microseconds(reading.at)
    except OverflowError:
        detail = f"{reading.at.isoformat()} is no time in the years 1 to 9999 of UTC"
        raise invalid(detail, field) from None


def _record(tx: UnitOfWork, reading: Reading, at: int, now: datetime) -> str:
    event = FridgeRead(fridge=reading.fridge, milli_degrees=reading.milli_degrees)
    message_id = tx.emit(event, time=moment(at))
    (row,) = tx.execute(
        "insert into reading (fridge, at, milli_degrees, event) values (:fridge, :at, :milli_degrees, :event)"
        " returning id",
        fridge=reading.fridge,
        at=at,
        milli_degrees=reading.milli_degrees,
        event=message_id,
    )
    later = tx.execute(
        "insert into fridge (fridge, at, milli_degrees) values (:fridge, :at, :milli_degrees)"
        " on conflict (fridge) do update set at = excluded.at, milli_degrees = excluded.milli_degrees"
        " where fridge.at is null or excluded.at > fridge.at or fridge.at > :most returning 1",
        fridge=reading.fridge,
        at=at,
        milli_degrees=reading.milli_degrees,
        most=microseconds(now + MOST_AHEAD),
    )
    if later:  # an alarm is about now: a reading that comes late says nothing of it
        judge(tx, reading.fridge)
    if row["id"] % PRUNED_EVERY == 0:
        _prune(tx, reading.fridge)
    return message_id


def _prune(tx: UnitOfWork, fridge: str) -> None:
    tx.execute(
        "delete from reading where fridge = :fridge and id <= coalesce((select id from reading where fridge = :fridge"
        " order by id desc limit 1 offset :kept), 0)",
        fridge=fridge,
        kept=READINGS_KEPT,
    )


def _state(row: Row) -> FridgeState:
    return FridgeState(
        fridge=row["fridge"],
        at=None if row["at"] is None else moment(row["at"]),
        milli_degrees=row["milli_degrees"],
        max_milli_degrees=row["max_milli_degrees"],
        hysteresis_milli_degrees=row["hysteresis"],
        alarm_since=None if row["alarm_since"] is None else moment(row["alarm_since"]),
    )
