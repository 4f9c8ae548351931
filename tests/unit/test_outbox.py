from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from forebay import freeing
from forebay.clock import HybridClock
from forebay.drafts import MAX_EVENT_BYTES, Draft, Entry, Extra, entry
from forebay.envelope import Message
from forebay.errors import BudgetSpentError, ConfigurationError, EventTooLargeError
from forebay.event import Event
from forebay.identity import Place, parse_message_id, parse_place
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.protocol.confirmation import ConfirmedBy
from forebay.sqlite import MigrationSet
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.outboxes import messages_after
from tests.stores import open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LANES = [Lane("ledger", budget="1MiB"), Lane("telemetry", budget=2000)]


class Sold(Event, service="till", kind="sold", key="basket"):
    basket: str
    cents: int = 0


class Measured(Event, service="till", kind="measured", lane="telemetry"):
    text: str = ""


class Priced(Event, service="price", kind="priced"):
    cents: int


class Stray(Event, service="till", kind="strayed", lane="nowhere"):
    cents: int = 0


class Node:
    """One service's store on a node; ``reopen`` is what a restart does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outbox = Outbox("store-330", "till", LANES)

    async def open(self, store_id: str = "s1") -> Node:
        self.sqlite = await open_store(self.path, [MigrationSet("forebay", files("forebay.migrations"))])
        self.store = UnitStore(self.sqlite, self.outbox)
        self.store_id = await self.sqlite.write(self.outbox.bind, store_id)
        return self

    async def reopen(self) -> None:
        await self.sqlite.close()
        self.outbox = Outbox("store-330", "till", LANES)
        await self.open("another")

    async def emit(self, *events: Event) -> list[str]:
        return await self.store.write(lambda tx: [tx.emit(event, time=NOW) for event in events])

    async def rows(self, lane: str = "ledger") -> list[Message]:
        return await self.store.read(messages_after, self.outbox, lane, None, limit=1000, max_bytes=1 << 30)

    async def books(self, lane: str = "ledger") -> tuple[int, int, int]:
        def read(tx: Transaction) -> tuple[int, int, int]:
            row = tx.execute("select bytes, written, confirmed from forebay_origin where lane = :lane", lane=lane)[0]
            return row["bytes"], row["written"], row["confirmed"]

        return await self.store.read(read)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = await Node(tmp_path / "till.db").open()
    yield node
    await node.sqlite.close()


async def test_an_event_and_the_state_that_caused_it_are_kept_together_or_not_at_all(node: Node) -> None:
    def unit(tx: UnitOfWork, fail: bool) -> None:
        tx.execute("create table if not exists sale (basket text)")
        tx.execute("insert into sale values ('1')")
        tx.emit(Sold(basket="1"))
        if fail:
            raise ArithmeticError

    await node.store.write(unit, False)
    with pytest.raises(ArithmeticError):
        await node.store.write(unit, True)
    assert len(await node.rows()) == 1
    assert len(await node.store.read(lambda tx: tx.execute("select * from sale"))) == 1


async def test_an_event_is_read_back_as_it_was_written(node: Node) -> None:
    (message_id,) = await node.emit(Sold(basket="7 ü", cents=5))
    (message,) = await node.rows()
    assert (message.message_id, message.id, message.key) == (message_id, message_id, "7 ü")
    assert (message.type, message.source, message.time) == ("till.sold.v1", "/store-330/till", NOW)
    assert (message.body, message.prev, message.lane, message.cause) == (
        b'{"basket":"7 \xc3\xbc","cents":5}',
        None,
        "ledger",
        None,
    )
    assert node.outbox.subject(message) == "evt.store-330.till.sold"


async def test_a_form_of_its_own_is_read_back_as_it_was_written(node: Node) -> None:
    extra = Extra(
        id="order 1", source="urn:door", content_type="text/plain", attributes={"ext": "ü"}, traceparent="00-1"
    )
    draft = Draft(lane="ledger", kind="seen", type="com.acme.Seen", body=b"x", time=NOW, cause="a/b/0", extra=extra)
    await node.store.write(lambda tx: tx.append(draft))
    (message,) = await node.rows()
    assert (message.id, message.source, message.content_type) == ("order 1", "urn:door", "text/plain")
    assert (message.attributes, message.traceparent, message.cause) == ({"ext": "ü"}, "00-1", "a/b/0")


async def test_a_new_epoch_begins_at_the_first_write_after_an_opening_and_names_the_place_before_i2_i5(
    node: Node,
) -> None:
    first = await node.emit(Sold(basket="1"), Sold(basket="2"))
    await node.reopen()
    await node.reopen()  # an opening without a write takes no epoch
    second = await node.emit(Sold(basket="3"))
    second += await node.emit(Sold(basket="4"))
    assert [m.message_id for m in await node.rows()] == first + second
    assert [one.rpartition("-")[2] for one in first + second] == ["1", "2", "1", "2"]
    assert [m.prev for m in await node.rows()] == [None, None, *[Place(*_place(first[1]))] * 2]
    chain = await node.store.read(freeing.chain, "ledger")
    assert [(link.epoch, link.prev) for link in chain] == [
        (_place(first[0])[0], "none"),
        (_place(second[0])[0], first[1]),
    ]


async def test_each_lane_has_epochs_and_sequences_of_its_own_i1(node: Node) -> None:
    ledger, telemetry = await node.emit(Sold(basket="1"), Measured())
    assert _place(ledger)[0] != _place(telemetry)[0]
    assert (_place(ledger)[1], _place(telemetry)[1]) == (1, 1)


async def test_a_store_is_bound_to_its_node_and_service_i6(node: Node) -> None:
    for stranger in (Outbox("store-331", "till", LANES), Outbox("store-330", "price", LANES)):
        with pytest.raises(ConfigurationError, match="belongs to service 'till' of node 'store-330'"):
            await node.sqlite.write(stranger.bind, "s2")


async def test_a_store_keeps_its_id_s4(node: Node) -> None:
    await node.reopen()
    assert node.store_id == "s1"


@pytest.mark.parametrize("name", ["Store", "a.b", "*", ""])
def test_an_outbox_is_refused_under_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Outbox(name, "till", LANES)
    with pytest.raises(ConfigurationError):
        Outbox("store-330", name, LANES)


async def test_a_spent_budget_refuses_the_unit_and_keeps_everything_o5(node: Node) -> None:
    written = await node.emit(*[Measured(text="x" * 100)] * 5)
    with pytest.raises(BudgetSpentError) as refused:
        await node.emit(Sold(basket="1"), Measured(text="x" * 1500))
    assert (refused.value.lane, refused.value.retry_after > 0) == ("telemetry", True)
    assert [m.message_id for m in await node.rows("telemetry")] == written
    assert await node.rows("ledger") == []
    await node.emit(Sold(basket="1"))  # another lane goes on


async def test_a_unit_that_alone_is_above_the_budget_is_refused_o5(node: Node) -> None:
    with pytest.raises(BudgetSpentError):
        await node.emit(*[Measured(text="x" * 100)] * 10)
    assert await node.rows("telemetry") == []


async def test_room_that_was_freed_can_be_written_again_o5(node: Node) -> None:
    ids = await node.emit(*[Measured(text="x" * 100)] * 6)
    with pytest.raises(BudgetSpentError):
        await node.emit(*[Measured(text="x" * 100)] * 2)
    epoch, last = _place(ids[-1])
    assert (await node.store.write(freeing.free, "telemetry", epoch, last - 1, limit=100)).events == 5
    await node.emit(*[Measured(text="x" * 100)] * 2)
    assert [m.place.sequence for m in await node.rows("telemetry") if m.place] == [6, 7, 8]


async def test_a_budget_error_that_a_unit_catches_does_not_spoil_the_next_epoch_i5(node: Node) -> None:
    def unit(tx: UnitOfWork) -> None:
        with pytest.raises(BudgetSpentError):
            tx.emit(Measured(text="x" * 3000))

    await node.store.write(unit)
    await node.reopen()
    await node.emit(Measured())
    (message,) = await node.rows("telemetry")
    assert message.prev is None


async def test_an_event_too_large_is_refused_when_it_is_written_o5(node: Node) -> None:
    with pytest.raises(EventTooLargeError, match="the limit is 262144"):
        await node.emit(Measured(text="x" * MAX_EVENT_BYTES))
    with pytest.raises(BudgetSpentError):  # not too large, though it does not fit this lane
        await node.emit(Measured(text="x" * (MAX_EVENT_BYTES - len('{"text":""}'))))
    assert await node.rows("telemetry") == []


async def test_a_lane_that_was_not_declared_is_refused(node: Node) -> None:
    with pytest.raises(ConfigurationError, match="no lane 'nowhere'"):
        await node.emit(Stray())


async def test_a_service_emits_its_own_events_alone(node: Node) -> None:
    with pytest.raises(ValueError, match="service 'price'"):
        await node.emit(Priced(cents=1))


async def test_an_event_whose_headers_no_broker_would_take_is_refused_when_it_is_written_o5(node: Node) -> None:
    with pytest.raises(EventTooLargeError, match="the limit is 16384"):
        await node.emit(Sold(basket="\u2603" * 6000))
    assert await node.rows() == []


async def test_an_event_time_needs_an_offset(node: Node) -> None:
    with pytest.raises(ValueError, match="no offset"):
        await node.store.write(lambda tx: tx.emit(Sold(basket="1"), time=datetime(2026, 3, 1)))


async def test_an_event_that_is_refused_and_caught_leaves_no_hole_i3(node: Node) -> None:
    def unit(tx: UnitOfWork) -> str:
        with pytest.raises(Exception, match="range"):  # in UTC it would be in the year 0
            tx.emit(Sold(basket="1"), time=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
        return tx.emit(Sold(basket="2"), time=NOW)

    assert _place(await node.store.write(unit))[1] == 1


async def test_the_oldest_come_first_and_at_least_one_whatever_its_size(node: Node) -> None:
    ids = await node.emit(*[Sold(basket=str(n)) for n in range(5)])
    tiny = await node.store.read(messages_after, node.outbox, "ledger", None, limit=10, max_bytes=1)
    assert [m.message_id for m in tiny] == ids[:1]
    some = await node.store.read(
        messages_after, node.outbox, "ledger", Place(*_place(ids[1])), limit=2, max_bytes=1 << 20
    )
    assert [m.message_id for m in some] == ids[2:4]


async def test_what_waits_behind_a_place_is_counted_in_events_and_bytes_as_far_as_is_asked(
    node: Node,
) -> None:
    ids = await node.emit(*[Sold(basket=str(n)) for n in range(5)])

    async def waiting(place: Place | None, upto: int) -> tuple[int, int]:
        return await node.store.read(node.outbox.waiting, "ledger", place, upto)

    events, size = await waiting(None, 10)
    assert (events, size % 5) == (5, 0)
    assert await waiting(None, 2) == (2, size // 5 * 2)
    assert await waiting(Place(*_place(ids[2])), 10) == (2, size // 5 * 2)
    assert await waiting(Place(*_place(ids[4])), 10) == (0, 0)


async def test_freeing_raises_the_floor_and_keeps_the_books_o1(node: Node) -> None:
    ids = await node.emit(*[Sold(basket=str(n)) for n in range(5)])
    epoch, _ = _place(ids[0])
    assert await node.store.read(freeing.floor, "ledger") is None
    assert (await node.store.write(freeing.free, "ledger", epoch, 4, limit=3)).events == 3
    assert await node.store.read(freeing.floor, "ledger") == ids[2]
    assert (await node.store.write(freeing.free, "ledger", epoch, 4, limit=3)).events == 1
    assert (await node.store.write(freeing.free, "ledger", epoch, 4, limit=3)).events == 0
    assert await node.store.read(freeing.floor, "ledger") == ids[3]
    assert (await node.books())[1:] == (5, 4)
    assert [m.message_id for m in await node.rows()] == ids[4:]


async def test_the_chain_reaches_down_to_the_oldest_epoch_that_a_consumer_has_not_passed_o2(node: Node) -> None:
    old = await node.emit(Sold(basket="1"))
    await node.reopen()
    new = await node.emit(Sold(basket="2"))
    first, second = _place(old[0])[0], _place(new[0])[0]

    async def chain(unpassed: set[str] | None) -> list[str]:
        return [link.epoch for link in await node.store.read(freeing.chain, "ledger", unpassed)]

    epochs = await node.store.read(freeing.standing, "ledger")
    assert [f"{each.epoch}-{each.last}" for each in epochs] == [*old, *new]
    assert await chain({second}) == [first, second], "rows of the first are still here"
    await node.store.write(freeing.free, "ledger", first, 1, limit=9)
    assert await chain({second}) == [second]
    assert await chain({second, first}) == [first, second]
    assert await chain(None) == [first, second], "a consumer has not said yet what it has"
    await node.store.write(freeing.free, "ledger", second, 1, limit=9)
    assert await chain({second}) == [second]
    assert await node.store.read(freeing.standing, "ledger") == []


async def test_a_newer_list_of_consumers_is_kept_and_an_older_one_changes_nothing_s3(node: Node) -> None:
    assert await node.store.read(node.outbox.confirmed_by) is None
    newer, older = ConfirmedBy(3, {"sales": ["till"]}), ConfirmedBy(2, {})
    await node.store.write(node.outbox.remember_confirmed_by, newer)
    await node.store.write(node.outbox.remember_confirmed_by, older)
    await node.reopen()
    assert await node.store.read(node.outbox.confirmed_by) == newer


async def test_the_clock_does_not_go_back_when_a_node_restarts_with_its_wall_set_back_i8(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.emit(Sold(basket="1"))
    # The wall of a machine without a battery starts in 1970.
    monkeypatch.setattr("forebay.outbox.HybridClock", lambda: HybridClock(wall=lambda: 0))
    await node.reopen()
    await node.emit(Sold(basket="2"))
    first, second = await node.rows()
    assert second.hlc > first.hlc


async def test_what_a_handler_emits_names_its_cause_and_its_index_b5(node: Node) -> None:
    def handler(tx: UnitOfWork, message: Message) -> None:
        tx.because_of(message)
        tx.emit(Sold(basket="1"))
        tx.emit(Sold(basket="2"))
        tx.because_of(None)
        tx.emit(Sold(basket="3"))

    (cause_id,) = await node.emit(Sold(basket="0"))
    (cause,) = await node.rows()
    await node.store.write(handler, cause)
    causes: list[Any] = [m.cause for m in (await node.rows())[1:]]
    assert causes == [f"{cause_id}/till/0", f"{cause_id}/till/1", None]


async def test_a_cause_has_the_same_index_in_whatever_batch_it_is_handled_again_b5(node: Node) -> None:
    def batch_handler(tx: UnitOfWork, messages: list[Message]) -> None:
        for message in messages:
            tx.emit(Sold(basket="x"), cause=message)

    await node.emit(Sold(basket="1"), Sold(basket="2"))
    first, second = await node.rows()
    await node.store.write(batch_handler, [first, second])
    await node.store.write(batch_handler, [second])  # after a restore the batches are cut elsewhere
    causes = [m.cause for m in (await node.rows())[2:]]
    assert causes == [f"{first.message_id}/till/0", f"{second.message_id}/till/0", f"{second.message_id}/till/0"]


def _place(message_id: str) -> tuple[str, int]:
    parsed = parse_message_id(message_id)
    assert parsed is not None
    return parsed.epoch, parsed.first


def entries(count: int, text: str = "") -> list[Entry]:
    return [
        entry("sold", "till.sold.v1", f"k{at}", "2026-03-01T12:00:00Z", None, None, text.encode())
        for at in range(count)
    ]


async def test_many_at_once_take_places_that_run_on_i3(node: Node) -> None:
    def unit(tx: UnitOfWork) -> list[Place]:
        first = tx.emit(Sold(basket="a"))
        many = tx.extend("ledger", entries(3))
        none = tx.extend("ledger", [])
        last = tx.emit(Sold(basket="b"))
        return [place for place in (parse_place(first), many, none, parse_place(last)) if place]

    places = await node.store.write(unit)
    assert [place.sequence for place in places] == [1, 2, 5, 5]
    rows = await node.rows()
    assert [row.key for row in rows] == ["a", "k0", "k1", "k2", "b"]
    assert [row.place for row in rows] == [Place(places[0].epoch, sequence) for sequence in range(1, 6)]
    ticks = [row.hlc for row in rows]
    assert ticks == sorted(set(ticks))


async def test_nothing_at_once_begins_no_epoch(node: Node) -> None:
    await node.store.write(lambda tx: tx.extend("ledger", []))
    await node.reopen()
    await node.emit(Sold(basket="1"))
    (message,) = await node.rows()
    assert message.prev is None


async def test_many_that_do_not_fit_a_lane_that_blocks_take_no_place_o5(node: Node) -> None:
    def unit(tx: UnitOfWork) -> Place:
        with pytest.raises(BudgetSpentError):
            tx.extend("telemetry", entries(20, "x" * 100))
        return tx.extend("telemetry", entries(2, "x"))

    assert (await node.store.write(unit)).sequence == 1
    assert [row.place.sequence for row in await node.rows("telemetry") if row.place] == [1, 2]


async def test_many_in_a_lane_that_drops_leave_what_single_ones_leave_o3(node: Node) -> None:
    node.outbox.lanes["telemetry"] = Lane("telemetry", budget=2000, when_full="drop-oldest")
    many = entries(20, "x" * 100)
    first = await node.store.write(lambda tx: tx.extend("telemetry", many))
    kept = [row.key for row in await node.rows("telemetry")]
    books = await node.sqlite.read(_books)

    def singly(tx: UnitOfWork) -> None:
        for each in many:
            tx.extend("telemetry", [each])

    await node.store.write(singly)
    assert (first.sequence, [row.key for row in await node.rows("telemetry")]) == (1, kept)
    assert await node.sqlite.read(_books) == books


def _books(tx: Transaction) -> int:
    return int(tx.execute("select bytes from forebay_origin where lane = 'telemetry'")[0]["bytes"])
