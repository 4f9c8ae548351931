"""The write path of an edge node: units of work with rows and events, read back, then freed.

    python -m tests.faults.scripts.write_path DATABASE JOURNAL [UNITS]

It says ``ack N ID...`` for each unit whose write returned, ``refused N`` where it was told that nothing was kept,
``unknown N`` where it was told that nobody knows, and ``freed ID`` for what it freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from forebay.errors import ConfigurationError, OutcomeUnknownError, StoreError
from forebay.freeing import free
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.faults.scripts.journal import Journal
from tests.faults.services.readings import ReadingTaken

UNITS = 6
"""Units of one run, unless the third argument says more; enough of them make SQLite checkpoint on the way."""

EVENTS = 2
"""Events of one unit."""

NODE, SERVICE, LANE = "house-1", "meter", "ledger"
STORE_ID = "0" * 32
_SCHEMA = Path(__file__).parents[1] / "services" / "meter" / "migrations"


def migrations() -> list[MigrationSet]:
    """The engine's tables, and those of the service."""
    from importlib.resources import files

    return [MigrationSet("forebay", files("forebay") / "migrations"), MigrationSet(SERVICE, _SCHEMA)]


def outbox() -> Outbox:
    return Outbox(NODE, SERVICE, [Lane(LANE, budget="8MiB")])


def record(tx: UnitOfWork, unit: int) -> list[str]:
    ids = []
    for number in range(unit * EVENTS + 1, unit * EVENTS + EVENTS + 1):
        event = tx.emit(ReadingTaken(meter="meter-0", number=number, padding="x" * 600))
        tx.execute(
            "insert into reading (number, meter, lane, event) values (:number, 'meter-0', :lane, :event)",
            number=number,
            lane=LANE,
            event=event,
        )
        ids.append(event)
    return ids


def count(tx: Transaction, unit: int) -> int:
    return int(
        tx.execute(
            "select count(*) as found from reading where number > :low and number <= :high",
            low=unit * EVENTS,
            high=(unit + 1) * EVENTS,
        )[0]["found"]
    )


def groups(units: int) -> Iterator[range]:
    """Return the units that are written at the same time: one, two, three, and so on again."""
    at, size = 0, 1
    while at < units:
        yield range(at, min(units, at + size))
        at, size = at + size, size % 3 + 1


async def work(path: Path, journal: Journal, units: int) -> None:
    books = outbox()
    sqlite = await SqliteStore.open(path, migrations=migrations())
    try:
        await sqlite.write(books.bind, STORE_ID)
        store = UnitStore(sqlite, books)
        written: list[str] = []
        for group in groups(units):
            results = await asyncio.gather(*(store.write(record, unit) for unit in group), return_exceptions=True)
            for unit, result in zip(group, results, strict=True):
                match result:
                    case OutcomeUnknownError():
                        journal.say("unknown", unit)
                    case StoreError():
                        journal.say("refused", unit)
                    case BaseException():
                        raise result
                    case _:
                        journal.say("ack", unit, *result)
                        written += result
                        with contextlib.suppress(StoreError):
                            journal.say("read", unit, await store.read(count, unit))
        if written:
            epoch, _, last = written[len(written) // 2].partition("-")
            with contextlib.suppress(StoreError):
                await sqlite.write(free, LANE, epoch, int(last), limit=1000)
                journal.say("freed", epoch, last)
    finally:
        await sqlite.close()


def main() -> None:
    path, journal = Path(sys.argv[1]), Journal(Path(sys.argv[2]))
    units = int(sys.argv[3]) if len(sys.argv) > 3 else UNITS
    try:
        asyncio.run(work(path, journal, units))
    except (StoreError, ConfigurationError) as error:
        journal.say("closed", type(error).__name__)
    journal.say("end")


if __name__ == "__main__":
    # sqlite-utils loads pandas where it is installed: a second of every run.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    main()
