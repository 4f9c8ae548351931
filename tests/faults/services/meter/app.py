"""The edge service: takes a list of readings in one unit of work, and gives the first answer to a repetition.

``HARNESS_FRAMES`` lets the samples go in frames, where the release that runs this can do it.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec

from forebay import Lane, Service, UnitOfWork, UnitStore
from tests.faults.services.readings import ReadingTaken, Sampled

framed: dict[str, Any] = {}
if os.environ.get("HARNESS_FRAMES") and "frames" in Lane.__struct_fields__:
    framed = {"frames": True, "flush_after": "50ms"}

meter = Service("meter", lanes=[Lane("ledger", budget="2GiB"), Lane("telemetry", budget="512MiB", **framed)])


class NewReading(msgspec.Struct, frozen=True):
    number: int
    meter: str
    lane: Literal["ledger", "telemetry"]
    padding: str = ""


class Taken(msgspec.Struct, frozen=True):
    """The message ids, in the order of the readings."""

    events: list[str]


def take(tx: UnitOfWork, readings: list[NewReading]) -> Taken:
    return Taken([_take(tx, reading) for reading in readings])


def _take(tx: UnitOfWork, reading: NewReading) -> str:
    known = tx.execute("select event from reading where number = :number", number=reading.number)
    if known:
        return str(known[0]["event"])
    kind = ReadingTaken if reading.lane == "ledger" else Sampled
    event = tx.emit(kind(meter=reading.meter, number=reading.number, padding=reading.padding))
    tx.execute(
        "insert into reading (number, meter, lane, event) values (:number, :meter, :lane, :event)",
        number=reading.number,
        meter=reading.meter,
        lane=reading.lane,
        event=event,
    )
    return event


@meter.post("/readings", problems=[503, 507])
async def readings(data: list[NewReading], store: UnitStore) -> Taken:
    return await store.write(take, data)
