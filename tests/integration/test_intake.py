import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay import Event, Message, UnitOfWork
from forebay.committing import FORGET_INTERVAL, Committing
from forebay.epoch_rows import ANY_WAIT, EPOCHS, OF_MANY, WAITING
from forebay.errors import StoreBusyError, StoreError
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.intake import TOGETHER, take_all
from forebay.redrive import discard, due, postpone
from forebay.retries import retry_one
from forebay.sqlite import MigrationSet
from forebay.taken import HandlerFailedError
from forebay.transaction import Row, Transaction
from tests.integration.arrivals import NEW, OLD, Core, Stream, opened
from tests.stores import on_postgres, written_for

SCHEMA = "create table effect (id integer primary key autoincrement, n integer not null, message_id text not null);"
BODY = b'{"n":%d}'


class Rung(Event, service="till", kind="rung"):
    n: int


class RungTogether(Event, service="till", kind="rung-together"):
    n: int


FAILING = 13


def rung(tx: UnitOfWork, event: Rung, message: Message) -> None:
    tx.execute("insert into effect (n, message_id) values (:n, :id)", n=event.n, id=message.message_id)
    if event.n == FAILING:
        raise ZeroDivisionError("a handler's\nmistake")


def rung_together(tx: UnitOfWork, events: list[RungTogether], messages: list[Message]) -> None:
    for event, message in zip(events, messages, strict=True):
        tx.execute("insert into effect (n, message_id) values (:n, :id)", n=event.n, id=message.message_id)
    if any(event.n == FAILING for event in events):
        raise ZeroDivisionError


def handlers() -> Handlers:
    known = Handlers()
    known.add(Rung, rung, batch=False)
    known.add(RungTogether, rung_together, batch=True)
    return known


@asynccontextmanager
async def opened_at(folder: Path) -> AsyncIterator[Core]:
    migrations = folder / "migrations"
    migrations.mkdir(exist_ok=True)
    for ending, text in written_for(SCHEMA).items():
        (migrations / f"0001_effect.{ending}").write_text(text)
    async with opened(folder / "sales.db", "sales", handlers(), [MigrationSet("sales", migrations)]) as core:
        yield core


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with opened_at(tmp_path) as core:
        yield core


@pytest.fixture(params=[False, True], ids=["headers", "as they came"])
def stream(request: pytest.FixtureRequest) -> Stream:
    return Stream(raw=request.param)


def event(stream: Stream, sequence: int, n: int | None = None, **fields: Any) -> Any:
    return stream.event(sequence, BODY % (sequence if n is None else n), **{"kind": "rung", **fields})


async def effects(core: Core) -> list[int]:
    return [row["n"] for row in await core.rows("select n from effect order by id")]


async def watermark(core: Core, epoch: str = OLD) -> int:
    rows = await core.rows(f"select watermark from forebay_inbox where epoch = '{epoch}'")
    return int(rows[0]["watermark"]) if rows else 0


async def test_a_duplicate_has_no_second_effect(core: Core, stream: Stream) -> None:
    taken = await core.take([event(stream, 1), event(stream, 2), event(stream, 1)])
    again = await core.take([event(stream, 2), event(stream, 1)])

    assert (taken.applied, taken.duplicates) == (2, 1)
    assert (again.applied, again.duplicates) == (0, 2)
    assert await effects(core) == [1, 2]


async def test_a_retransmission_under_a_random_suffix_is_a_duplicate(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1)])

    assert (await core.take([event(stream, 1, headers={"Nats-Msg-Id": f"{OLD}-1~abc"})])).duplicates == 1


async def test_events_above_a_hole_are_held_and_released_in_order(core: Core, stream: Stream) -> None:
    held = await core.take([event(stream, 1), event(stream, 4), event(stream, 3), event(stream, 4)])

    assert (held.applied, held.held, held.duplicates) == (1, 2, 1)
    assert await effects(core) == [1]
    assert [row["sequence"] for row in await core.rows("select sequence from forebay_held order by sequence")] == [3, 4]

    released = await core.take([event(stream, 2), event(stream, 5)])

    assert released.applied == 4
    assert await effects(core) == [1, 2, 3, 4, 5]
    assert await core.rows("select * from forebay_held") == []
    assert await watermark(core) == 5


async def test_an_epoch_waits_for_the_place_before_it(core: Core, stream: Stream) -> None:
    before = Place(OLD, 2)
    await core.take([event(stream, 2, 12, epoch=NEW, prev=before), event(stream, 1, 11, epoch=NEW, prev=before)])
    await core.take([event(stream, 2)])
    assert await effects(core) == []

    await core.take([event(stream, 1)])

    assert await effects(core) == [1, 2, 11, 12]


async def test_a_chain_of_epochs_is_released_by_its_oldest(core: Core, stream: Stream) -> None:
    third = f"{3:032x}"
    await core.take([event(stream, 1, 21, epoch=third, prev=Place(NEW, 1))])
    await core.take([event(stream, 1, 11, epoch=NEW, prev=Place(OLD, 1))])
    assert await effects(core) == []

    await core.take([event(stream, 1)])

    assert await effects(core) == [1, 11, 21]


async def test_one_nodes_events_do_not_wait_for_anothers_hole(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 2), event(stream, 1, 7, node="store-1", epoch=NEW)])

    assert await effects(core) == [7]


async def test_the_same_epoch_on_another_node_is_another_origin(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1), event(stream, 1, 7, node="store-1")])

    assert await effects(core) == [1, 7]


async def test_what_is_held_survives_a_reopening_of_the_store(tmp_path: Path, stream: Stream) -> None:
    async with opened_at(tmp_path) as core:
        await core.take([event(stream, 3), event(stream, 2), event(stream, 1, 9, epoch=NEW, prev=Place(OLD, 3))])
    async with opened_at(tmp_path) as core:
        assert (await core.take([event(stream, 3)])).duplicates == 1
        await core.take([event(stream, 1)])

        assert await effects(core) == [1, 2, 3, 9]


async def test_an_unknown_version_is_parked_and_its_place_passed(core: Core, stream: Stream) -> None:
    taken = await core.take([event(stream, 1, type="till.rung.v2"), event(stream, 2)])

    assert (taken.parked, taken.applied) == (1, 1)
    assert await core.parked() == [("unknown-version", f"{OLD}-1")]
    assert await effects(core) == [2]


async def test_a_type_of_another_subject_is_parked(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1, type="till.other.v1")])

    assert await core.parked() == [("malformed-header", f"{OLD}-1")]


async def test_an_event_without_a_handler_is_skipped_and_its_place_passed(core: Core, stream: Stream) -> None:
    taken = await core.take([event(stream, 1, kind="swept"), event(stream, 2)])

    assert (taken.skipped, taken.applied) == (1, 1)
    assert await watermark(core) == 2


@pytest.mark.parametrize("body", [b"{", b'{"n":"one"}', b"", b"\xff"])
async def test_an_undecodable_body_is_parked_as_it_came_and_its_place_passed(
    core: Core, stream: Stream, body: bytes
) -> None:
    await core.take([stream.event(1, body, kind="rung", key="caf\u00e9"), event(stream, 2)])

    assert await core.parked() == [("undecodable-body", f"{OLD}-1")]
    assert (await core.rows("select body, key from forebay_parked"))[0]["body"] == body
    assert await effects(core) == [2]
    assert await watermark(core) == 2


async def test_an_undecodable_body_that_was_held_is_parked_when_its_turn_comes(core: Core, stream: Stream) -> None:
    await core.take([stream.event(2, b"{", kind="rung"), event(stream, 3)])
    assert await core.parked() == []

    await core.take([event(stream, 1)])

    assert await core.parked() == [("undecodable-body", f"{OLD}-2")]
    assert await effects(core) == [1, 3]


async def test_a_forged_source_is_parked_and_its_place_passed(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1, source="/store-1/till"), event(stream, 2)])

    assert await core.parked() == [("forged-source", f"{OLD}-1")]
    assert await effects(core) == [2]


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Msg-Id": None},
        {"Nats-Msg-Id": f"{OLD}-0"},
        {"Nats-Msg-Id": f"{OLD}-1-5"},
        {"forebay-lane": None},
        {"forebay-lane": "No Lane"},
        {"forebay-prev": None},
        {"forebay-prev": "nothing"},
        {"forebay-prev": f"{OLD}-1"},
    ],
    ids=str,
)
async def test_what_cannot_be_placed_is_parked_and_its_place_stays_open(
    core: Core, stream: Stream, headers: dict[str, str | None]
) -> None:
    taken = await core.take([event(stream, 1, headers=headers), event(stream, 2)])

    assert (taken.parked, taken.held) == (1, 1)
    assert [reason for reason, _ in await core.parked()] == ["malformed-header"]
    assert await effects(core) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-specversion": "0.3"},
        {"ce-id": None},
        {"ce-type": None},
        {"ce-time": None},
        {"ce-time": "yesterday"},
        {"ce-time": "2017-01-01T11:53:26"},
        {"ce-time": "0001-01-01T00:00:00+14:00"},
        {"ce-time": "9999-12-31T23:59:59-14:00"},
        {"ce-note": "%FF"},
        {"forebay-hlc": "1"},
    ],
    ids=str,
)
async def test_a_malformed_envelope_is_parked_and_its_place_passed(
    core: Core, stream: Stream, headers: dict[str, str | None]
) -> None:
    taken = await core.take([event(stream, 1, headers=headers), event(stream, 2)])

    assert (taken.parked, taken.applied) == (1, 1)
    assert await core.parked() == [("malformed-header", f"{OLD}-1")]


async def test_a_foreign_id_counts_once_for_its_node_and_service(core: Core, stream: Stream) -> None:
    deliveries = [
        stream.foreign("a/b", BODY % 1, kind="rung"),
        stream.foreign("a/b", BODY % 2, kind="rung"),
        stream.foreign("a/b", BODY % 3, kind="rung", node="store-1"),
    ]
    taken = await core.take(deliveries)
    again = await core.take(deliveries)

    assert (taken.applied, taken.duplicates, again.duplicates) == (2, 1, 3)
    assert await effects(core) == [1, 3]


async def test_an_epoch_under_a_second_lane_is_parked_and_changes_nothing(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1), event(stream, 2, lane="telemetry"), event(stream, 2)])

    assert await core.parked() == [("foreign-lane", f"{OLD}-2")]
    assert await effects(core) == [1, 2]


async def test_a_failing_handler_undoes_everything_and_names_its_delivery(core: Core, stream: Stream) -> None:
    failing = [event(stream, 1), event(stream, 3), event(stream, 5, type="till.rung.v9"), event(stream, 2, FAILING)]

    with pytest.raises(HandlerFailedError, match=r"ZeroDivisionError: a handler's$") as raised:
        await core.take(failing)

    assert (raised.value.index, raised.value.message_id, raised.value.alone) == (3, f"{OLD}-2", True)
    for table in ("effect", "forebay_inbox", "forebay_held", "forebay_parked", "forebay_position"):
        assert await core.rows(f"select * from {table}") == [], table

    await core.take([*failing[:3], event(stream, 2)])
    assert await effects(core) == [1, 2, 3]


async def test_a_held_event_that_fails_names_the_delivery_that_released_it(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 2, FAILING)])

    with pytest.raises(HandlerFailedError) as raised:
        await core.take([event(stream, 7, epoch=NEW), event(stream, 1)])

    assert (raised.value.index, raised.value.message_id, raised.value.alone) == (1, f"{OLD}-2", True)
    assert await effects(core) == []


async def test_a_batch_handler_is_certain_of_its_failing_event_only_when_it_has_one(core: Core, stream: Stream) -> None:
    deliveries = [event(stream, at, n, kind="rung-together") for at, n in [(1, 1), (2, 2), (3, FAILING), (4, 4)]]

    with pytest.raises(HandlerFailedError) as raised:
        await core.take(deliveries)
    assert (raised.value.index, raised.value.alone) == (0, False)

    with pytest.raises(HandlerFailedError) as raised:
        await core.take(deliveries, one_by_one=True)
    assert (raised.value.index, raised.value.message_id, raised.value.alone) == (2, f"{OLD}-3", True)

    await core.take(deliveries[:2], one_by_one=True)
    assert await effects(core) == [1, 2]


async def test_a_batch_that_fails_begins_where_the_handler_before_it_ended(core: Core, stream: Stream) -> None:
    deliveries = [event(stream, 1), event(stream, 2, kind="rung-together"), event(stream, 3, FAILING, kind="rung")]
    together = [event(stream, 3, FAILING, kind="rung-together"), event(stream, 4)]

    with pytest.raises(HandlerFailedError) as raised:
        await core.take(deliveries)
    assert (raised.value.index, raised.value.alone) == (2, True)

    with pytest.raises(HandlerFailedError) as raised:
        await core.take([*deliveries[:2], *together])
    assert (raised.value.index, raised.value.alone) == (1, False)


async def test_handlers_of_both_kinds_see_events_in_their_order(core: Core, stream: Stream) -> None:
    kinds = ["rung", "rung-together", "rung-together", "rung", "swept", "rung-together"]

    await core.take([event(stream, at, kind=kind) for at, kind in enumerate(kinds, 1)])

    assert await effects(core) == [1, 2, 3, 4, 6]


async def test_the_stores_failure_in_a_handler_is_not_the_handlers(tmp_path: Path, stream: Stream) -> None:
    def busy(_tx: UnitOfWork, _event: Rung) -> None:
        raise StoreBusyError("locked")

    known = Handlers()
    known.add(Rung, busy, batch=False)
    async with opened(tmp_path / "busy.db", "sales", known) as core:
        with pytest.raises(StoreError):
            await core.take([event(stream, 1)])


async def test_the_position_of_each_partition_is_that_of_its_last_delivery(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1), event(stream, 1, node="store-1"), event(stream, 2, type="broken")])

    rows = await core.rows("select sequence, message_id from forebay_position order by sequence")
    assert [(row["sequence"], row["message_id"]) for row in rows] == [(2, f"{OLD}-1"), (3, f"{OLD}-2")]


class Noted(Event, service="till", kind="noted"):
    text: str


@pytest.mark.parametrize(
    "body",
    [b'{"text":"\xff"}', b'{"text":"a","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"],
    ids=["no UTF-8", "too deep"],
)
async def test_a_body_that_breaks_the_decoder_is_parked_and_its_place_passed(
    tmp_path: Path, stream: Stream, body: bytes
) -> None:
    known = Handlers()
    known.add(Noted, lambda _tx, _event: None, batch=False)
    async with opened(tmp_path / "noted.db", "sales", known) as core:
        await core.take([stream.event(1, body, kind="noted"), stream.event(2, b'{"text":"a"}', kind="noted")])

        assert await core.parked() == [("undecodable-body", f"{OLD}-1")]
        assert await watermark(core) == 2


async def test_what_cannot_be_placed_is_parked_once_however_often_the_stream_is_read(
    core: Core, stream: Stream
) -> None:
    """S5: where a position does not stand any more, everything is read again."""
    unplaced = [event(stream, 1, headers={"forebay-lane": None}), event(stream, 2, headers={"Nats-Msg-Id": None})]

    await core.take(unplaced)
    await core.take(unplaced)

    assert len(await core.parked()) == 2


async def test_what_follows_in_the_batch_of_an_event_that_is_parked_waits_behind_it_f1(
    core: Core, stream: Stream
) -> None:
    taken = await core.take(
        [
            event(stream, 1, key="a", type="till.rung.v9"),
            event(stream, 2, key="a"),
            event(stream, 3, key="b"),
        ]
    )
    assert (taken.applied, taken.parked) == (1, 2)
    assert [message_id for _, message_id in await core.parked()] == [f"{OLD}-1", f"{OLD}-2"]
    assert await effects(core) == [3]


async def test_a_cause_is_acted_on_once_however_its_emitter_was_restored_b5(core: Core, stream: Stream) -> None:
    cause = f"{'c' * 32}-7/till/0"
    await core.take([event(stream, 1, cause=cause), event(stream, 2)])
    again = await core.take([event(stream, 1, 3, epoch=NEW, prev=Place(OLD, 1), cause=cause)])

    assert (again.applied, again.duplicates) == (0, 1)
    assert await effects(core) == [1, 2]
    assert await watermark(core, NEW) == 1, "its place is passed"


async def test_the_same_cause_of_another_emitter_is_another_effect_b5(core: Core, stream: Stream) -> None:
    cause = f"{'c' * 32}-7/till/0"
    await core.take([event(stream, 1, cause=cause), event(stream, 1, 2, node="store-1", cause=cause)])

    assert await effects(core) == [1, 2]


@pytest.fixture
def few_holds(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("forebay.protocol.inbox.OriginInbox.__init__.__defaults__", (3,))
    return 3


async def test_an_origin_that_holds_too_much_gives_up_its_highest_event_b3(
    core: Core, stream: Stream, few_holds: int
) -> None:
    taken = await core.take([event(stream, sequence) for sequence in (5, 3, 9, 4, 7)])

    assert taken.held == 5
    held = await core.rows("select sequence from forebay_held order by sequence")
    assert [row["sequence"] for row in held] == [3, 4, 5]
    assert len(held) == few_holds
    (row,) = await core.rows("select given_up from forebay_inbox")
    assert row["given_up"] == "[7,9,3]", "the lowest, the highest, and the lowest stream sequence of the two"

    await core.take([event(stream, sequence) for sequence in (1, 2, 6, 7, 8, 9)])

    assert await effects(core) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    (row,) = await core.rows("select given_up from forebay_inbox")
    assert row["given_up"] is None


async def test_an_event_that_was_discarded_after_it_was_found_due_is_not_acted_on_f1(
    core: Core, stream: Stream
) -> None:
    """The reader looks for what is due, a person discards it, then the reader comes to it."""
    late = event(stream, 1, FAILING, key="a")
    failing = {f"{OLD}-1": "a handler's mistake"}
    await core.store.write(take_all, handlers(), "EVENTS", "2017", [late], True, failing)
    await core.store.write(lambda tx: tx.execute("update forebay_parked set retry_at = 1"))
    (found,) = await core.store.read(due, 10)
    await core.store.write(discard, found.id, "rung up by hand")

    taken = await core.store.write(retry_one, _working(), found)
    await core.store.write(postpone, found, "handler", "again")

    assert (taken.applied, await effects(core)) == (0, [])
    assert await core.rows("select discarded_why, retry_at, attempts from forebay_parked") == [
        {"discarded_why": "rung up by hand", "retry_at": None, "attempts": 1}
    ]


def _working() -> Handlers:
    known = Handlers()
    known.add(
        Rung, lambda tx, event: tx.execute("insert into effect (n, message_id) values (:n, '')", n=event.n), batch=False
    )
    return known


async def test_a_key_is_blocked_within_its_origin_alone_f1(core: Core, stream: Stream) -> None:
    """The same key in another lane, of another service, and of another node goes on."""
    parked = event(stream, 1, FAILING, key="a")
    failing = {f"{OLD}-1": "a handler's mistake"}
    await core.store.write(take_all, handlers(), "EVENTS", "2017", [parked], True, failing)

    await core.take(
        [
            event(stream, 2, key="a"),
            event(stream, 1, 3, epoch=NEW, lane="telemetry", key="a"),
            event(stream, 1, 4, node="store-1", key="a"),
            event(stream, 3, 5, key="b"),
        ]
    )

    assert await effects(core) == [3, 4, 5]
    assert await core.parked() == [("handler", f"{OLD}-1"), ("behind", f"{OLD}-2")]


async def test_an_origin_that_holds_too_many_bytes_gives_up_its_highest_events_b3(
    core: Core, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: few large events fill a disk as many small ones do; what is counted follows what is held, over restarts."""
    large = await core.take([event(stream, 3, headers={"x": "y" * 1000}), event(stream, 4, headers={"x": "y" * 1000})])
    assert large.held == 2
    monkeypatch.setattr("forebay.inbox._FEW", 0)
    monkeypatch.setattr("forebay.protocol.inbox.HELD_BYTES", 3500)

    await core.take([event(stream, 5, headers={"x": "y" * 1000})])
    await core.take([event(stream, 6), event(stream, 7, headers={"x": "y" * 3000})])

    held = [row["sequence"] for row in await core.rows("select sequence from forebay_held order by sequence")]
    (row,) = await core.rows("select given_up from forebay_inbox")
    assert held == [3, 4, 6]
    assert row["given_up"] == "[5,7,3]"

    await core.take([event(stream, 1), event(stream, 2)])

    assert await effects(core) == [1, 2, 3, 4]


async def test_b5_causes_are_forgotten_while_a_reader_runs_for_months(core: Core) -> None:
    day = 24 * 3600
    now = 0.0

    def cause(work: UnitOfWork, name: str, days: int) -> None:
        work.execute(
            "insert into forebay_cause (node, service, cause, seen_at) values ('store-330', 'till', :cause, :at)",
            cause=name,
            at=int((time.time() - days * day) * 1000),
        )

    async def known() -> list[str]:
        return [row["cause"] for row in await core.rows("select cause from forebay_cause order by cause")]

    committing = Committing("sales", handlers(), core.store, lambda: now)
    await core.store.write(cause, "a", 29)
    await core.store.write(cause, "b", 31)
    await committing.retry_due()
    assert await known() == ["a"]

    await core.store.write(cause, "c", 31)
    now += FORGET_INTERVAL - 1
    await committing.retry_due()
    assert await known() == ["a", "c"], "it does not look each time"
    now += 1
    await committing.retry_due()
    assert await known() == ["a"]


BY_KEY = "INDEX sqlite_autoindex_forebay_inbox_1"
"""The index of the constraint: node, service, epoch."""


async def test_ten_thousand_epochs_of_a_node_are_not_looked_through_for_each_of_its_events(core: Core) -> None:
    def plan(tx: Transaction) -> list[str]:
        rows = tx.execute(f"explain query plan {EPOCHS}", node="n", service="s", epoch=NEW, prev=OLD)
        return [row["detail"] for row in rows if row["detail"].startswith(("SEARCH", "SCAN"))]

    if on_postgres():  # it plans by statistics
        return
    own, before, waiting = await core.store.read(plan)
    assert f"{BY_KEY} (node=? AND service=? AND epoch=?)" in own
    assert f"{BY_KEY} (node=? AND service=? AND epoch=?)" in before
    assert "forebay_inbox_waiting" in waiting


async def test_a_batch_of_many_nodes_reads_and_writes_the_inbox_at_once(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, told = Stream(), list[str]()

    class Noting(UnitOfWork):
        def __init__(self, tx: Transaction, *args: Any) -> None:
            super().__init__(tx, *args)
            execute = self.execute

            def noted(sql: str, **params: Any) -> list[Row]:
                told.append(sql)
                return execute(sql, **params)

            self.execute = noted  # type: ignore[method-assign]

    nodes = [f"store-{number}" for number in range(TOGETHER)]
    monkeypatch.setattr("forebay.unit_of_work.UnitOfWork", Noting)
    for sequence in (1, 2):
        told.clear()
        batch = [event(stream, sequence, node=node, epoch=f"{at:032x}") for at, node in enumerate(nodes)]
        assert (await core.take(batch)).applied == len(nodes)
        assert len([sql for sql in told if "forebay_inbox" in sql]) == 3
    assert {row["watermark"] for row in await core.rows("select watermark from forebay_inbox")} == {2}

    # A hole of one of them: what it holds waits in the same batch as everybody's next events, and after it.
    held = event(stream, 4, node="store-7", epoch=f"{7:032x}")
    assert (await core.take([held])).held == 1
    batch = [event(stream, 3, node=node, epoch=f"{at:032x}") for at, node in enumerate(nodes)]
    told.clear()
    assert (await core.take(batch)).applied == len(nodes) + 1
    assert len([sql for sql in told if "forebay_inbox" in sql]) == 5
    rows = await core.rows("select node, watermark, held from forebay_inbox where watermark <> 3")
    assert rows == [{"node": "store-7", "watermark": 4, "held": "[]"}]


async def test_the_rows_of_a_batch_are_found_by_their_keys(core: Core) -> None:
    def plans(tx: Transaction) -> list[str]:
        found = []
        for sql, params in ((OF_MANY, {"keys": "{}"}), (ANY_WAIT, {}), (WAITING, {"origins": "{}"})):
            rows = tx.execute(f"explain query plan {sql}", **params)
            found.append(
                "; ".join(row["detail"] for row in rows if "forebay_inbox" in row["detail"] or "i " in row["detail"])
            )
        return found

    if on_postgres():  # it plans by statistics
        return
    of_many, any_wait, waiting = await core.store.read(plans)
    assert f"SEARCH i USING {BY_KEY} (node=? AND service=? AND epoch=?)" in of_many
    assert "SCAN forebay_inbox USING INDEX forebay_inbox_waiting" in any_wait
    assert "SEARCH forebay_inbox USING INDEX forebay_inbox_waiting (<expr>=?)" in waiting
