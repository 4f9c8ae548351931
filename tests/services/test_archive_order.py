"""Several processes archive into one database: what walks it in its own order meets what commits late, too (C5, F3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import TypeVar

import anyio
import httpx
import pytest
from pyarrow import parquet

from core.archive.event import INSERT, now, to_row
from core.archive.export import DAY, read_manifest
from core.archive.queries import latest
from core.archive.retention import Limits
from core.archive.scans import scanned_at
from core.archive.upkeep import Settings, export_days, trim
from forebay import Transaction, UnitOfWork, settled
from forebay.archive_reading import ArchiveReader
from forebay.errors import StoreBusyError
from forebay.identity import Place
from forebay.postgres import PostgresStore
from forebay.protocol.needs import EpochNeed
from forebay.settled import settled_end
from forebay.testing.nats_server import NatsServer
from forebay.worker import AtWork
from tests.integration.arrivals import NEW, OLD, SALE, Core, Stream, own
from tests.integration.rig import eventually
from tests.integration.test_rebuilding import audit, core, event
from tests.services.core_app import ARCHIVE, application, client_of, open_core
from tests.stores import on_postgres, open_store, url_of

pytestmark = pytest.mark.parametrize("store_kind", ["postgres"], indirect=True, scope="module")

T = TypeVar("T")

LATE = Place(NEW, 1)
"""The event that takes its position first and commits last."""

YESTERDAY = DAY


def archive_late(tx: Transaction, go_on: Event, age: int) -> None:
    """Archive an event as another process does, and commit when told to."""
    tx.execute(INSERT, **to_row(own(LATE, SALE), now() - age))
    assert go_on.wait(10)


class Other:
    """Another process's transaction: it has taken a position, and has not committed."""

    def __init__(self, go_on: Event, done: asyncio.Task[None]) -> None:
        self._go_on = go_on
        self._done = done
        self.committed = False

    async def commit(self) -> None:
        self.committed = True
        self._go_on.set()
        await self._done


@asynccontextmanager
async def with_another(folder: Path, *, age: int = 0) -> AsyncIterator[tuple[Core, Other]]:
    """Open an archive of two processes: the other one took position 1, this one has committed 2 to 4."""
    async with open_core(folder, ARCHIVE) as known:
        await known.store.write(known.outbox.bind, "a" * 32)
        process = await open_store(folder / "archive.db", [])
        go_on = Event()
        done = asyncio.create_task(process.write(archive_late, go_on, age))
        try:
            await eventually(lambda: under_way(known))
            await known.take([Stream().event(place, epoch=OLD) for place in (1, 2, 3)])
            await known.store.write(came, now() - age)
            yield known, Other(go_on, done)
        finally:
            go_on.set()
            await asyncio.wait([done])
            await process.close()


def came(tx: UnitOfWork, when: int) -> None:
    tx.execute("update archived set archived_at = :when", when=when)


async def under_way(known: Core) -> bool:
    """Whether the other process has taken its position; a sequence shows at once what was taken."""

    def query(tx: Transaction) -> bool:
        return bool(tx.execute("select is_called from archived_id_seq")[0]["is_called"])

    return await known.store.read(query)


async def only_after(other: Other, walk: Callable[[], Awaitable[T]]) -> T:
    """Return what a walk found, which began before the other process commits and must not end before."""
    ended_early = False

    async def walked() -> T:
        nonlocal ended_early
        found = await walk()
        ended_early = not other.committed
        return found

    walking = asyncio.create_task(walked())
    with anyio.move_on_after(0.3):  # as long as a walk that waits for nobody takes
        await asyncio.wait([walking])
    await other.commit()
    found = await walking
    assert not ended_early, "it went past a position that is under way"
    return found


def at_work(known: Core) -> AtWork:
    async def unneeded(epochs: list[EpochNeed]) -> list[int]:
        return [each.last for each in epochs]

    return AtWork(known.store, Settings(), not on_postgres(), unneeded)


async def test_the_listing_goes_no_further_than_what_is_decided(tmp_path: Path) -> None:
    async with with_another(tmp_path) as (known, other), client_of(application({ARCHIVE: known})) as client:

        async def walk() -> list[str]:
            found: list[str] = []
            after: dict[str, str] = {}
            while True:
                answer: httpx.Response = await client.get("/archive/events", params={"limit": 2, **after})
                found += [each["message_id"] for each in answer.json()["events"]]
                if answer.json()["next"] is None:
                    return found
                after = {"after": answer.json()["next"]}

        assert await only_after(other, walk) == [str(LATE), f"{OLD}-1", f"{OLD}-2", f"{OLD}-3"]


async def test_what_commits_late_is_exported_and_the_retention_deletes_nothing_that_is_not(tmp_path: Path) -> None:
    limits = Limits(keep=3600.0, export=tmp_path / "export")
    async with with_another(tmp_path, age=YESTERDAY) as (known, other):
        await only_after(other, lambda: export_days(at_work(known), limits))
        manifest = read_manifest(tmp_path / "export")
        assert manifest is not None
        exported = [
            row["epoch"]
            for part in manifest.parts
            for row in parquet.read_table(tmp_path / "export" / part.file).to_pylist()
        ]
        assert sorted(exported) == [OLD, OLD, OLD, NEW]
        assert await trim(at_work(known), limits) == 4
        deleted = await known.rows("select epoch, first, last from deleted order by epoch")
        assert [tuple(row.values()) for row in deleted] == [(OLD, 1, 3), (NEW, 1, 1)]


async def test_a_transaction_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "LIMIT", 0.1)
    async with with_another(tmp_path) as (known, other):
        with pytest.raises(StoreBusyError, match="has not ended"):
            await settled_end(known.store, latest)
        await other.commit()
        assert await settled_end(known.store, latest) == 4


async def test_what_begins_later_is_not_waited_for(tmp_path: Path) -> None:
    """Writers that follow one another closely would otherwise keep a walk waiting for ever."""
    async with with_another(tmp_path) as (known, other):
        await other.commit()
        later = await open_store(tmp_path / "archive.db", [])
        go_on = Event()

        def end(tx: Transaction) -> int:
            last = latest(tx)
            writing.append(asyncio.run_coroutine_threadsafe(later.write(wait), loop))
            assert begun.wait(10)
            return last

        def wait(_: Transaction) -> None:
            begun.set()
            assert go_on.wait(10)

        def known_end(_: Transaction) -> int:
            return 4

        begun, loop = Event(), asyncio.get_running_loop()
        writing: list[Future[None]] = []
        try:
            seen = asyncio.create_task(settled_end(known.store, end))
            await eventually(lambda: is_set(begun))
            assert not seen.done(), "it was under way when the end was looked at"
            go_on.set()
            assert await seen == 4
        finally:
            go_on.set()
            await later.close()


async def is_set(event: Event) -> bool:
    return event.is_set()


async def test_a_rebuild_scans_past_nothing_that_is_under_way_f3(nats_server: NatsServer, tmp_path: Path) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        url = url_of(tmp_path / "core")
        assert url is not None
        process = await PostgresStore.open(url, "archive", migrations=[])
        go_on = Event()
        try:
            done = asyncio.create_task(process.write(archive_late, go_on, 0))

            async def taken() -> bool:
                query = "select is_called from archived_id_seq"
                return await known.archive.store.read(lambda tx: bool(tx.execute(query)[0]["is_called"]))

            await eventually(taken)
            await known.publish(*(event(OLD, n, n) for n in (1, 2, 3)))
            await known.archived(3)

            async def walk() -> list[int]:
                reader, after, found = ArchiveReader(known.connection, "audit"), 0, []
                while True:
                    page = await reader.scan(after, ["*"], 2)
                    found += [each.sequence for each in page.events]
                    after = page.position
                    if not page.more:
                        return found

            assert await only_after(Other(go_on, done), walk) == [1, 2, 3, 4]
            assert now() - await known.archive.store.read(scanned_at) < 60_000, "it is on record for the retention"
        finally:
            go_on.set()
            await process.close()
