"""The epochs under way are remembered from one transaction to the next, while nobody else writes their rows."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.calm_epochs import OF_ORIGIN, CalmEpochs
from forebay.delivery import Delivery
from forebay.epoch_rows import ANY_WAIT as ANY_WAIT_SQL
from forebay.epoch_rows import COLUMNS
from forebay.errors import OutcomeUnknownError
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.inbox import Inbox
from forebay.row_cache import RowCache
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.sqlite.migrations import migrate
from forebay.taken import Taken
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitOfWork
from tests import stores
from tests.integration.arrivals import ENGINE, NEW, OLD, Core, Stream, as_it_came, opened, own
from tests.integration.test_sqlite_store import Statements, failing


@pytest.fixture(autouse=True)
def on_sqlite(store_kind: str) -> Iterator[None]:
    stores.choose("sqlite")
    yield
    stores.choose(store_kind)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the units of work have said to the database about the inbox."""
    said: list[str] = []

    class Noting(UnitOfWork):
        def __init__(self, tx: Transaction, *args: Any) -> None:
            super().__init__(tx, *args)
            execute = self.execute

            def noted(sql: str, **params: Any) -> list[Row]:
                if "forebay_inbox" in sql:
                    said.append(" ".join(sql.split())[:6])
                return execute(sql, **params)

            self.execute = noted  # type: ignore[method-assign]

    monkeypatch.setattr("forebay.unit_of_work.UnitOfWork", Noting)
    return said


READ, ANY_WAIT, INSERT, UPDATE = "select", "select", "insert", "update"


async def take(core: Core, stream: Stream, sequence: int, nodes: int, **fields: Any) -> Taken:
    """Take the event of a sequence of each node."""
    batch = [
        as_it_came(stream.event(sequence, b"{}", kind="rung", node=f"store-{at}", epoch=f"{at:032x}", **fields))
        for at in range(nodes)
    ]
    return await core.take(batch)


async def watermarks(core: Core) -> set[int]:
    return {row["watermark"] for row in await core.rows("select watermark from forebay_inbox")}


async def test_a_row_that_was_written_is_not_read_again(tmp_path: Path, told: list[str]) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        assert (await take(core, stream, 1, 100)).skipped == 100
        assert told == [READ, ANY_WAIT, INSERT]
        for sequence in (2, 3):
            told.clear()
            assert (await take(core, stream, sequence, 100)).skipped == 100
            assert told == [UPDATE]
        assert await watermarks(core) == {3}


async def test_a_commit_of_another_connection_is_noticed(tmp_path: Path, told: list[str]) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)
        await take(core, stream, 2, 10)
        other = sqlite3.connect(tmp_path / "sales.db", isolation_level=None)
        other.execute("update forebay_inbox set watermark = 7")
        other.close()
        told.clear()
        assert (await take(core, stream, 3, 10)).duplicates == 10
        assert told == [READ, ANY_WAIT]
        assert (await take(core, stream, 8, 10)).skipped == 10
        assert await watermarks(core) == {8}


async def test_a_statement_of_another_unit_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()

        def after_another(tx: UnitOfWork) -> None:
            tx.execute("update forebay_position set sequence = sequence")
            tx.execute("update forebay_inbox set watermark = 8")

        for sequence, unit in (
            (2, lambda tx: tx.execute("update forebay_inbox set watermark = 2")),
            (4, lambda tx: tx.executemany("update forebay_inbox set watermark = :to", [{"to": 4}])),
            (6, lambda tx: tx.execute("with k as (select 6 as it) update Forebay_Inbox set watermark = it from k")),
            (8, after_another),
        ):
            assert (await take(core, stream, sequence - 1, 10)).skipped == 10
            await core.store.write(unit)
            assert (await take(core, stream, sequence, 10)).duplicates == 10
        assert await watermarks(core) == {8}


async def test_the_stores_own_work_on_the_connection_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)
        assert isinstance(core.sqlite, SqliteStore)
        await core.sqlite.write(lambda tx: tx.connection.execute("update forebay_inbox set watermark = 2") and None)  # type: ignore[attr-defined]
        assert (await take(core, stream, 2, 10)).duplicates == 10


async def test_a_unit_that_was_undone_has_left_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)

        def undone(tx: UnitOfWork) -> None:
            tx.execute("update forebay_inbox set lane = 'none'")
            raise ValueError("undone")

        with pytest.raises(ValueError, match="undone"):
            await core.store.write(undone)
        assert (await take(core, stream, 2, 10)).skipped == 10
        assert await watermarks(core) == {2}


async def test_what_two_inboxes_of_one_transaction_know_of_the_same_rows_is_not_kept(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)

        def skip(tx: UnitOfWork) -> None:
            first, second = Inbox(tx), Inbox(tx)
            second.whole("store-0", "till").skip(f"{0:032x}", 2)
            second.save()
            first.save()

        await core.store.write(skip)
        assert (await take(core, stream, 2, 1)).parked == 1, "its place was closed without it"


async def test_what_comes_after_the_writing_of_a_transaction_is_not_kept(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)

        def pass_too_late(tx: UnitOfWork) -> None:
            inbox = Inbox(tx)
            for sequence in (2, 3):
                place = Place(f"{0:032x}", sequence)
                assert inbox.pass_next(own(place, node="store-0"), place)
                if sequence == 2:
                    inbox.save()

        await core.store.write(pass_too_late)
        assert (await take(core, stream, 3, 1)).skipped == 1
        assert (await take(core, stream, 2, 1)).duplicates == 1


@pytest.mark.parametrize("really", [True, False])
async def test_after_a_commit_of_which_nobody_knows_the_rows_are_read_again(tmp_path: Path, really: bool) -> None:
    statements = Statements()
    store = await SqliteStore.open(tmp_path / "sales.db", migrations=[ENGINE], connect=statements)
    try:
        core, stream = Core(store, "sales", Handlers()), Stream()
        for sequence in (1, 2):
            assert (await take(core, stream, sequence, 10)).skipped == 10
        statements.fail = failing("COMMIT", really=really)
        with pytest.raises(OutcomeUnknownError):
            await take(core, stream, 3, 10)
        taken = await take(core, stream, 3, 10)
        assert (taken.skipped, taken.duplicates) == ((0, 10) if really else (10, 0))
        assert (await take(core, stream, 4, 10)).skipped == 10
        assert await watermarks(core) == {4}
    finally:
        await store.close()


async def test_under_another_lane_an_epoch_is_another_origins(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        await take(core, stream, 1, 10)
        assert (await take(core, stream, 2, 10, lane="telemetry")).parked == 10
        assert await watermarks(core) == {1}


async def test_epochs_of_one_name_are_each_nodes_and_services_own(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        writers = [("store-1", "till"), ("store-2", "till"), ("store-2", "stock"), ("store-1", "stock")]
        for sequences in ((1, 2), (3, 4), (5, 6)):
            batch = [
                as_it_came(stream.event(sequence, b"{}", kind="rung", node=node, service=service))
                for sequence in sequences
                for node, service in writers
            ]
            assert (await core.take(batch)).skipped == 8
        rows = await core.rows("select node, service, watermark from forebay_inbox")
        assert sorted((row["node"], row["service"], row["watermark"]) for row in rows) == [
            (node, service, 6) for node, service in sorted(writers)
        ]


async def test_while_a_later_epoch_waits_the_one_before_it_is_not_remembered(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()

        def event(sequence: int, epoch: str, prev: Place | None = None) -> Delivery:
            return as_it_came(stream.event(sequence, b"{}", kind="rung", epoch=epoch, prev=prev))

        assert (await core.take([event(1, NEW, Place(OLD, 3))])).held == 1
        for sequence in (1, 2):
            assert (await core.take([event(sequence, OLD)])).skipped == 1
        assert (await core.take([event(3, OLD)])).skipped == 2, "what was held comes with it"


async def test_of_a_node_that_is_known_an_epoch_that_is_not_is_looked_for(tmp_path: Path) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        old = as_it_came(stream.event(1, b"{}", kind="rung", epoch=OLD))
        new = as_it_came(stream.event(1, b"{}", kind="rung", epoch=NEW, lane="telemetry"))
        assert (await core.take([old])).skipped == 1
        taken = await core.take([new, old])
        assert (taken.skipped, taken.duplicates) == (1, 1)


async def test_what_is_remembered_of_a_node_is_read_at_once_where_its_frames_come_as_well(
    tmp_path: Path, told: list[str]
) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        for first in (1, 3):
            batch: list[Delivery] = []
            for at in range(10):
                fields: dict[str, Any] = {"node": f"store-{at}", "kind": "rung"}
                framed = [
                    stream.event(each, b"{}", epoch=f"{at + 100:032x}", lane="telemetry", **fields)
                    for each in (first, first + 1)
                ]
                alone = [stream.event(each, b"{}", epoch=f"{at:032x}", **fields) for each in (first, first + 1)]
                batch += [*map(as_it_came, alone), as_it_came(stream.frame(framed))]
            told.clear()
            assert (await core.take(batch)).skipped == 40
            assert told == [READ, ANY_WAIT, INSERT]


async def test_no_more_is_remembered_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    kept: list[int] = []
    end = CalmEpochs.end

    def noted(self: CalmEpochs) -> None:
        origins = self._origins
        end(self)
        kept.append(len(origins))

    monkeypatch.setattr(CalmEpochs, "end", noted)
    monkeypatch.setattr("forebay.calm_epochs.KEPT", 40)
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        for sequence in range(1, 6):
            told.clear()
            assert (await take(core, stream, sequence, 60)).skipped == 60
        assert await watermarks(core) == {5}
    assert kept == [30, 30, 30, 30, 30]
    assert told == [READ, ANY_WAIT, UPDATE, INSERT], "half of a fleet that is too large is known each time"


@pytest.mark.parametrize(("lanes", "remembered"), [(OF_ORIGIN, True), (OF_ORIGIN + 1, False)])
async def test_of_a_node_with_ever_more_lanes_none_is_remembered(
    tmp_path: Path, told: list[str], lanes: int, remembered: bool
) -> None:
    async with opened(tmp_path / "sales.db", "sales", Handlers()) as core:
        stream = Stream()
        for sequence in (1, 2):
            told.clear()
            batch = [
                as_it_came(stream.event(sequence, b"{}", kind="rung", epoch=f"{at:032x}", lane=f"lane-{at}"))
                for at in range(lanes)
            ]
            assert (await core.take(batch)).skipped == lanes
        assert (told == [UPDATE]) == remembered
        assert await watermarks(core) == {2}


def test_the_rows_of_an_older_schema_are_taken_over_as_they_are(tmp_path: Path) -> None:
    older = tmp_path / "migrations"
    older.mkdir()
    for file in ENGINE.folder.iterdir():
        if file.name < "0014":
            (older / file.name).write_text(file.read_text())
    connection = sqlite3.connect(tmp_path / "sales.db", isolation_level=None)
    migrate(connection, [MigrationSet("forebay", older)])
    columns = f"node, service, {COLUMNS}"
    rows = [
        ("store-2", "till", OLD, "ledger", "none", 5, "[]", "[]", "[]", "{}", None, None),
        ("store-1", "till", NEW, "ledger", f"{OLD}-3", 7, "[[9,9]]", "[[2,3]]", "[[4,4]]", "{}", "[10,12,400]", None),
        ("store-1", "till", OLD, "ledger", "none", 3, "[]", "[]", "[]", '{"dropped":[[5,6]]}', None, 2),
    ]
    connection.executemany(f"insert into forebay_inbox ({columns}) values ({', '.join('?' * 12)})", rows)
    migrate(connection, [ENGINE])
    assert sorted(connection.execute(f"select {columns} from forebay_inbox")) == sorted(rows)
    waiting = connection.execute(f"explain query plan {ANY_WAIT_SQL}").fetchall()
    assert "forebay_inbox_waiting" in waiting[0][-1]
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(f"insert into forebay_inbox ({columns}) values ({', '.join('?' * 12)})", rows[0])
    assert connection.execute("select name from sqlite_schema where name like '%before%'").fetchall() == []
    connection.close()


def test_what_is_known_ends_with_a_transaction_that_is_not_committed() -> None:
    cache = RowCache(lambda: 1)
    cache.begin()
    assert cache.borrow() == {}
    cache.give_back({"a": 1})
    cache.commit()
    cache.begin()
    assert cache.borrow() == {"a": 1}
    cache.give_back({"a": 2})
    cache.begin()  # that one was not committed
    assert cache.borrow() == {}
