"""What a spent budget does to a lane: O3, O5."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest

from forebay import freeing
from forebay.dropping import dropped
from forebay.errors import BudgetSpentError, ConfigurationError
from forebay.event import Event
from forebay.gaps import own
from forebay.identity import Place, parse_message_id
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.past import KEPT, record_drop
from forebay.protocol.confirmation import DroppedRange
from forebay.sqlite import MigrationSet
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from forebay.withholding import release, withhold
from tests.outboxes import messages_after
from tests.stores import AnyStore, open_store

BUDGET = 10_000
LANES = [
    Lane("ledger", budget=BUDGET),
    Lane("telemetry", budget=BUDGET, when_full="drop-oldest"),
    Lane("state", budget=BUDGET, when_full="keep-latest", drop_from=0.5),
]
TEXT = "x" * 600
"""Ten of these are 8,000 bytes or a little more."""


class Sold(Event, service="till", kind="sold"):
    text: str = TEXT


class Measured(Event, service="till", kind="measured", lane="telemetry"):
    text: str = TEXT


class Changed(Event, service="till", kind="changed", lane="state", key="name"):
    name: str | None
    text: str = TEXT


class Moved(Event, service="till", kind="moved", lane="state", key="name"):
    name: str
    text: str = TEXT


class Node:
    def __init__(self, store: AnyStore, outbox: Outbox) -> None:
        self.outbox = outbox
        self.store = UnitStore(store, outbox)

    async def emit(self, *events: Event) -> list[Place]:
        ids = await self.store.write(lambda tx: [tx.emit(event) for event in events])
        return [parsed.place for each in ids if (parsed := parse_message_id(each))]

    async def rows(self, lane: str) -> list[int]:
        found = await self.store.read(messages_after, self.outbox, lane, None, limit=1000, max_bytes=1 << 30)
        return [message.place.sequence for message in found if message.place]

    async def drops(self, lane: str) -> list[tuple[int, int]]:
        return [(each.first, each.last) for each in await self.store.read(dropped, lane)]

    async def told(self, limit: int = 100) -> list[tuple[str, int, int, str]]:
        found = await self.store.read(lambda tx: own(tx, "store-330", "till", limit=limit))
        return [(each.kind, each.first, each.last, each.reason) for _, each in found]

    async def origin(self, lane: str) -> Row:
        return (
            await self.store.read(lambda tx: tx.execute("select * from forebay_origin where lane = :lane", lane=lane))
        )[0]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store = await open_store(tmp_path / "s.db", [MigrationSet("forebay", files("forebay.migrations"))])
    outbox = Outbox("store-330", "till", LANES)
    await store.write(outbox.bind, "s1")
    yield Node(store, outbox)
    await store.close()


async def test_a_lane_drops_its_oldest_from_80_percent_in_the_transaction_that_needs_the_room_o3(node: Node) -> None:
    for _ in range(30):
        await node.emit(Measured())
        assert (await node.origin("telemetry"))["bytes"] <= 0.8 * BUDGET
    rows = await node.rows("telemetry")
    assert rows == list(range(31 - len(rows), 31))
    assert len(rows) >= 9
    assert await node.drops("telemetry") == [(1, 30 - len(rows))]  # one range, merged with its neighbours
    origin = await node.origin("telemetry")
    assert (origin["written"], origin["dropped"], origin["confirmed"]) == (30, 30 - len(rows), 0)
    assert origin["floor_epoch"] is None  # it does not pass a drop before every needed consumer has


async def test_a_unit_that_fails_drops_nothing_o3(node: Node) -> None:
    await node.emit(*[Measured()] * 9)

    def unit(tx: UnitOfWork) -> None:
        for _ in range(5):
            tx.emit(Measured())
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await node.store.write(unit)
    assert await node.rows("telemetry") == list(range(1, 10))
    assert await node.drops("telemetry") == []


async def test_a_unit_that_writes_more_than_the_lane_takes_drops_its_own_oldest_o3(node: Node) -> None:
    await node.emit(*[Measured()] * 25)
    rows = await node.rows("telemetry")
    assert rows[-1] == 25
    assert (await node.origin("telemetry"))["bytes"] <= 0.8 * BUDGET
    assert await node.drops("telemetry") == [(1, rows[0] - 1)]


async def test_an_event_above_what_the_lane_takes_drops_nothing_and_is_refused_o5(node: Node) -> None:
    await node.emit(*[Measured()] * 3)
    with pytest.raises(BudgetSpentError):
        await node.emit(Measured(text="x" * 9000))
    assert await node.rows("telemetry") == [1, 2, 3]


async def test_a_lane_that_blocks_drops_nothing_o3(node: Node) -> None:
    await node.emit(*[Sold()] * 12)
    with pytest.raises(BudgetSpentError):
        await node.emit(Sold())
    assert await node.rows("ledger") == list(range(1, 13))


async def test_confirmed_events_go_first_and_are_no_drops_o3(node: Node) -> None:
    places = await node.emit(*[Measured()] * 9)
    node.outbox.sheddable = {"telemetry": places[3]}
    await node.emit(Measured(), Measured())
    assert await node.drops("telemetry") == []
    origin = await node.origin("telemetry")
    assert origin["dropped"] == 0
    assert 0 < origin["confirmed"] <= 4
    assert await node.store.read(freeing.floor, "telemetry") == str(places[origin["confirmed"] - 1])
    await node.emit(*[Measured()] * 9)
    assert (await node.origin("telemetry"))["confirmed"] == 4  # what is not confirmed is not shed, it is dropped
    assert (await node.drops("telemetry"))[0][0] == 5


async def test_a_lane_that_blocks_sheds_what_is_confirmed_before_it_refuses_o5(node: Node) -> None:
    places = await node.emit(*[Sold()] * 12)
    node.outbox.sheddable = {"ledger": places[1]}
    await node.emit(Sold(), Sold())
    with pytest.raises(BudgetSpentError):
        await node.emit(Sold())
    assert await node.rows("ledger") == list(range(3, 15))


async def test_keep_latest_drops_all_but_the_newest_of_each_kind_and_key_o3(node: Node) -> None:
    for name in "ababcc":
        await node.emit(Changed(name=name))
    await node.emit(Moved(name="a"))
    assert await node.rows("state") == [3, 4, 6, 7]
    assert await node.drops("state") == [(1, 2), (5, 5)]
    assert (await node.origin("state"))["dropped"] == 3


async def test_keep_latest_lets_a_newer_event_in_for_the_older_one_of_its_key_and_refuses_a_new_key_o3(
    node: Node,
) -> None:
    for name in "abcdef":
        await node.emit(Changed(name=name))
    with pytest.raises(BudgetSpentError):
        await node.emit(Changed(name="g"))
    with pytest.raises(BudgetSpentError):  # without a key it replaces nothing, and nothing replaces it
        await node.emit(Changed(name=None))
    await node.emit(Changed(name="c"))
    assert await node.rows("state") == [1, 2, 4, 5, 6, 7]
    assert await node.drops("state") == [(3, 3)]


async def test_a_refusal_that_a_unit_catches_does_not_cost_the_event_that_would_have_been_replaced_o3(
    node: Node,
) -> None:
    await node.emit(*[Changed(name=name) for name in "abcdef"])

    def unit(tx: UnitOfWork) -> None:
        with pytest.raises(BudgetSpentError):
            tx.emit(Changed(name="c", text="x" * 4000))

    await node.store.write(unit)
    assert await node.rows("state") == [1, 2, 3, 4, 5, 6]


async def test_a_withheld_event_is_dropped_in_its_turn_o3_o4(node: Node) -> None:
    places = await node.emit(*[Measured()] * 9)
    await node.store.write(withhold, {places[1]: "too large"}, 0)
    await node.emit(*[Measured()] * 4)
    assert await node.drops("telemetry") == [(1, 3)]
    assert await node.store.read(lambda tx: tx.execute("select * from forebay_withheld")) == []


async def test_what_was_dropped_or_withheld_stays_on_record_once_it_is_over_o3_o4(node: Node) -> None:
    places = await node.emit(*[Measured()] * 9)
    await node.store.write(withhold, {places[1]: "too large", places[6]: "too large as well"}, 5000)
    await node.emit(*[Measured()] * 4)
    epoch = places[0].epoch
    assert await node.told() == [
        ("drop", 1, 3, "the lane's budget pushed it out; not every consumer has heard of it"),
        ("withheld", 7, 7, "too large as well"),
        ("withheld", 2, 2, "too large; then pushed out by its lane's budget"),
    ]
    await node.store.write(freeing.pass_drop, "telemetry", (1, 2), epoch, {})
    await node.store.write(freeing.pass_drop, "telemetry", (3, 3), epoch, {})  # the rest of it: one row in the end
    await node.store.write(freeing.pass_withheld, "telemetry", places[6])
    await node.store.write(release, "telemetry", [places[6]])
    assert await node.told() == [
        ("withheld", 7, 7, "too large as well; confirmed since"),
        ("drop", 1, 3, "the lane's budget pushed it out"),
        ("withheld", 2, 2, "too large; then pushed out by its lane's budget"),
    ]
    (first, *_) = await node.store.read(own, "store-330", "till")
    assert first[1].recorded_at == 5000


async def test_the_record_of_what_is_over_is_bounded_o3(node: Node) -> None:
    places = await node.emit(*[Changed(name=name) for name in "abcdef"])

    def drop_every_second(tx: Transaction) -> None:
        for sequence in range(1, 2 * KEPT + 10, 2):
            record_drop(tx, places[0].epoch, (sequence, sequence))

    await node.store.write(drop_every_second)
    told = await node.told(limit=2 * KEPT)
    assert len(told) == KEPT
    assert told[0][1:3] == (2 * KEPT + 9, 2 * KEPT + 9)


async def test_a_drop_below_the_floor_joins_its_neighbours_and_does_not_lower_the_floor_o3_o4(node: Node) -> None:
    places = await node.emit(*[Measured()] * 9)
    epoch = places[0].epoch
    await node.store.write(freeing.free, "telemetry", epoch, 1, limit=9)
    await node.store.write(withhold, {places[1]: "too large"}, 0)
    await node.store.write(freeing.pass_withheld, "telemetry", places[1])
    await node.store.write(freeing.free, "telemetry", epoch, 5, limit=9)
    assert await node.store.read(freeing.floor, "telemetry") == str(places[4])
    await node.emit(*[Measured()] * 6)
    assert (await node.drops("telemetry"))[0] == (2, 2)
    head = await node.store.read(freeing.head, "telemetry")
    assert head == freeing.Head("drop", epoch, 2, 2)
    await node.store.write(freeing.pass_drop, "telemetry", (2, 2), epoch, {"sales": 1})
    assert await node.store.read(freeing.floor, "telemetry") == str(places[4])


async def test_a_part_of_a_drop_can_be_finished_o3(node: Node) -> None:
    places = await node.emit(*[Measured()] * 25)
    ((_, last),) = await node.drops("telemetry")
    await node.store.write(freeing.pass_drop, "telemetry", (1, 4), places[0].epoch, {"sales": 2, "archive": 0})
    assert await node.store.read(dropped, "telemetry") == [DroppedRange(places[0].epoch, 5, last)]
    assert await node.store.read(freeing.floor, "telemetry") == str(places[3])


async def test_a_lane_that_is_taken_out_while_its_drops_are_not_told_is_refused_o3(node: Node) -> None:
    await node.emit(*[Measured()] * 25)
    await node.store.write(lambda tx: tx.execute("delete from forebay_outbox"))
    await node.store.write(lambda tx: tx.execute("update forebay_origin set bytes = 0"))
    outbox = Outbox("store-330", "till", LANES[:1])
    with pytest.raises(ConfigurationError, match="'telemetry', which it does not declare"):
        await node.store.write(outbox.bind, "s1")
