"""Aggregates on real stores: what is recorded, what conflicts, what a crash leaves, and how they looked at a time."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from forebay import Aggregate, Event, Lane, Service, UnitOfWork, UnitStore
from forebay.aggregate import append, history_of, load
from forebay.envelope import Message
from forebay.errors import BudgetSpentError, ConfigurationError, UnreadableHistoryError, VersionConflictError
from forebay.evolution import upcasts
from forebay.identity import Place
from forebay.outbox import Outbox
from forebay.postgres import PostgresStore
from forebay.scripts import MigrationSet
from forebay.snapshot import schema_of
from forebay.sqlite import SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import TRACE, Trace
from tests.integration.together import followed_all, together

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

DIE = """
import asyncio, sys
from pathlib import Path
from forebay.crash_points import arm
from tests.integration.test_aggregate import cellar, fill

async def die() -> None:
    async with cellar(Path(sys.argv[1])) as store:
        arm(sys.argv[2])
        await store.write(fill, "b1", 7)

asyncio.run(die())
"""
"""Fills a barrel in a process of its own, which is killed at a crash point."""


class FilledV1(Event, service="cellar", kind="filled", version=1, key="barrel"):
    barrel: str
    gallons: int


class Filled(Event, service="cellar", kind="filled", version=2, key="barrel"):
    barrel: str
    litres: int


@upcasts(FilledV1)
def in_litres(old: FilledV1) -> Filled:
    return Filled(barrel=old.barrel, litres=old.gallons * 4)


class Drawn(Event, service="cellar", kind="drawn", key="barrel"):
    barrel: str
    litres: int


class Barrel(Aggregate, name="barrel", snapshot_every=3):
    litres: int = 0
    fillings: tuple[int, ...] = ()

    def draw(self, litres: int) -> Drawn:
        if litres > self.litres:
            raise LookupError(f"only {self.litres} litres")
        return Drawn(barrel=self.id, litres=litres)


@Barrel.applies(Filled)
def filled(barrel: Barrel, event: Filled) -> Barrel:
    return replace(barrel, litres=barrel.litres + event.litres, fillings=(*barrel.fillings, event.litres))


@Barrel.applies(Drawn)
def drawn(barrel: Barrel, event: Drawn) -> Barrel:
    return replace(barrel, litres=barrel.litres - event.litres)


def fill(tx: UnitOfWork, barrel: str, *litres: int, time: datetime | None = None) -> Barrel:
    found = load(tx, Barrel, barrel)
    return append(tx, found, *(Filled(barrel=barrel, litres=each) for each in litres), time=time)


def draw(tx: UnitOfWork, barrel: str, litres: int) -> Barrel:
    found = load(tx, Barrel, barrel)
    return append(tx, found, found.draw(litres))


def record(tx: UnitOfWork, barrel: Barrel, event: Event) -> Barrel:
    return append(tx, barrel, event)


def query(tx: Transaction, sql: str) -> list[Row]:
    return tx.execute(sql)


async def outbox_ids(store: UnitStore) -> list[str]:
    rows = await store.read(
        query,
        "select e.epoch, o.sequence from forebay_outbox o join forebay_epoch e on e.id = o.epoch"
        " order by e.id, o.sequence",
    )
    return [str(Place(row["epoch"], row["sequence"])) for row in rows]


@asynccontextmanager
async def cellar(path: Path, *, budget: str | int = "8MiB", url: str = "") -> AsyncIterator[UnitStore]:
    """The store of one service, as a process opens it; on PostgreSQL where there is a URL."""
    engine = [MigrationSet("forebay", files("forebay.migrations"))]
    outbox = Outbox("store-1", "cellar", [Lane("ledger", budget=budget)])
    async with AsyncExitStack() as stack:
        store: SqliteStore | PostgresStore
        if url:
            store = await PostgresStore.open(url, "cellar", migrations=engine)
        else:
            store = await SqliteStore.open(path / "cellar.db", migrations=engine)
        stack.push_async_callback(store.close)
        await store.write(outbox.bind, "s1")
        yield UnitStore(store, outbox)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[UnitStore]:
    async with cellar(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UnitStore]:
    url = ""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.create_database()
    async with cellar(tmp_path, url=url) as opened:
        yield opened


async def test_one_append_writes_history_and_outbox_with_the_same_event(either: UnitStore) -> None:
    token = TRACE.set(Trace(TRACEPARENT))
    try:
        done = await either.write(fill, "b1", 5, 2, time=NOON)
    finally:
        TRACE.reset(token)
    assert done == Barrel(id="b1", version=2, litres=7, fillings=(5, 2))
    entries = await either.read(history_of, Barrel, "b1")
    assert [(each.version, each.event, each.time, each.cause) for each in entries] == [
        (1, Filled(barrel="b1", litres=5), NOON, None),
        (2, Filled(barrel="b1", litres=2), NOON, None),
    ]
    assert [each.message_id for each in entries] == await outbox_ids(either)
    rows = await either.read(query, "select type, key, time, extra, body from forebay_outbox order by sequence")
    assert [(row["type"], row["key"], row["time"]) for row in rows] == [
        ("cellar.filled.v2", "b1", "2026-03-01T12:00:00Z")
    ] * 2
    assert bytes(rows[1]["body"]) == b'{"barrel":"b1","litres":2}'
    assert TRACEPARENT in rows[0]["extra"]


async def test_the_history_stays_after_the_outbox_freed_its_rows(store: UnitStore) -> None:
    await store.write(fill, "b1", 5)
    await store.write(lambda tx: tx.execute("delete from forebay_outbox"))
    assert (await store.read(load, Barrel, "b1")).litres == 5
    assert (await store.write(fill, "b1", 1)).version == 2


async def test_what_was_decided_on_an_older_version_is_refused_and_leaves_nothing(store: UnitStore) -> None:
    loaded = await store.read(load, Barrel, "b1")
    await store.write(fill, "b1", 5)
    with pytest.raises(VersionConflictError, match="load it again and decide again") as caught:
        await store.write(record, loaded, Filled(barrel="b1", litres=9))
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert (await store.read(load, Barrel, "b1")).litres == 5
    assert len(await outbox_ids(store)) == 1


async def test_a_conflict_that_the_unit_catches_leaves_neither_history_nor_outbox_row(store: UnitStore) -> None:
    def stubborn(tx: UnitOfWork) -> None:
        fill(tx, "b1", 1)
        with pytest.raises(VersionConflictError):
            append(tx, Barrel(id="b1"), Filled(barrel="b1", litres=2))

    await store.write(stubborn)
    assert [each.message_id for each in await store.read(history_of, Barrel, "b1")] == await outbox_ids(store)
    assert len(await outbox_ids(store)) == 1


async def test_of_many_who_decide_at_once_on_one_version_exactly_one_wins(either: UnitStore) -> None:
    await either.write(fill, "b1", 10)
    loaded = await either.read(load, Barrel, "b1")
    outcomes: list[str] = []

    async def decide(litres: int) -> None:
        try:
            await either.write(record, loaded, loaded.draw(litres))
            outcomes.append("won")
        except VersionConflictError:
            outcomes.append("lost")

    async with anyio.create_task_group() as tasks:
        for litres in range(8):
            tasks.start_soon(decide, litres)
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(await either.read(history_of, Barrel, "b1")) == len(await outbox_ids(either)) == 2


async def test_two_processes_on_postgresql_that_decide_at_once_cannot_both_be_right(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.create_database()
    async with cellar(tmp_path, url=url) as one, cellar(tmp_path, url=url) as other:
        await one.write(fill, "b1", 10)
        drawn_dry = 0
        refused = 0

        async def decide(store: UnitStore) -> None:
            nonlocal drawn_dry, refused
            try:
                await store.write(draw, "b1", 10)  # loads and decides in the transaction: run again where it collides
                drawn_dry += 1
            except LookupError:
                refused += 1

        async with anyio.create_task_group() as tasks:
            for each in (one, other) * 3:
                tasks.start_soon(decide, each)
        assert (drawn_dry, refused) == (1, 5)
        assert (await one.read(load, Barrel, "b1")).litres == 0
        assert [entry.message_id for entry in await one.read(history_of, Barrel, "b1")] == await outbox_ids(one)


async def test_a_decision_that_refuses_leaves_nothing(store: UnitStore) -> None:
    with pytest.raises(LookupError):
        await store.write(draw, "b1", 1)
    assert (await store.read(load, Barrel, "b1")).version == 0
    assert await outbox_ids(store) == []


async def test_state_as_of_a_version_and_of_a_time_of_recording_and_of_happening(either: UnitStore) -> None:
    await either.write(fill, "b1", 5, time=NOON)
    (first,) = await either.read(history_of, Barrel, "b1")
    await either.write(fill, "b1", 3, time=NOON - timedelta(hours=1))  # told late
    await either.write(lambda tx: tx.execute("update forebay_history set recorded_at = recorded_at + 1000 * version"))
    for each in range(4):
        await either.write(fill, "b1", 10 + each, time=NOON + timedelta(hours=1 + each))

    async def litres(**when: int | datetime) -> int:
        return (await either.read(load, Barrel, "b1", **when)).litres  # type: ignore[arg-type]

    assert [await litres(version=version) for version in (0, 1, 2, 3, 6)] == [0, 5, 8, 18, 54]
    assert await litres(known_at=first.recorded_at + timedelta(seconds=1)) == 5
    assert await litres(known_at=first.recorded_at - timedelta(seconds=1)) == 0
    assert await litres(at=NOON - timedelta(minutes=1)) == 3
    assert await litres(at=NOON) == 8
    assert await litres(at=NOON + timedelta(hours=1, minutes=30)) == 18
    with pytest.raises(ValueError, match="no version 7, only 6"):
        await litres(version=7)
    with pytest.raises(ValueError, match="one of"):
        await litres(version=1, at=NOON)
    with pytest.raises(ValueError, match="offset"):
        await litres(at=datetime(2026, 1, 1))


async def test_nothing_can_be_appended_to_a_state_of_the_past(store: UnitStore) -> None:
    await store.write(fill, "b1", 5, 6, time=NOON)
    for past in (
        await store.read(load, Barrel, "b1", version=1),
        await store.read(load, Barrel, "b1", at=NOON),
    ):
        with pytest.raises(VersionConflictError):
            await store.write(record, past, Filled(barrel="b1", litres=1))


async def test_times_of_recording_never_go_back_even_where_the_wall_clock_does(store: UnitStore) -> None:
    await store.write(fill, "b1", 1)
    await store.write(lambda tx: tx.execute("update forebay_history set recorded_at = 99999999999999"))
    await store.write(fill, "b1", 2)
    one, two = await store.read(history_of, Barrel, "b1")
    assert one.recorded_at == two.recorded_at


async def test_a_history_is_listed_in_pages(store: UnitStore) -> None:
    await store.write(fill, "b1", 1, 2, 3, 4, 5)
    assert [each.version for each in await store.read(history_of, Barrel, "b1", after=1, limit=2)] == [2, 3]
    assert await store.read(history_of, Barrel, "b1", after=5) == []


async def test_a_snapshot_is_written_every_so_many_events_and_older_events_are_not_read_again(
    either: UnitStore,
) -> None:
    for each in range(1, 8):
        await either.write(fill, "b1", each)
    (row,) = await either.read(query, "select version from forebay_snapshot")
    assert row["version"] == 6
    await either.write(lambda tx: tx.execute("delete from forebay_history where version < 6"))
    assert (await either.read(load, Barrel, "b1")).fillings == (1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    "harm",
    [
        "update forebay_snapshot set schema = 'of another release'",
        "update forebay_snapshot set state = :bytes",
        "delete from forebay_snapshot",
        "update forebay_snapshot set version = 99",
    ],
)
async def test_a_snapshot_of_another_schema_or_that_cannot_be_read_is_ignored_and_written_anew(
    store: UnitStore, harm: str
) -> None:
    before = await store.write(fill, "b1", 1, 2, 3)
    await store.write(lambda tx: tx.execute(harm, bytes=b"\xff{"))
    assert await store.read(load, Barrel, "b1") == before
    await store.write(fill, "b1", 4, 5, 6)
    if "99" not in harm:
        (row,) = await store.read(query, "select version, schema from forebay_snapshot")
        assert (row["version"], row["schema"]) == (6, Barrel.spec.snapshot_schema(Barrel))


async def test_an_older_version_of_an_event_is_read_through_its_upcaster(store: UnitStore) -> None:
    await store.write(fill, "b1", 5)
    body = msgspec.json.encode(FilledV1(barrel="b1", gallons=2))
    await store.write(lambda tx: tx.execute("update forebay_history set revision = 1, body = :body", body=body))
    assert (await store.read(load, Barrel, "b1")).litres == 8
    (entry,) = await store.read(history_of, Barrel, "b1")
    assert entry.event == Filled(barrel="b1", litres=8)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("update forebay_history set kind = 'sealed' where version = 2", "version 2 .* 'sealed'"),
        ("update forebay_history set revision = 3 where version = 2", "version 2 .* version 3 cannot be read"),
        ("delete from forebay_history where version = 1", "version 1 .* missing"),
    ],
)
async def test_a_history_that_this_release_cannot_read_is_an_error_that_names_the_version(
    store: UnitStore, harm: str, words: str
) -> None:
    await store.write(fill, "b1", 5, 6)
    await store.write(lambda tx: tx.execute(harm))
    with pytest.raises(UnreadableHistoryError, match=words) as caught:
        await store.read(load, Barrel, "b1")
    assert caught.value.version in (1, 2)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Filled(barrel="b2", litres=1), "the key 'b2'"),
        (FilledV1(barrel="b1", gallons=1), "does not apply cellar.filled.v1"),
        (Filled(barrel="b1", litres="many"), "could not be read again"),  # type: ignore[arg-type]
    ],
)
async def test_an_event_that_is_not_the_aggregates_is_refused(store: UnitStore, event: Event, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await store.write(record, Barrel(id="b1"), event)
    assert await outbox_ids(store) == []


async def test_a_budget_that_is_spent_keeps_history_and_outbox_alike(tmp_path: Path) -> None:
    def fill_up(tx: UnitOfWork) -> None:
        with pytest.raises(BudgetSpentError):
            fill(tx, "b1", *range(100))

    async with cellar(tmp_path, budget=2000) as store:
        await store.write(fill_up)
        entries = await store.read(history_of, Barrel, "b1")
        assert entries
        assert [each.message_id for each in entries] == await outbox_ids(store)
        assert (await store.read(load, Barrel, "b1")).version == len(entries)
        with pytest.raises(BudgetSpentError):
            await store.write(fill, "b2", *range(100))
        assert (await store.read(load, Barrel, "b2")).version == 0


@pytest.mark.parametrize("point", ["write.begun", "write.unit-kept", "write.committing", "write.committed"])
async def test_a_crash_leaves_history_and_outbox_both_or_neither(tmp_path: Path, point: str) -> None:
    async with cellar(tmp_path) as store:
        await store.write(fill, "b1", 1)
    died = await anyio.run_process([sys.executable, "-c", DIE, str(tmp_path), point], check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    async with cellar(tmp_path) as store:
        entries = await store.read(history_of, Barrel, "b1")
        assert [each.message_id for each in entries] == await outbox_ids(store)
        assert len(entries) == (2 if point == "write.committed" else 1)
        assert (await store.write(fill, "b1", 1)).version == len(entries) + 1


class Bottled(Event, service="press", kind="bottled", key="barrel"):
    barrel: str
    litres: int


async def test_an_event_of_another_service_moves_an_aggregate_once_and_is_named_as_the_cause(tmp_path: Path) -> None:
    press = Service("press", lanes=[Lane("ledger", budget="1MiB")])
    service = Service("cellar", lanes=[Lane("ledger", budget="1MiB")])

    @service.follow(Bottled)
    def store_it(tx: UnitOfWork, event: Bottled, message: Message) -> None:
        fill(tx, event.barrel, event.litres, time=message.time)

    async with together(tmp_path, press, service) as running:
        said = [
            await running["press"].store.write(lambda tx, n=each: tx.emit(Bottled(barrel="b1", litres=n)))  # type: ignore[misc]
            for each in (1, 2)
        ]
        await followed_all(running["cellar"], 2)
        entries = await running["cellar"].store.read(history_of, Barrel, "b1")
    assert [each.cause for each in entries] == [f"{each}/cellar/0" for each in said]
    assert [each.event for each in entries] == [Filled(barrel="b1", litres=1), Filled(barrel="b1", litres=2)]


def test_what_cannot_be_an_aggregate_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="name="):

        class Nameless(Aggregate):
            pass

    with pytest.raises(ConfigurationError, match="default"):

        class Bare(Aggregate, name="bare"):
            litres: int  # type: ignore[misc]

    with pytest.raises(ConfigurationError, match="snapshot_every 0"):

        class Never(Aggregate, name="never", snapshot_every=0):
            pass

    class Keyless(Event, service="cellar", kind="keyless"):
        pass

    class Foreign(Event, service="attic", kind="foreign", key="barrel"):
        barrel: str

    for event, words in ((Keyless, "no key"), (Foreign, "another service or lane"), (FilledV1, "applies .* already")):
        with pytest.raises(ConfigurationError, match=words):
            Barrel.applies(event)(lambda barrel, _: barrel)


async def test_a_fold_that_forgets_to_return_is_told_before_anything_is_written(store: UnitStore) -> None:
    class Cask(Aggregate, name="cask"):
        pass

    @Cask.applies(Drawn)
    def forgets(cask: Cask, _: Drawn) -> Cask:
        replace(cask)
        return None  # type: ignore[return-value]

    with pytest.raises(ConfigurationError, match="forgets returned NoneType"):
        await store.write(lambda tx: append(tx, Cask(id="b1"), Drawn(barrel="b1", litres=1)))
    assert await outbox_ids(store) == []


async def test_a_snapshot_beyond_a_history_that_lost_its_end_is_passed_over(store: UnitStore) -> None:
    def lose_the_end(tx: UnitOfWork) -> None:
        tx.execute("delete from forebay_history where version > 2")  # as of a salvaged database

    await store.write(fill, "b-1", 10, 10, 10)
    assert await store.read(query, "select version from forebay_snapshot")
    await store.write(lose_the_end)
    barrel = await store.read(load, Barrel, "b-1")
    assert (barrel.version, barrel.litres) == (2, 20)
    await store.write(fill, "b-1", 1)
    barrel = await store.read(load, Barrel, "b-1")
    assert (barrel.version, barrel.litres) == (3, 21), "the snapshot of another version 3 is gone"


def test_a_snapshots_schema_names_fields_number_and_events() -> None:
    said = {
        schema_of(state, number, folded)
        for state in (Barrel, FilledV1)
        for number in (1, 2)
        for folded in (["cellar.filled.v2"], ["cellar.filled.v2", "cellar.drawn.v1"])
    }
    assert len(said) == 8
    assert schema_of(Barrel, 1, ["a", "b"]) == schema_of(Barrel, 1, ["b", "a"])
