"""Units of one group share a transaction and write their events together; each is still kept or undone by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from forebay import freeing
from forebay.drafts import entry
from forebay.errors import BudgetSpentError, ConstraintError, EventTooLargeError, StoreError, StoreFullError
from forebay.event import Event
from forebay.identity import Place, parse_message_id
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.transaction import Transaction
from forebay.unit_of_work import MOST_TOGETHER, UnitOfWork, UnitStore
from tests.outboxes import messages_after

SCHEMA = """
create table parent (id integer primary key) strict;
create table item (name text primary key) strict;
create table child (parent integer references parent (id) deferrable initially deferred) strict;
"""
LIMIT = 30.0
LANES = [Lane("ledger", budget="8MiB"), Lane("telemetry", budget="2KiB"), Lane("other", budget="8MiB")]


class Sold(Event, service="till", kind="sold"):
    text: str


class Measured(Event, service="till", kind="measured", lane="telemetry"):
    text: str


class Noted(Event, service="till", kind="noted", lane="other"):
    text: str


class Watched:
    """A ``connect`` whose connections note statements, and fail one where told."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.fail = ""
        self.times = 0
        self.rolls_back = False

    def __call__(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        watched = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, *parameters: Any) -> Self:
                watched.note(sql, self.connection)
                return super().execute(sql, *parameters)

        class Connection(sqlite3.Connection):
            def cursor(self, *_: Any) -> sqlite3.Cursor:  # type: ignore[override]
                return super().cursor(Cursor)

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                watched.note(sql, self)
                return super().execute(sql, *parameters)

        return sqlite3.connect(*args, factory=Connection, **kwargs)

    def note(self, sql: str, connection: sqlite3.Connection) -> None:
        self.noted.append(sql)
        if self.times and sql.startswith(self.fail):
            self.times -= 1
            if self.rolls_back:  # as SQLite does by itself where it finds no room, or cannot write
                sqlite3.Connection.execute(connection, "ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

    def count(self, what: str) -> int:
        return sum(sql.startswith(what) for sql in self.noted)


class Opened:
    """A store whose units run in one group, and what it did."""

    def __init__(self, store: SqliteStore, outbox: Outbox, watched: Watched) -> None:
        self.store, self.outbox, self.watched = store, outbox, watched
        self.units = UnitStore(store, outbox)

    async def together(self, *units: Callable[..., Any]) -> list[Any]:
        """Run units in one group, behind one that holds the writer; return their results and exceptions.

        A function of the name ``raw`` gets the bare transaction, as the engine's own units do.
        """
        entered, released = threading.Event(), threading.Event()

        def hold(_: Transaction) -> None:
            entered.set()
            assert released.wait(LIMIT)

        first = asyncio.ensure_future(self.store.write(hold))
        await asyncio.to_thread(entered.wait, LIMIT)
        tasks = [
            asyncio.ensure_future((self.store if unit.__name__ == "raw" else self.units).write(unit)) for unit in units
        ]
        await asyncio.sleep(0)
        self.watched.noted.clear()
        released.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def texts(self, lane: str = "ledger") -> list[str]:
        """Return the bodies of a lane's events after checking that they are dense and counted."""
        messages = await self.units.read(messages_after, self.outbox, lane, None, limit=100_000, max_bytes=10**9)
        places = [message.place for message in messages]
        assert places == [Place(places[0].epoch, at) for at in range(1, len(places) + 1)] if places else True  # type: ignore[union-attr]

        def books(tx: Transaction) -> tuple[int, int, int | None, int | None]:
            row = tx.execute(
                "select o.bytes, o.written, (select max(last) from forebay_epoch e where e.origin = o.id) as last,"
                " (select sum(r.bytes) from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
                "  where e.origin = o.id) as stored from forebay_origin o where o.lane = :lane",
                lane=lane,
            )[0]
            return row["bytes"], row["written"], row["last"], row["stored"]

        size, written, last, stored = await self.store.read(books)
        assert (size, written, last or 0) == (stored or 0, len(places), len(places))
        return [msgspec.json.decode(message.body)["text"] for message in messages]

    async def items(self) -> list[str]:
        return await self.store.read(lambda tx: [row["name"] for row in tx.execute("select name from item order by 1")])


Open = Callable[..., Awaitable[Opened]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_item.sql").write_text(SCHEMA)
    sets = [MigrationSet("forebay", files("forebay.migrations")), MigrationSet("test", folder)]
    stores: list[SqliteStore] = []

    async def open_store(**options: Any) -> Opened:
        watched = Watched()
        store = await SqliteStore.open(tmp_path / "till.db", migrations=sets, connect=watched, **options)
        stores.append(store)
        outbox = Outbox("store-330", "till", LANES)
        await store.write(outbox.bind, "s1")
        return Opened(store, outbox, watched)

    yield open_store
    for store in stores:
        await store.close()


def sells(name: str, then: Callable[[UnitOfWork], Any] | None = None) -> Callable[[UnitOfWork], str]:
    def unit(tx: UnitOfWork) -> str:
        tx.execute("insert into item (name) values (:name)", name=name)
        message_id = tx.emit(Sold(text=name))
        if then is not None:
            then(tx)
        return message_id

    return unit


def raises(_: UnitOfWork) -> None:
    raise LookupError("of the unit")


def sequences(results: list[Any]) -> list[int | None]:
    found = [parse_message_id(result) if isinstance(result, str) else None for result in results]
    return [None if parsed is None else parsed.first for parsed in found]


async def test_the_events_of_a_group_are_written_once_before_its_commit_and_no_unit_has_a_savepoint(
    opened: Open,
) -> None:
    it = await opened()
    results = await it.together(*(sells(f"{at:02}") for at in range(20)))
    assert sequences(results) == list(range(1, 21))
    assert it.watched.count("update forebay_epoch") == 1
    assert it.watched.count("COMMIT") == 2  # that of the unit that held the writer, and that of the group
    assert it.watched.count("SAVEPOINT") == 0
    assert await it.texts() == await it.items() == [f"{at:02}" for at in range(20)]


async def test_a_unit_that_fails_after_writing_is_undone_alone_and_leaves_no_place(opened: Open) -> None:
    it = await opened()
    results = await it.together(sells("a"), sells("b", raises), sells("c"), sells("d", raises), sells("e"))
    assert [type(result) for result in results] == [str, LookupError, str, LookupError, str]
    assert sequences(results) == [1, None, 2, None, 3]
    assert await it.texts() == await it.items() == ["a", "c", "e"]
    assert it.watched.count("ROLLBACK TO") == 2


async def test_a_unit_that_only_emitted_and_fails_leaves_no_place(opened: Open) -> None:
    it = await opened()

    def emits(tx: UnitOfWork) -> None:
        tx.emit(Sold(text="undone"))
        raise LookupError

    results = await it.together(sells("a"), emits, sells("c"))
    assert sequences(results) == [1, None, 2]
    assert await it.texts() == ["a", "c"]


@pytest.mark.parametrize(
    "write",
    [
        lambda tx: tx.execute("insert into item (name) values ('x')"),
        lambda tx: tx.execute("with given as (select 'x' as name) insert into item select name from given"),
        lambda tx: tx.execute("replace into item (name) values ('x')"),
        lambda tx: tx.execute("/* a note */ insert into item (name) values ('x') returning name"),
        lambda tx: tx.execute("create table another (name text)"),
        lambda tx: tx.executemany("insert into item (name) values (:name)", [{"name": "x"}]),
        lambda tx: tx.insert_many("item", ["name"], [["x"], ["y"], ["z"], ["u"], ["v"]]),
    ],
    ids=["insert", "with", "replace", "note", "create", "many", "rows"],
)
@pytest.mark.parametrize("raw_unit", [False, True])
async def test_whatever_a_unit_wrote_with_before_it_failed_is_undone(
    opened: Open, write: Callable[[Any], None], raw_unit: bool
) -> None:
    it = await opened()

    def unit(tx: UnitOfWork) -> None:
        write(tx)
        raise LookupError

    def raw(tx: Transaction) -> None:
        write(tx)
        raise LookupError

    results = await it.together(sells("a"), raw if raw_unit else unit, sells("b"))
    assert [type(result) for result in results] == [str, LookupError, str]
    assert await it.texts() == await it.items() == ["a", "b"]
    assert await it.store.read(lambda tx: tx.execute("select 1 from sqlite_master where name = 'another'")) == []


async def test_a_unit_that_fails_before_it_wrote_has_no_other_unit_run_again(opened: Open) -> None:
    it = await opened()
    ran: list[str] = []

    def counted(name: str) -> Callable[[UnitOfWork], str]:
        return sells(name, lambda _: ran.append(name))

    def refuses(tx: UnitOfWork) -> None:
        assert tx.execute("select name from item where name = 'a'")  # it sees what was written before it
        raise LookupError("nothing to undo")

    def too_large(tx: UnitOfWork) -> None:
        tx.emit(Sold(text="x" * 300_000))

    results = await it.together(counted("a"), refuses, too_large, counted("b"))
    assert [type(result) for result in results] == [str, LookupError, EventTooLargeError, str]
    assert ran == ["a", "b"]
    assert await it.texts() == ["a", "b"]
    assert it.watched.count("SAVEPOINT") == 0


async def test_a_unit_alone_that_fails_is_rolled_back_without_a_commit(opened: Open) -> None:
    it = await opened()
    it.watched.noted.clear()
    with pytest.raises(LookupError):
        await it.units.write(sells("a", raises))
    assert it.watched.count("SAVEPOINT") == it.watched.count("COMMIT") == 0
    assert it.watched.count("ROLLBACK") == 1
    assert await it.items() == await it.texts() == []


async def test_a_unit_that_catches_a_broken_constraint_keeps_the_rest(opened: Open) -> None:
    it = await opened()

    def twice(tx: UnitOfWork) -> None:
        with pytest.raises(ConstraintError):
            tx.execute("insert into item (name) values ('a')")
        tx.emit(Sold(text="caught"))

    results = await it.together(sells("a"), twice, sells("b"))
    assert results[1] is None
    assert await it.texts() == ["a", "caught", "b"]
    assert it.watched.count("SAVEPOINT") == 0


async def test_a_deferred_constraint_in_a_group_fails_its_unit_alone(opened: Open) -> None:
    it = await opened()
    results = await it.together(
        sells("a"), sells("b", lambda tx: tx.execute("insert into child values (7)")), sells("c")
    )
    assert [type(result) for result in results] == [str, ConstraintError, str]
    assert sequences(results) == [1, None, 2]
    assert await it.texts() == await it.items() == ["a", "c"]


async def test_a_spent_budget_fails_its_unit_alone(opened: Open) -> None:
    it = await opened()

    def measure(tx: UnitOfWork) -> str:
        return tx.emit(Measured(text="x" * 300))

    results = await it.together(*[measure] * 6, sells("a"))
    kept = [result for result in results[:6] if isinstance(result, str)]
    assert sequences(kept) == list(range(1, len(kept) + 1))
    assert 2 < len(kept) < 6
    assert all(isinstance(result, BudgetSpentError) for result in results[len(kept) : 6])
    assert len(await it.texts("telemetry")) == len(kept)
    assert await it.texts() == ["a"]


@pytest.mark.parametrize("statement", ["update forebay_epoch", "update forebay_origin"])
async def test_where_writing_the_events_of_a_group_fails_once_its_units_write_each_for_itself(
    opened: Open, statement: str
) -> None:
    it = await opened()
    it.watched.fail, it.watched.times = statement, 1
    results = await it.together(sells("a"), sells("b"), sells("c"))
    assert sequences(results) == [1, 2, 3]
    assert await it.texts() == await it.items() == ["a", "b", "c"]
    assert it.watched.count("SAVEPOINT") == 3


async def test_where_events_cannot_be_written_every_unit_that_has_some_fails_and_the_others_do_not(
    opened: Open,
) -> None:
    it = await opened()

    def silent(tx: UnitOfWork) -> None:
        tx.execute("insert into item (name) values ('silent')")

    it.watched.fail, it.watched.times = "update forebay_epoch", 1_000
    results = await it.together(sells("a"), silent, sells("c"))
    it.watched.times = 0
    assert [type(result) for result in results] == [StoreError, type(None), StoreError]
    assert await it.items() == ["silent"]
    assert await it.texts() == []
    assert sequences([await it.units.write(sells("later"))]) == [1]


async def test_an_event_for_which_there_is_no_room_fails_its_unit_alone(opened: Open) -> None:
    it = await opened(max_bytes=1024 * 1024)
    large = 200_000
    fits = 0
    while True:
        try:
            await it.units.write(lambda tx: tx.emit(Noted(text="x" * large)))
        except StoreFullError:
            break
        fits += 1
    assert fits > 1

    def too_much(tx: UnitOfWork) -> None:
        tx.emit(Noted(text="x" * large))

    results = await it.together(sells("a"), too_much, sells("b"))
    assert [type(result) for result in results] == [str, StoreFullError, str]
    assert await it.texts() == await it.items() == ["a", "b"]
    assert len(await it.texts("other")) == fits


async def test_the_engine_s_own_units_find_written_what_was_emitted_before_them_in_their_group(opened: Open) -> None:
    it = await opened()
    await it.units.write(sells("first"))
    epoch = await it.store.read(lambda tx: str(tx.execute("select epoch from forebay_epoch")[0]["epoch"]))

    def raw(tx: Transaction) -> int:
        gone = freeing.free(tx, "ledger", epoch, 2, limit=10)
        return gone.events

    results = await it.together(sells("second"), raw, sells("third"))
    assert results[1] == 2
    assert sequences([results[0], results[2]]) == [2, 3]
    messages = await it.units.read(messages_after, it.outbox, "ledger", None, limit=10, max_bytes=10**6)
    assert [message.place for message in messages] == [Place(epoch, 3)]

    def books(tx: Transaction) -> tuple[int, int, int]:
        row = tx.execute("select bytes, written, confirmed from forebay_origin where lane = 'ledger'")[0]
        stored = tx.execute("select sum(bytes) as size from forebay_outbox")[0]["size"]
        return row["bytes"] - stored, row["written"], row["confirmed"]

    assert await it.store.read(books) == (0, 3, 2)


@pytest.mark.parametrize("rolls_back", [False, True])
async def test_a_unit_of_the_engine_after_events_that_cannot_be_written_is_not_taken_for_the_one_at_fault(
    opened: Open, rolls_back: bool
) -> None:
    it = await opened()
    it.watched.rolls_back = rolls_back

    def raw(tx: Transaction) -> int:
        return len(tx.execute("select name from item"))

    it.watched.fail, it.watched.times = "update forebay_epoch", 2
    results = await it.together(sells("a"), raw, sells("b"))
    assert [type(result) for result in results] == [StoreError, int, str]
    assert results[1] == 0
    assert await it.texts() == await it.items() == ["b"]


async def test_no_unit_is_forgotten_where_the_time_of_a_group_ends_and_its_events_cannot_be_written(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is run again, and its time may end again: those that wait for the next one are more then."""
    it = await opened()
    now, runs = [0.0], Counter[str]()
    monkeypatch.setattr("forebay.sqlite.group.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(name: str, run: int) -> Callable[[UnitOfWork], str]:
        def unit(tx: UnitOfWork) -> str:
            runs[name] += 1
            if runs[name] == run:
                now[0] += 1.0
            return sells(name)(tx)

        return unit

    it.watched.fail, it.watched.times = "update forebay_epoch", 1
    results = await it.together(slow("a", 2), slow("b", 1), sells("c"), sells("d"))
    assert sequences(results) == [1, 2, 3, 4]
    assert await it.texts() == ["a", "b", "c", "d"]


async def test_a_unit_that_only_wrote_many_events_at_once_and_fails_leaves_no_place(opened: Open) -> None:
    it = await opened()

    def extends(tx: UnitOfWork) -> None:
        body = msgspec.json.encode(Sold(text="many"))
        tx.extend("ledger", [entry("sold", "till.sold.v1", None, "2017-01-01T12:00:00Z", None, None, body)] * 3)
        raise LookupError

    results = await it.together(sells("a"), extends, sells("b"))
    assert [type(result) for result in results] == [str, LookupError, str]
    assert await it.texts() == ["a", "b"]


async def test_a_unit_that_changes_many_rows_of_the_outbox_finds_all_that_was_emitted_before(opened: Open) -> None:
    it = await opened()

    def changes(tx: UnitOfWork) -> None:
        tx.executemany("update forebay_outbox set key = :key", [{"key": "changed"}])

    await it.together(sells("a"), changes, sells("b"))
    keys = await it.store.read(lambda tx: [row["key"] for row in tx.execute("select key from forebay_outbox")])
    assert keys == ["changed", None]


async def test_a_unit_that_asks_the_outbox_s_tables_sees_all_that_was_emitted_before(opened: Open) -> None:
    it = await opened()

    def asks(tx: UnitOfWork) -> int:
        tx.emit(Sold(text="mine"))
        found = len(tx.execute("select 1 from forebay_outbox"))
        tx.emit(Sold(text="mine too"))
        return found

    results = await it.together(sells("a"), asks, sells("b"))
    assert results[1] == 2
    assert await it.texts() == ["a", "mine", "mine too", "b"]


async def test_many_events_do_not_wait_for_the_end_of_the_group(opened: Open) -> None:
    it = await opened()
    many = MOST_TOGETHER + 1

    def emits(tx: UnitOfWork) -> None:
        for at in range(many):
            tx.emit(Sold(text=f"{at}"))

    await it.together(sells("a"), emits, emits, sells("b"))
    assert it.watched.count("update forebay_epoch") == 3
    texts = await it.texts()
    assert texts == ["a", *map(str, range(many)), *map(str, range(many)), "b"]


_CHILD = """
import asyncio, sys
from pathlib import Path
from forebay.crash_points import arm
from tests.integration.test_group_events import die_in_a_group
asyncio.run(die_in_a_group(Path(sys.argv[1]), sys.argv[2]))
"""


async def die_in_a_group(folder: Path, point: str) -> None:
    """Write a unit, and then a group in which the process dies; for the test below."""
    from forebay.crash_points import arm

    sets = [MigrationSet("forebay", files("forebay.migrations")), MigrationSet("test", folder / "migrations")]
    watched = Watched()
    store = await SqliteStore.open(folder / "till.db", migrations=sets, connect=watched)
    outbox = Outbox("store-330", "till", LANES)
    await store.write(outbox.bind, "s1")
    it = Opened(store, outbox, watched)
    await it.units.write(sells("before"))
    arm(point)
    await it.together(sells("a"), sells("b", raises), sells("c"))
    raise AssertionError(f"{point} was not reached")


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ("write.unit-kept:2", ["before"]),
        ("write.unit-kept:4", ["before"]),
        ("write.committing:2", ["before"]),
        ("write.committed:2", ["before", "a", "c"]),
    ],
)
async def test_a_process_that_dies_in_a_group_has_kept_all_of_it_or_nothing(
    opened: Open, tmp_path: Path, point: str, kept: list[str]
) -> None:
    child = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _CHILD, str(tmp_path), point],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    it = await opened()
    assert await it.items() == sorted(kept)
    assert await it.texts() == kept
