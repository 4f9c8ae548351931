"""A large backlog, written into a node's database by the engine's own code while its process is away."""

from __future__ import annotations

from pathlib import Path

from forebay.sqlite import SqliteStore
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.faults.scripts.write_path import migrations
from tests.faults.services.meter.app import NewReading, meter, take

CHUNK = 5_000
"""Events of one unit of work."""

METER, FIRST = "backlog", 9_000_000_000
"""The key of a backlog's readings, and the number before its first."""


async def write_backlog(path: Path, node: str, events: int) -> None:
    """Write so many readings of the ledger into a node's database; its process must be away."""
    from forebay.outbox import Outbox

    outbox = Outbox(node, meter.name, meter.lanes)
    sqlite = await SqliteStore.open(path, migrations=migrations())
    try:
        store = UnitStore(sqlite, outbox)
        for begin in range(0, events, CHUNK):
            await store.write(_write, begin, min(CHUNK, events - begin))
    finally:
        await sqlite.close()


def _write(tx: UnitOfWork, begin: int, count: int) -> None:
    take(tx, [NewReading(FIRST + begin + each, METER, "ledger", "x" * 120) for each in range(1, count + 1)])
