"""Takes one reading a request: a row of its own table and an event, in one unit of work."""

from __future__ import annotations

import msgspec

from bench.services.metering import Metered, framed
from forebay import Lane, Service, UnitOfWork, UnitStore

meter = Service(
    "meter",
    lanes=[
        Lane("ledger", budget="2GiB"),
        framed("telemetry", budget="2GiB"),
        framed("plain", budget="2GiB", zstd=False),
    ],
)


class NewReading(msgspec.Struct, frozen=True):
    """The body of a request."""

    meter: str
    number: int
    cents: int


class Taken(msgspec.Struct, frozen=True):
    """The answer."""

    number: int


def take(tx: UnitOfWork, reading: NewReading) -> Taken:
    """Keep the reading, and emit it."""
    tx.execute(
        "insert into reading (meter, number, cents) values (:meter, :number, :cents)",
        meter=reading.meter,
        number=reading.number,
        cents=reading.cents,
    )
    tx.emit(Metered(meter=reading.meter, number=reading.number, cents=reading.cents))
    return Taken(reading.number)


@meter.post("/readings", problems=[503, 507])
async def take_reading(data: NewReading, store: UnitStore) -> Taken:
    """Answer once the reading is on disk."""
    return await store.write(take, data)
