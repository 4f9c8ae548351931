"""The consume path of a core: batches of deliveries become effects, with inbox and position, one of them out of order.

    python -m tests.faults.scripts.consume_path DATABASE JOURNAL [EVENTS]

It says ``ack P`` once everything up to the stream's position P is committed. A batch that failed is taken again, as
the broker would deliver it again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from forebay.delivery import Delivery
from forebay.envelope import Message, encode_headers
from forebay.errors import ConfigurationError, StoreError
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.intake import take_all
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.faults.scripts.journal import Journal
from tests.faults.services.effects import record
from tests.faults.services.readings import ReadingTaken

EVENTS = 12
"""Events of one run, unless the third argument says more."""

BATCH = 3
ATTEMPTS = 3
"""How often a failing batch is taken."""

NODE, SERVICE, LANE, STREAM = "house-1", "books", "ledger", "EVENTS"
EPOCH = "019cab1e4c007000800000000000000a"
INCARNATION = "2026-01-01T00:00:00Z"
STORE_ID = "1" * 32
_SCHEMA = Path(__file__).parents[1] / "services" / "books" / "migrations"


def migrations() -> list[MigrationSet]:
    """The engine's tables, and those of the service."""
    from importlib.resources import files

    return [MigrationSet("forebay", files("forebay") / "migrations"), MigrationSet(SERVICE, _SCHEMA)]


def handlers() -> Handlers:
    found = Handlers()

    def take(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
        record(tx, [event], [message])

    found.add(ReadingTaken, take, batch=False)
    return found


def sequences(events: int) -> list[int]:
    """The sequences in the order of the stream: 5 comes after 6 and 7, so that these are held."""
    order = list(range(1, events + 1))
    order[4:7] = [6, 7, 5]
    return order


def delivery(position: int, sequence: int) -> Delivery:
    message = Message(
        message_id=f"{EPOCH}-{sequence}",
        node=NODE,
        service="meter",
        kind="reading-taken",
        id=f"{EPOCH}-{sequence}",
        source=f"/{NODE}/meter",
        type="meter.reading-taken.v1",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        key="meter-0",
        lane=LANE,
        place=Place(EPOCH, sequence),
    )
    headers = {**encode_headers(message), "Nats-Msg-Id": message.message_id}
    body = msgspec.json.encode(ReadingTaken(meter="meter-0", number=sequence, padding="x" * 600))
    return Delivery(0, position, time.time_ns(), f"evt.0.{NODE}.meter.reading-taken", headers, body)


async def work(path: Path, journal: Journal, events: int) -> None:
    outbox = Outbox("core", SERVICE, [])
    sqlite = await SqliteStore.open(path, migrations=migrations())
    try:
        await sqlite.write(outbox.bind, STORE_ID)
        store = UnitStore(sqlite, outbox)
        deliveries = [delivery(position, sequence) for position, sequence in enumerate(sequences(events), 1)]
        for at in range(0, len(deliveries), BATCH):
            batch = deliveries[at : at + BATCH]
            if not await take(store, batch):
                return
            journal.say("ack", batch[-1].stream_sequence)
    finally:
        await sqlite.close()


async def take(store: UnitStore, batch: list[Delivery]) -> bool:
    """Take a batch, again where the store failed."""
    for _ in range(ATTEMPTS):
        try:
            await store.write(take_all, handlers(), STREAM, INCARNATION, batch, False)
        except StoreError:
            continue
        return True
    return False


def main() -> None:
    path, journal = Path(sys.argv[1]), Journal(Path(sys.argv[2]))
    events = int(sys.argv[3]) if len(sys.argv) > 3 else EVENTS
    try:
        asyncio.run(work(path, journal, events))
    except (StoreError, ConfigurationError) as error:
        journal.say("closed", type(error).__name__)
    journal.say("end")


if __name__ == "__main__":
    # sqlite-utils loads pandas where it is installed: a second of every run.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    main()
