"""The SQLite store on a real file: what group commit, the disk and the readers do to units of work."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import pytest

from forebay.errors import (
    ConfigurationError,
    ConstraintError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreFullError,
)
from forebay.sqlite import MigrationSet, SqliteStore, SqliteTransaction, library
from forebay.sqlite.group import GROUP_TIME
from forebay.transaction import Transaction
from forebay.work import GROUP_LIMIT

SCHEMA = """
create table parent (id integer primary key) strict;
create table item (
    id integer primary key autoincrement,
    body blob not null,
    parent integer references parent (id) deferrable initially deferred
) strict;
create table plain (body blob) strict;
create trigger refuse before insert on item when new.body = x'dead' begin select raise(rollback, 'refused'); end;
"""
LIMIT = 30.0

Open = Callable[..., Awaitable[SqliteStore]]


async def test_a_library_that_is_too_old_is_told_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MIN_VERSION", (99, 1, 0))  # to it, the one that is here is old
    with pytest.raises(ConfigurationError, match=rf"{sqlite3.sqlite_version}, and 99\.1\.0 is needed"):
        await SqliteStore.open(tmp_path / "data" / "store.db", migrations=[])
    assert not (tmp_path / "data").exists()


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Open]:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_item.sql").write_text(SCHEMA)
    opened: list[SqliteStore] = []

    async def open_store(**options: Any) -> SqliteStore:
        path = tmp_path / "data" / "store.db"
        store = await SqliteStore.open(path, migrations=[MigrationSet("test", folder)], **options)
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.close()


def put(tx: Transaction, body: bytes = b"x", parent: int | None = None) -> int:
    statement = "insert into item (body, parent) values (:body, :parent) returning id"
    return cast(int, tx.execute(statement, body=body, parent=parent)[0]["id"])


def count(tx: Transaction) -> int:
    return cast(int, tx.execute("select count(*) as n from item")[0]["n"])


def pragma(tx: Transaction, name: str) -> Any:
    return tx.execute(f"select * from pragma_{name}")[0][name]


class Blocker:
    """A unit of work that holds the writer until it is released, so that others gather behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def __call__(self, _: Transaction) -> None:
        self.entered.set()
        assert self.released.wait(LIMIT)


async def gathered(store: SqliteStore, *units: Callable[..., Any]) -> list[Any]:
    """Run units in one group, behind a blocker; return their results and exceptions."""
    blocker = Blocker()
    first = asyncio.ensure_future(store.write(blocker))
    await asyncio.to_thread(blocker.entered.wait, LIMIT)
    tasks = [asyncio.ensure_future(store.write(unit)) for unit in units]
    await asyncio.sleep(0)
    blocker.released.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


class Statements:
    """A ``connect`` whose connections note transaction control, and fail where told."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.fail: Callable[[sqlite3.Connection, str], None] = lambda *_: None

    def __call__(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        statements = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                statements.noted.append(sql)
                statements.fail(self, sql)
                return super().execute(sql, *parameters)

        return sqlite3.connect(*args, factory=Connection, **kwargs)


def failing(what: str, times: int = 1, *, code: int = sqlite3.SQLITE_IOERR, really: bool = False) -> Any:
    left = times

    def fail(connection: sqlite3.Connection, sql: str) -> None:
        nonlocal left
        if sql.startswith(what) and left:
            left -= 1
            if really:
                sqlite3.Connection.execute(connection, sql)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = code
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error

    return fail


async def test_the_file_is_set_up_for_an_edge_node(open_store: Open) -> None:
    store = await open_store(max_bytes=8 * 1024 * 1024)

    def settings(tx: Transaction) -> dict[str, Any]:
        wanted = ["journal_mode", "synchronous", "foreign_keys", "auto_vacuum", "max_page_count", "journal_size_limit"]
        return {name: pragma(tx, name) for name in [*wanted, "cache_size", "temp_store"]}

    assert await store.write(settings) == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "auto_vacuum": 2,
        "max_page_count": 2048,
        "journal_size_limit": 4 * 1024 * 1024,
        "cache_size": -2000,
        "temp_store": 2,
    }


async def test_two_hundred_concurrent_writes_share_few_commits(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    statements.noted.clear()
    ids = await asyncio.gather(*(store.write(put) for _ in range(200)))
    assert ids == list(range(1, 201))
    assert statements.noted.count("COMMIT") <= 10


async def test_a_full_database_fails_the_unit_at_fault_and_the_others_run_again(open_store: Open) -> None:
    store = await open_store(max_bytes=256 * 1024)
    runs = 0

    def small(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        return put(tx)

    def large(tx: Transaction) -> None:
        tx.execute("insert into plain values (zeroblob(1000000))")

    def swallows(tx: Transaction) -> str:
        with suppress(StoreError):
            large(tx)
        with suppress(StoreError):
            put(tx)
        return "fine"

    outcomes = await gathered(store, small, large, small, swallows, small)
    assert [type(outcome) for outcome in outcomes] == [int, StoreFullError, int, StoreFullError, int]
    assert outcomes[::2] == [1, 2, 3]
    assert runs == 3 + 2 + 1
    assert await store.read(count) == 3


async def test_a_trigger_that_rolls_back_everything_fails_its_unit_alone(open_store: Open) -> None:
    store = await open_store()
    outcomes = await gathered(store, put, lambda tx: put(tx, b"\xde\xad"), put)
    assert [type(outcome) for outcome in outcomes] == [int, ConstraintError, int]
    assert await store.read(count) == 2


async def test_a_deferred_constraint_fails_the_unit_that_broke_it(open_store: Open) -> None:
    store = await open_store()
    outcomes = await gathered(store, put, lambda tx: put(tx, parent=99), put)
    assert [type(outcome) for outcome in outcomes] == [int, ConstraintError, int]
    assert await store.read(count) == 2


@pytest.mark.parametrize("really", [True, False])
async def test_after_a_failed_commit_all_callers_are_told_that_it_is_unknown(open_store: Open, really: bool) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    before = store.opening
    await store.read(count)
    calls = 0

    def heard() -> None:
        nonlocal calls
        calls += 1

    blocker = Blocker()
    first = asyncio.ensure_future(store.write(blocker))
    await asyncio.to_thread(blocker.entered.wait, LIMIT)
    statements.fail = failing("COMMIT", really=really)
    store.on_commit(heard)
    blocker.released.set()
    with pytest.raises(OutcomeUnknownError, match="read back") as raised:
        await first
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)

    statements.fail = failing("COMMIT", really=really)
    with pytest.raises(OutcomeUnknownError):
        await store.write(put)
    assert await store.write(put) == (2 if really else 1)
    assert await store.read(count) == (2 if really else 1)
    assert store.opening != before
    assert await store.write(lambda tx: cast(SqliteTransaction, tx).opening) == store.opening
    assert calls >= 2


async def test_an_exception_in_a_group_whose_commit_failed_is_unknown_too(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)

    def arm(_: Transaction) -> None:
        statements.fail = failing("COMMIT")

    def refuse(_: Transaction) -> None:
        raise LookupError

    outcomes = await gathered(store, arm, refuse, put)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 3
    assert await store.read(count) == 0


async def test_nothing_is_written_or_read_until_the_log_is_checkpointed(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    commit, checkpoint = failing("COMMIT", really=True), failing("PRAGMA wal_checkpoint", times=3)

    def fail(connection: sqlite3.Connection, sql: str) -> None:
        commit(connection, sql)
        checkpoint(connection, sql)

    statements.fail = fail
    with pytest.raises(OutcomeUnknownError):
        await store.write(put)
    with pytest.raises(StoreError, match="not reopened after a failed COMMIT") as raised:
        await store.write(put)
    assert not isinstance(raised.value, OutcomeUnknownError)
    with pytest.raises(StoreError, match="not reopened"):
        await store.read(count)
    assert await store.read(count) == 1
    assert await store.write(put) == 2


async def test_a_reopening_ends_the_queries_that_hold_a_snapshot(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    entered = threading.Event()

    def endless(tx: Transaction) -> None:
        entered.set()
        tx.execute("with recursive n (i) as (select 1 union all select i + 1 from n) select max(i) from n")

    query = asyncio.ensure_future(store.read(endless))
    await asyncio.to_thread(entered.wait, LIMIT)
    statements.fail = failing("COMMIT", really=True)
    with pytest.raises(OutcomeUnknownError):
        await store.write(put)
    with pytest.raises(StoreError, match="interrupted"):
        await query
    assert await store.write(put) == 2


async def test_a_file_that_went_away_is_not_created_anew_by_a_reopening(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    statements.fail = failing("COMMIT")
    moved = store.path.rename(store.path.with_suffix(".moved"))
    with pytest.raises(OutcomeUnknownError):
        await store.write(put)
    with pytest.raises(StoreError, match="opening the database"):
        await store.write(put)
    assert not store.path.exists()
    moved.rename(store.path)
    await store.write(put)


async def test_a_real_write_error_at_commit_is_survived(open_store: Open) -> None:
    store = await open_store()
    await store.write(put)
    log = store.path.with_name("store.db-wal")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(tx: Transaction) -> None:
        put(tx, bytes(100_000))
        # The kernel refuses every write beyond the log's end from now on, as a broken disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))

    try:
        with pytest.raises(StoreError) as raised:
            await store.write(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(raised.value, OutcomeUnknownError)
    await store.write(put)
    assert await store.read(count) == 2


async def test_a_busy_commit_is_rolled_back_and_may_be_repeated(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    before = store.opening
    statements.fail = failing("COMMIT", code=sqlite3.SQLITE_BUSY)
    with pytest.raises(StoreBusyError):
        await store.write(put)
    assert await store.write(put) == 1
    assert store.opening == before


async def test_a_failing_savepoint_keeps_nothing_of_its_group(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    statements.fail = failing("RELEASE")

    def fails(tx: Transaction) -> None:
        put(tx)
        raise LookupError

    results = await gathered(store, put, fails, put)
    assert [type(result) for result in results] == [StoreError] * 3
    assert all("the transaction failed" in str(result) for result in results)
    assert await store.write(put) == 1


async def test_a_failing_rollback_of_a_unit_alone_keeps_nothing_of_it(open_store: Open) -> None:
    statements = Statements()
    store = await open_store(connect=statements)
    statements.fail = failing("ROLLBACK")

    def fails(tx: Transaction) -> None:
        put(tx)
        raise LookupError

    with pytest.raises(StoreError, match="the transaction failed"):
        await store.write(fails)
    assert await store.write(put) == 1


async def test_a_database_locked_by_another_process_is_busy(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.sqlite.connection.BUSY_TIMEOUT", 0.05)
    store = await open_store()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError):
        await store.write(put)
    other.close()
    assert await store.write(put) == 1


async def test_a_long_query_keeps_its_snapshot_and_blocks_no_write(open_store: Open) -> None:
    store = await open_store()
    await store.write(put)
    entered, released = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> tuple[int, int]:
        before = count(tx)
        entered.set()
        assert released.wait(LIMIT)
        return before, count(tx)

    query = asyncio.ensure_future(store.read(slow))
    await asyncio.to_thread(entered.wait, LIMIT)
    await asyncio.gather(*(store.write(put) for _ in range(20)))
    assert await store.read(count) == 21
    released.set()
    assert await query == (1, 1)


async def test_more_queries_than_readers_all_get_their_answer(open_store: Open) -> None:
    store = await open_store()
    assert await asyncio.gather(*(store.read(count) for _ in range(40))) == [0] * 40


async def test_a_unit_whose_caller_left_before_it_started_does_not_run(open_store: Open) -> None:
    store = await open_store()
    blocker = Blocker()
    first = asyncio.ensure_future(store.write(blocker))
    await asyncio.to_thread(blocker.entered.wait, LIMIT)
    leaving, staying = asyncio.ensure_future(store.write(put)), asyncio.ensure_future(store.write(put))
    await asyncio.sleep(0)
    leaving.cancel()
    first.cancel()
    await asyncio.wait([leaving, first])
    blocker.released.set()
    assert await staying == 1
    assert await store.read(count) == 1


async def test_a_unit_that_had_started_counts_though_its_caller_left(open_store: Open) -> None:
    store = await open_store()
    blocker = Blocker()

    def unit(tx: Transaction) -> None:
        blocker(tx)
        put(tx)

    caller = asyncio.ensure_future(store.write(unit))
    await asyncio.to_thread(blocker.entered.wait, LIMIT)
    caller.cancel()
    await asyncio.wait([caller])
    blocker.released.set()
    await store.write(lambda _: None)
    assert await store.read(count) == 1


async def test_listeners_hear_of_commits_on_the_loop_until_they_unsubscribe(open_store: Open) -> None:
    store = await open_store()
    heard: list[int] = []
    stop = store.on_commit(lambda: heard.append(threading.get_ident()))
    await store.write(put)
    await asyncio.sleep(0)
    assert heard == [threading.get_ident()]
    with pytest.raises(LookupError):
        await store.write(_raise_lookup_error)
    await asyncio.sleep(0)
    assert len(heard) == 1
    stop()
    stop()
    await store.write(put)
    await asyncio.sleep(0)
    assert len(heard) == 1


def _raise_lookup_error(_: Transaction) -> None:
    raise LookupError


async def test_a_failing_listener_is_reported_and_hinders_nobody(open_store: Open) -> None:
    store = await open_store()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    heard = asyncio.Event()
    store.on_commit(lambda: _raise_lookup_error(cast(Transaction, None)))
    store.on_commit(heard.set)
    await store.write(put)
    await asyncio.wait_for(heard.wait(), LIMIT)
    assert isinstance(reported[0]["exception"], LookupError)


async def test_what_is_no_exception_ends_the_store_loudly(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    loud: SimpleQueue[Any] = SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda info: loud.put(info.exc_type))
    store = await open_store()

    def die(_: Transaction) -> None:
        raise KeyboardInterrupt

    outcomes = await gathered(store, put, die, put)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError, OutcomeUnknownError, StoreClosedError]
    with pytest.raises(StoreClosedError):
        await store.write(put)
    await store.close()
    assert await asyncio.to_thread(loud.get, timeout=LIMIT) is KeyboardInterrupt
    again = await open_store()
    assert await again.read(count) == 0


async def test_closing_while_writes_wait_runs_them_and_leaves_one_file(open_store: Open) -> None:
    store = await open_store()
    blocker = Blocker()
    first = asyncio.ensure_future(store.write(blocker))
    await asyncio.to_thread(blocker.entered.wait, LIMIT)
    waiting = [asyncio.ensure_future(store.write(put)) for _ in range(100)]
    await store.read(count)
    closing = [asyncio.ensure_future(store.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError):
        await store.write(put)
    blocker.released.set()
    await asyncio.gather(first, *closing)
    assert len(await asyncio.gather(*waiting)) == 100
    assert [path.name for path in store.path.parent.iterdir()] == ["store.db"]
    again = await open_store()
    assert again.opening != store.opening
    assert await again.read(count) == 100


async def test_a_path_that_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is no database " * 100)
    with pytest.raises(ConfigurationError, match="another path"):
        await SqliteStore.open(tmp_path / "file" / "store.db", migrations=[])
    with pytest.raises(StoreError, match=r"not a database.*check that it is a SQLite file"):
        await SqliteStore.open(tmp_path / "file", migrations=[])
    with pytest.raises(StoreError, match="check that"):
        await SqliteStore.open(tmp_path, migrations=[])
    with pytest.raises(ConfigurationError, match="65536 or more"):
        await SqliteStore.open(tmp_path / "store.db", migrations=[], max_bytes=1)


async def test_a_path_may_hold_characters_that_mean_something_in_a_uri(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "50% ?#ä.db", migrations=[])
    await store.write(lambda tx: tx.execute("create table one (id int)"))
    assert await store.read(lambda tx: tx.execute("select id from one")) == []
    await store.close()
    assert [path.name for path in list(store.path.parent.iterdir())] == ["50% ?#ä.db"]


def test_importing_the_adapter_loads_no_migration_tool_web_framework_or_console() -> None:
    program = "import sys, forebay.sqlite; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "forebay.sqlite" in loaded
    assert not {"sqlite_utils", "litestar", "click", "rich", "pysqlite3"} & set(loaded)


async def test_who_wrote_little_is_answered_while_others_write_much(open_store: Open) -> None:
    """A group ends after its time: what is queued behind a long unit does not keep its answer back."""
    store = await open_store()
    answered = threading.Event()

    def long(tx: Transaction) -> None:
        tx.execute("insert into plain (body) values (x'01')")
        until = time.monotonic() + 2 * GROUP_TIME
        while time.monotonic() < until:
            tx.execute("select 1")

    def later(tx: Transaction) -> bool:
        tx.execute("insert into plain (body) values (x'02')")
        return answered.wait(LIMIT)

    first = asyncio.create_task(store.write(long))
    first.add_done_callback(lambda _: answered.set())
    others = [asyncio.create_task(store.write(later)) for _ in range(3)]
    assert await asyncio.gather(first, *others) == [None, True, True, True]


async def test_units_of_one_round_of_the_loop_share_a_group(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.sqlite.group.GROUP_TIME", LIMIT)
    store = await open_store()
    commits = 0

    def count() -> None:
        nonlocal commits
        commits += 1

    store.on_commit(count)
    await asyncio.gather(*(store.write(insert_plain) for _ in range(GROUP_LIMIT)))
    assert commits == 1


def insert_plain(tx: Transaction) -> None:
    tx.execute("insert into plain (body) values (x'01')")


async def test_what_was_submitted_before_a_close_is_kept(open_store: Open) -> None:
    store = await open_store()
    written = [asyncio.create_task(store.write(insert_plain)) for _ in range(3)]
    await asyncio.sleep(0)  # they run up to where they wait
    await store.close()
    assert await asyncio.gather(*written) == [None] * 3
    with pytest.raises(StoreClosedError):
        await store.write(insert_plain)
