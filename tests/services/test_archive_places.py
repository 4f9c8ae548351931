"""The archive's indexes by place and by node: events are found in them, before they are in them, and in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

import core.archive.app as core_archive
from core.archive import places, queries
from core.archive.places import archived_at, catch_up, drop_wide, has_wide, indexed_upto, tail
from core.archive.retention import Limits
from core.archive.upkeep import Settings, index, trim
from forebay import Transaction
from forebay.identity import Place
from forebay.opening import ENGINE, open_store
from forebay.outbox import Outbox
from forebay.protocol.archive import ArchiveQuestion
from forebay.protocol.needs import EpochNeed
from forebay.sqlite import MigrationSet
from forebay.sqlite.damage import note_damage
from forebay.sqlite.disk import NO_CARE
from forebay.sqlite.transaction import _prepared
from forebay.worker import AtWork
from tests.integration.arrivals import NEW, OLD, SALE, Core, Stream
from tests.integration.test_salvage import PAGE, overwrite, root_of
from tests.services.core_app import ARCHIVE, application, client_of, open_core
from tests.stores import takes_the_file

pytestmark = takes_the_file

NODES, SERVICES, TYPES = ("store-1", "store-2", "store-3"), ("till", "stock"), ("till.counted.v1", "till.sold.v1")


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path, ARCHIVE) as core:
        await core.store.write(Outbox("core", "archive", ()).bind, "a" * 32)
        yield core


def at_work(known: Core) -> AtWork:
    async def unneeded(epochs: list[EpochNeed]) -> list[int]:
        return [each.last for each in epochs]

    return AtWork(known.store, Settings(), is_file=True, unneeded=unneeded)


def epoch_of(number: int) -> str:
    return f"{number + 1000:032x}"


async def some(core: Core, count: int = 60) -> None:
    """Archive events of several nodes, services and types, and a few of a producer without an outbox, in turn."""
    stream = Stream()
    origins = list(product(NODES, SERVICES))
    written = Counter[tuple[str, str]]()
    for at in range(count):
        node, service = origins[at % len(origins)]
        kind = TYPES[at // 4 % len(TYPES)]
        if at % 10 == 9:
            await core.take([stream.foreign(f"f-{at % 3}-{at}", node=node, service=service, type=kind)])
        else:
            written[node, service] += 1
            epoch = epoch_of(origins.index((node, service)))
            await core.take([stream.event(written[node, service], epoch=epoch, node=node, service=service, type=kind)])


def filters() -> list[queries.Filter]:
    known = [
        queries.Filter(node=node, service=service, type=type_)
        for node, service, type_ in product((None, *NODES, "store-9"), (None, *SERVICES, "door"), (None, *TYPES, "t"))
    ]
    ids = [f"{epoch_of(0)}-3", f"{epoch_of(5)}-1", f"{epoch_of(0)}-999", "f-0-9", "f-9"]
    return known + [queries.Filter(message_id=each, node=node) for each in ids for node in (None, "store-1")]


async def everything(core: Core) -> list[object]:
    """All that can be asked, a page at a time and at once."""
    found: list[object] = []
    for wanted in filters():
        for after, upto, limit in ((0, 1 << 60, 1000), (7, 41, 3), (20, 1 << 60, 5)):
            page = await core.store.read(queries.page, wanted, after, limit, upto)
            found.append(([(each.message_id, each.node, each.service) for each in page.events], page.next))
        found.append([each.message_id for each in await core.store.read(queries.one_each, wanted)])
    for epoch, node, last, limit in product((0, 2, 9), NODES, (3, 100), (2, 100)):
        asked = ArchiveQuestion(node=node, service="till", epoch=epoch_of(epoch), first=2, last=last, limit=limit)
        found.append([each for each, _ in await core.store.read(queries.between, asked)])
    return found


def of_archived(tx: Transaction, wanted: queries.Filter) -> list[int]:
    """What a look at every event finds."""
    rows = tx.execute("select id, node, service, type, foreign_id, epoch, sequence from archived order by id")
    return [
        row["id"]
        for row in rows
        if wanted.node in (None, row["node"])
        and wanted.service in (None, row["service"])
        and wanted.type in (None, row["type"])
        and wanted.message_id in (None, row["foreign_id"], f"{row['epoch']}-{row['sequence']}")
    ]


async def test_what_is_found_is_the_same_whatever_is_in_the_indexes(core: Core) -> None:
    await some(core)
    at_first = await everything(core)
    for wanted in filters():
        found = await core.store.read(queries.ids_of, wanted, 0, 1 << 60, 1000)
        assert found == await core.store.read(of_archived, wanted)

    for upto in (1, 17, 35, 60):
        await core.store.write(catch_up, upto - await core.store.read(indexed_upto))
        assert await core.store.read(indexed_upto) == upto
        assert await everything(core) == at_first, f"the wide indexes beside narrow ones up to {upto}"
    await core.store.write(drop_wide)
    assert await everything(core) == at_first, "the narrow indexes alone"
    await core.store.write(lambda tx: tx.execute("update indexed set upto = 0"))
    await core.store.write(lambda tx: [tx.execute(f"delete from {each}") for each in ("place", "listed")])
    await core.store.write(catch_up, 22)
    assert await everything(core) == at_first, "the narrow indexes in part, and no wide ones"


async def test_an_archive_that_has_the_wide_indexes_is_taken_over_step_by_step_and_then_they_go(
    core: Core, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await some(core)
    before = await everything(core)
    monkeypatch.setattr(places, "STEP", 8)
    monkeypatch.setattr("core.archive.upkeep.STEP", 8)
    monkeypatch.setattr(places, "BACKLOG", 20)
    monkeypatch.setattr("core.archive.upkeep.BACKLOG", 20)
    await some_more(core)
    assert await core.store.read(tail) == 61, "whoever keeps events leaves so many to the upkeep"
    assert not await core.store.write(drop_wide), "not while they are needed"

    await index(at_work(core))

    assert await core.store.read(tail) < 8
    assert not await core.store.read(has_wide)
    assert caplog.messages.count("archive.indexed") == 1
    await core.store.write(lambda tx: tx.execute("delete from archived where id = 61"))
    assert await everything(core) == before
    await index(at_work(core))
    assert caplog.messages.count("archive.indexed") == 1


async def some_more(core: Core) -> None:
    await core.take([Stream().event(1, epoch=NEW, node="store-7")])


async def test_whoever_keeps_events_indexes_them_once_they_are_many(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "STEP", 5)
    stream = Stream()
    for first, waiting in ((1, 3), (4, 0), (7, 3)):
        await core.take([stream.event(sequence) for sequence in range(first, first + 3)])
        assert await core.store.read(tail) == waiting


async def test_a_repeated_event_is_compared_wherever_it_stands(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take([stream.event(1), stream.event(2)])
    await core.store.write(catch_up)
    await core.store.write(drop_wide)
    await core.take([stream.event(3), stream.event(1), stream.event(2, b'{"basket":"2"}')])
    assert await core.store.read(tail) == 0, "one by one they are looked for in the indexes"
    await core.take([stream.event(3, b'{"basket":"3"}'), stream.event(3)])

    found = (await client.get("/archive/conflicts")).json()
    assert [each["message_id"] for each in found] == [f"{OLD}-3", f"{OLD}-2"]


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application({ARCHIVE: core})) as client:
        yield client


async def test_what_the_retention_deletes_leaves_the_indexes(core: Core) -> None:
    await some(core)
    await core.store.write(catch_up, 40)
    await core.store.write(lambda tx: tx.execute("update archived set archived_at = 0 where id <= 50"))

    assert await trim(at_work(core), Limits(keep=86400.0)) == 50

    assert await core.rows("select * from place") == []
    assert await core.rows("select * from listed") == []
    await core.store.write(catch_up, 1)
    assert await core.store.read(indexed_upto) == 51, "it goes on with the first that is there"
    left = await core.rows("select id from archived")
    for wanted in filters():
        assert await core.store.read(queries.ids_of, wanted, 0, 1 << 60, 100) == await core.store.read(
            of_archived, wanted
        )
    assert [row["id"] for row in left] == list(range(51, 61))


async def test_events_that_an_older_release_archived_meanwhile_are_found_and_indexed(core: Core) -> None:
    await some(core, 20)
    await core.store.write(catch_up)
    await core.store.write(drop_wide)
    await some_more(core)  # it keeps them, and knows no index

    assert await core.rows(f"select node from archived where epoch = '{NEW}'") == [{"node": "store-7"}]
    assert (await core.store.read(queries.page, queries.Filter(node="store-7"), 0, 10, 1 << 60)).events
    found = await core.store.write(archived_at, "store-7", "till", Place(NEW, 1))
    assert found is not None
    assert found["body"] == SALE
    assert await core.store.read(tail) == 0


async def test_no_look_at_every_event_is_needed_in_either_index(core: Core) -> None:
    await core.store.write(drop_wide)

    def plans(tx: Transaction) -> list[str]:
        key: dict[str, Any] = {"epoch": OLD, "node": "n", "service": "s"}
        return [
            " ".join(row["detail"] for row in tx.execute(f"explain query plan {sql}", **params))
            for sql, params in (
                (places._OF_PLACE, {**key, "sequence": 1}),
                (places._BETWEEN, {**key, "first": 1, "last": 2, "limit": 3}),
                (places._OF_PLACE_IN_TAIL, {**key, "sequence": 1, "upto": 1}),
                (places._BETWEEN_IN_TAIL, {**key, "first": 1, "last": 2, "limit": 3, "upto": 1}),
                *((sql, {"after": 1, "upto": 2}) for sql in places._INDEX),
                *((sql, {**key, "sequence": 1, "id": 1}) for sql in places._FORGET),
            )
        ]

    for plan in await core.store.read(plans):
        assert "SEARCH" in plan
        assert "SCAN" not in plan, plan


async def test_all_pages_are_asked_for_with_the_same_statements(core: Core) -> None:
    """Each statement is kept as it was prepared: thousands of pages took 30 MiB of a process that keeps a hundred."""
    await some(core)
    node = queries.Filter(node=NODES[0])
    place = queries.Filter(message_id=f"{epoch_of(0)}-3", service=SERVICES[0])

    async def ask(after: int) -> None:
        for wanted in (queries.Filter(), node, place):
            await core.store.read(queries.page, wanted, after, 10, 1 << 60)
        await core.store.read(queries.one_each, place)

    for indexed in (False, True):
        if indexed:
            await core.store.write(catch_up)
        await ask(0)
        known = _prepared.cache_info().misses
        for after in range(1, 20):
            await ask(after)
        assert _prepared.cache_info().misses == known


@pytest.mark.parametrize("table", ["place", "listed", "source"])
async def test_a_damaged_index_loses_nothing_of_the_archive(tmp_path: Path, table: str) -> None:
    """As none of SQLite's own does; of any other table of a consumer's nothing may lack."""
    async with open_core(tmp_path, ARCHIVE) as core:
        await some(core)
        await core.store.write(catch_up)
        found = await everything(core)
    path = tmp_path / f"{ARCHIVE.name}.db"
    overwrite(path, (root_of(path, table) - 1) * PAGE, bytes(PAGE))
    note_damage(path, "a query met it")

    migrations = MigrationSet(ARCHIVE.name, Path(core_archive.__file__ or "").parent / "migrations")
    store = await open_store(ARCHIVE, path, None, [ENGINE, migrations], max_bytes=None, disk=NO_CARE)
    await store.close()

    async with open_core(tmp_path, ARCHIVE) as core:
        assert await core.store.read(tail) == 60
        assert await everything(core) == found
        await core.store.write(catch_up)
        assert await everything(core) == found
