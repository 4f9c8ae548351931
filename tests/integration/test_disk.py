"""A full disk, a reserve, free pages that go back to the disk, and a log that stays short (rule O5)."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from forebay.errors import ConfigurationError, StoreBusyError, StoreFullError
from forebay.sqlite import DiskConfig, MigrationSet, SqliteStore
from forebay.sqlite.connection import open_reader
from forebay.sqlite.disk import BALLAST, MAX_RESERVE, MIN_RESERVE, Disk
from forebay.sqlite.log import LIMIT, MOST
from forebay.transaction import Transaction
from tests.integration.small_disk import fill, free, run_python

SCHEMA = "create table item (id integer primary key autoincrement, body blob not null) strict;"
BODY = 3000
MIB = 1024 * 1024

Open = Callable[..., Awaitable[SqliteStore]]


async def opened(folder: Path, **options: Any) -> SqliteStore:
    scripts = folder / "migrations"
    scripts.mkdir(exist_ok=True)
    (scripts / "0001_item.sql").write_text(SCHEMA)
    return await SqliteStore.open(folder / "store.db", migrations=[MigrationSet("test", scripts)], **options)


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Open]:
    stores: list[SqliteStore] = []

    async def open_store(**options: Any) -> SqliteStore:
        stores.append(await opened(tmp_path, **options))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


def put(tx: Transaction, times: int = 1, size: int = BODY) -> int:
    tx.executemany("insert into item (body) values (randomblob(:size))", [{"size": size}] * times)
    return cast(int, tx.execute("select max(id) as id from item")[0]["id"])


def drain(tx: Transaction, limit: int = 200) -> int:
    gone = tx.execute(
        "delete from item where id in (select id from item order by id limit :limit) returning id", limit=limit
    )
    return len(gone)


def ids(tx: Transaction) -> list[int]:
    return [row["id"] for row in tx.execute("select id from item order by id")]


async def until_refused(store: SqliteStore, acknowledged: int) -> int:
    """Write until there is no room; return the last id that was acknowledged."""
    for _ in range(3000):
        try:
            acknowledged = await store.write(put)
        except StoreFullError:
            return acknowledged
    raise AssertionError("there was always room")


def log_size(store: SqliteStore) -> int:
    return store.path.with_name(f"{store.path.name}-wal").stat().st_size


# --- scenarios on a disk that is really full; each runs in a process that has one


async def goes_on_draining_and_accepts_again(folder: Path) -> None:
    """The other program takes all that the ballast gave back as well, and still everything can be freed."""
    store = await opened(folder, disk=DiskConfig(reserve=0))
    ballast = store.path.with_name("store.db.ballast")
    assert ballast.stat().st_size == BALLAST
    acknowledged = await store.write(put, 1500)
    fill(folder / "other")
    refused = 0
    for _ in range(3000):
        try:
            acknowledged = await store.write(put)
        except StoreFullError:
            refused += 1
            if refused == 3:
                break
    assert refused == 3
    assert not ballast.exists()
    assert store.problem()
    assert await store.read(ids) == list(range(1, acknowledged + 1))

    fill(folder / "more")
    gone = 0
    while count := await store.reclaiming.write(drain):
        gone += count
        fill(folder / "more")
        with pytest.raises(StoreFullError):
            await store.write(put)
    assert gone == acknowledged

    (folder / "other").unlink()
    (folder / "more").unlink()
    assert not store.problem()
    assert await store.write(put) == acknowledged + 1
    assert ballast.stat().st_size == BALLAST
    await store.close()
    store = await opened(folder, disk=DiskConfig(reserve=0))
    assert await store.read(ids) == [acknowledged + 1]
    await store.close()


async def comes_back_by_draining_alone(folder: Path) -> None:
    """Nobody removes the other program's file: what is drained gives the disk room enough."""
    store = await opened(folder, disk=DiskConfig(reserve=0))
    acknowledged = await store.write(put, 5000)
    fill(folder / "other")
    acknowledged = await until_refused(store, acknowledged)
    while await store.reclaiming.write(drain, 1000):
        pass
    async with asyncio.timeout(20):
        while store.problem():  # noqa: ASYNC110 - the writer gives pages back whenever nothing waits
            await asyncio.sleep(0.01)
    assert await store.write(put) == acknowledged + 1
    await store.close()


async def opens_on_a_full_disk(folder: Path) -> None:
    """A node that is started on a full disk comes up and drains."""
    store = await opened(folder, disk=DiskConfig(reserve=0))
    acknowledged = await store.write(put, 100)
    await store.close()
    fill(folder / "other")
    store = await opened(folder, disk=DiskConfig(reserve=0))
    assert await store.read(ids) == list(range(1, acknowledged + 1))
    while await store.reclaiming.write(drain):
        pass
    assert await store.read(ids) == []
    await store.close()


async def a_full_commit_keeps_nothing(folder: Path) -> None:
    """Without a ballast too: a unit that finds no room at COMMIT is not there, and that is told for certain."""
    store = await opened(folder)
    kept = []
    for leave in range(0, 40 * 4096, 4096):
        (folder / "other").unlink(missing_ok=True)
        fill(folder / "other", leave=leave)
        for size in (100, 9000, 30_000):
            try:
                kept.append(await store.write(put, 1, size))
            except StoreFullError:
                continue
    (folder / "other").unlink()
    assert 0 < len(kept) < 120
    assert await store.read(ids) == kept
    await store.close()


SCENARIOS = {
    each.__name__: each
    for each in (
        goes_on_draining_and_accepts_again,
        comes_back_by_draining_alone,
        opens_on_a_full_disk,
        a_full_commit_keeps_nothing,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_disk_that_is_really_full_the_store(tmp_path: Path, scenario: str) -> None:
    """Bounds (rule O5): a full disk refuses new writes, loses none, goes on draining and needs no restart."""
    done = run_python(tmp_path, "40m", __name__, scenario)
    assert done.returncode == 0, done.stderr


# --- the reserve


async def test_below_the_reserve_writes_are_refused_while_everything_still_works(
    open_store: Open, tmp_path: Path
) -> None:
    store = await open_store(disk=DiskConfig(reserve=free(tmp_path) * 10, ballast=0))
    with pytest.raises(StoreFullError, match="reserve"):
        await store.write(put)
    assert "reserve" in store.problem()
    assert await store.reclaiming.write(put) == 1
    assert await store.read(ids) == [1]


async def test_a_reserve_of_nothing_refuses_nothing(open_store: Open) -> None:
    store = await open_store(disk=DiskConfig(reserve=0, ballast=0))
    assert await store.write(put) == 1
    assert store.problem() == ""


def test_the_reserve_is_a_share_of_the_disk_within_limits(tmp_path: Path) -> None:
    reserve = Disk(tmp_path / "store.db", DiskConfig())._free()[1]
    assert MIN_RESERVE <= reserve <= MAX_RESERVE


def test_a_negative_reserve_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="reserve is -1 bytes"):
        DiskConfig(reserve=-1)


async def test_a_database_at_its_own_limit_keeps_its_ballast_and_frees(open_store: Open, tmp_path: Path) -> None:
    """O5: ``max_page_count`` is the backstop; it does not deadlock, so nothing is given up for it."""
    store = await open_store(max_bytes=MIB, disk=DiskConfig(reserve=0))
    await until_refused(store, 0)
    assert (tmp_path / "store.db.ballast").exists()
    assert await store.write(drain) == 200
    assert await store.write(put)


# --- free pages


async def test_a_drained_database_gives_its_disk_back(open_store: Open) -> None:
    """O5: the file follows its contents, but for the free pages that are kept for what comes next."""
    store = await open_store()
    for _ in range(10):
        await store.write(put, 1000)
    before = store.path.stat().st_size
    assert before > 30 * MIB
    while await store.write(drain, 1000):
        pass
    async with asyncio.timeout(20):
        while store.path.stat().st_size > 12 * MIB:
            await store.write(put, 10)
            await store.write(drain, 10)
            await asyncio.sleep(0.01)


# --- the log


def lingering(tx: Transaction, started: threading.Event, end: threading.Event) -> int:
    found = len(ids(tx))
    started.set()
    assert end.wait(60)
    return found + len(ids(tx))


async def test_the_log_stays_short_beside_a_query_that_does_not_end(open_store: Open) -> None:
    store = await open_store()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(tx: Transaction) -> None:
        tx.execute("select 1 from item")
        loop.call_soon_threadsafe(started.set)
        tx.execute("with recursive n (i) as (select 1 union all select i + 1 from n) select max(i) from n")

    query = asyncio.ensure_future(store.read(endless))
    await started.wait()
    most = 0
    for _ in range(40):
        await store.write(put, 200)
        most = max(most, log_size(store))
    assert most < 3 * LIMIT  # the limit, what one group wrote, and what came while the query was given time to end
    with pytest.raises(StoreBusyError, match="interrupted"):
        await query
    assert len(await store.read(ids)) == 8000


async def test_a_query_between_two_statements_is_ended_too(open_store: Open) -> None:
    store = await open_store()
    started, end = threading.Event(), threading.Event()
    query = asyncio.ensure_future(store.read(lingering, started, end))
    await asyncio.to_thread(started.wait, 30)
    writes = asyncio.ensure_future(asyncio.wait_for(_many(store, 20), 60))
    await asyncio.sleep(0)
    while log_size(store) <= LIMIT:  # noqa: ASYNC110 - a file sets no event
        await asyncio.sleep(0.005)
    end.set()
    await writes
    try:
        await query
    except StoreBusyError as error:
        assert "interrupted" in str(error)  # noqa: PT017 - it may have ended within the time that it is given
    assert log_size(store) <= 3 * LIMIT


async def _many(store: SqliteStore, times: int) -> None:
    for _ in range(times):
        await store.write(put, 200)


async def test_beside_a_reader_of_another_process_writes_wait_once_the_log_is_long(open_store: Open) -> None:
    """The log has a bound there too; what is refused is worth another try, and goes on with the reader's end."""
    store = await open_store()
    await store.write(put)
    outside = open_reader(store.path)
    outside.execute("begin")
    assert outside.execute("select count(*) from item").fetchone()[0] == 1
    written = 0
    refused = None
    while refused is None and written < 60:
        try:
            await store.write(put, 10, 300_000)
            written += 1
        except StoreBusyError as error:
            refused = error
    assert "reader of another process" in str(refused)
    assert MOST < log_size(store) < MOST + 4 * MIB
    outside.close()
    await store.write(put)
    await store.write(put)
    assert log_size(store) <= LIMIT
    assert len(await store.read(ids)) == 10 * written + 3


def test_a_log_that_has_room_of_its_own_is_read_as_one_without(tmp_path: Path) -> None:
    """The zeros behind the last frame are the log's end, for SQLite and for the look at it after a crash."""

    async def crash() -> None:
        store = await opened(tmp_path, disk=DiskConfig(reserve=0))
        await store.write(put, 10)
        copy = tmp_path / "copy"
        copy.mkdir()
        for suffix in ("", "-wal"):
            (copy / f"store.db{suffix}").write_bytes((tmp_path / f"store.db{suffix}").read_bytes())
        await store.close()

    asyncio.run(crash())
    connection = sqlite3.connect(tmp_path / "copy" / "store.db")
    assert connection.execute("select count(*) from item").fetchone()[0] == 10
    connection.close()


if __name__ == "__main__":
    asyncio.run(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))
