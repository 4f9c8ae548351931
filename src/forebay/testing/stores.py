"""A service's real store in a test or a doctest: units of work run as in production, without a broker."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from forebay.opening import ENGINE
from forebay.outbox import Outbox
from forebay.service import Service
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitStore


class Emitted(NamedTuple):
    """An event as it waits in the outbox; ``body`` is its JSON."""

    type: str
    lane: str
    key: str | None
    body: bytes


@asynccontextmanager
async def opened(
    service: Service, folder: Path, *, node: str = "node-1", migrations: Path | None = None, schema: str = ""
) -> AsyncIterator[UnitStore]:
    """Open a service's database as ``forebay run`` does, and close it at the end; nothing is sent anywhere.

    Example:
        >>> import asyncio
        >>> from forebay import Event, Lane, UnitOfWork
        >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
        ...     door: str
        >>> def open_door(tx: UnitOfWork, door: str) -> str:
        ...     tx.execute("insert into opening (door) values (:door)", door=door)
        ...     return tx.emit(DoorOpened(door=door))
        >>> async def main() -> None:
        ...     door = Service("door", lanes=[Lane("ledger", budget="8MiB")])
        ...     async with opened(door, Path("data"), schema="create table opening (door text)") as store:
        ...         await store.write(open_door, "front")
        ...         print(await emitted(store))
        >>> asyncio.run(main())
        [Emitted(type='door.door-opened.v1', lane='ledger', key='front', body=b'{"door":"front"}')]

    Args:
        service: its declaration.
        folder: where the database is, or will be.
        node: the node that it belongs to.
        migrations: the folder of the service's migrations.
        schema: one migration as a text, in place of a folder; give the same for the same folder each time.

    Raises:
        ConfigurationError: the database is another node's or service's, or a migration is wrong.
        StoreError: the database cannot be opened.
    """
    migrations = _prepared(folder, service.name, schema) or migrations
    sets = [ENGINE, *([MigrationSet(service.name, migrations)] if migrations else [])]
    store = await SqliteStore.open(folder / f"{service.name}.db", migrations=sets)
    try:
        outbox = Outbox(node, service.name, service.lanes)
        await store.write(outbox.bind, uuid.uuid4().hex)
        yield UnitStore(store, outbox)
    finally:
        await store.close()


def _prepared(folder: Path, name: str, schema: str) -> Path | None:
    """Make the folder, and one of migrations in it where there is a schema."""
    folder.mkdir(parents=True, exist_ok=True)
    if not schema:
        return None
    migrations = folder / f"{name}-migrations"
    migrations.mkdir(exist_ok=True)
    (migrations / f"0001_{name}.sqlite.sql").write_text(f"{schema.rstrip().rstrip(';')};\n")
    return migrations


async def emitted(store: UnitStore) -> list[Emitted]:
    """Return what waits in the outbox, in the order in which it was written."""

    def query(tx: Transaction) -> list[Row]:
        return tx.execute(
            "select b.type, o.lane, b.key, b.body from forebay_outbox b"
            " join forebay_epoch e on e.id = b.epoch join forebay_origin o on o.id = e.origin"
            " order by b.hlc, b.epoch, b.sequence"
        )

    return [Emitted(row["type"], row["lane"], row["key"], bytes(row["body"])) for row in await store.read(query)]
