"""The books of a node whatever is written, dropped, withheld, lost and restored: O1, O3, O4 and B2 on the node's side.

The outbox, its freeing and the confirmations are the real ones, on a real database. The consumers are a model: they
take events in any order, decide what a question says of drops and withheld places, and are restored from backups.
"""

from __future__ import annotations

import asyncio
import copy
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import freeing
from forebay.confirming import Confirming
from forebay.dropping import dropped
from forebay.errors import BudgetSpentError
from forebay.event import Event
from forebay.forwarding import LaneState
from forebay.identity import Place, parse_message_id, parse_place
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.protocol.confirmation import Answer, ConfirmedBy, EpochAnswer, OriginQuestion, Question
from forebay.sequences import Range, joined
from forebay.sqlite import MigrationSet
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from forebay.withholding import listed, withhold
from tests.outboxes import messages_after
from tests.stores import open_store

BUDGET = 4000
GRACE = 5.0
LANES = [
    Lane("ledger", budget=BUDGET),
    Lane("telemetry", budget=BUDGET, when_full="drop-oldest"),
    Lane("state", budget=BUDGET, when_full="keep-latest"),
]
NEEDED = ["archive", "sales"]


class Sold(Event, service="till", kind="sold", key="name"):
    name: str
    text: str


class Measured(Event, service="till", kind="measured", lane="telemetry", key="name"):
    name: str
    text: str


class Changed(Event, service="till", kind="changed", lane="state", key="name"):
    name: str
    text: str


KINDS = {"ledger": Sold, "telemetry": Measured, "state": Changed}


class Consumer:
    """What one consumer knows of each place: ``applied``, ``dropped`` or ``wanted``; nothing where it never saw it."""

    def __init__(self) -> None:
        self.epochs: dict[str, dict[int, str]] = {}
        self.backup: dict[str, dict[int, str]] = {}
        self.archive: dict[str, dict[int, str]] = {}
        self.busy = False

    def take(self, place: Place) -> None:
        known = self.epochs.setdefault(place.epoch, {})
        if known.get(place.sequence) in (None, "wanted"):
            known[place.sequence] = "applied"

    def told(self, question: Question) -> None:
        """Decide what is said of drops and withheld places, unless it has not read to the stream's end (B4)."""
        for origin in question.origins:
            self.passed_over(origin)
            for drop in [] if self.busy else origin.drops:
                known = self.epochs.setdefault(drop.epoch, {})
                for sequence in range(drop.first, drop.last + 1):
                    if known.get(sequence) in (None, "wanted"):
                        known[sequence] = "dropped"
            for place in [] if self.busy else origin.withheld:
                self.epochs.setdefault(place.epoch, {}).setdefault(place.sequence, "wanted")

    def passed_over(self, origin: OriginQuestion) -> None:
        """Check that the floor passed nothing that was never seen here; what a restore took comes from the archive."""
        floor = parse_place(origin.floor) if origin.floor else None
        listed = {(each.epoch, sequence) for each in origin.drops for sequence in range(each.first, each.last + 1)}
        listed |= {(each.epoch, each.sequence) for each in origin.withheld}
        for link in origin.chain:
            if floor and link.epoch == floor.epoch:
                known = self.epochs.setdefault(link.epoch, {})
                for sequence in range(1, floor.sequence + 1):
                    known.setdefault(sequence, self.archive.get(link.epoch, {}).get(sequence, "lost"))
                    assert known[sequence] != "lost", f"the floor {floor} passed {sequence}"
                    # Nobody has the body of a place that is wanted and not listed (B7).
                    assert known[sequence] != "wanted" or (link.epoch, sequence) in listed

    def answer(self, name: str) -> Answer:
        epochs = {}
        for epoch, known in self.epochs.items():
            watermark = 0
            while watermark + 1 in known:
                watermark += 1

            def of(what: str, known: dict[int, str] = known, upto: int = watermark) -> list[Range]:
                return joined((each, each) for each, status in known.items() if status == what and each <= upto)

            held = joined((each, each) for each in known if each > watermark)
            epochs[epoch] = EpochAnswer(watermark, held, of("dropped"), of("wanted"))
        return Answer(
            v=1, consumer=name, store="s", clock="2026-03-01T12:00:00Z", incarnation="i", stream_end=0, position=0,
            epochs=epochs, confirmed_by=ConfirmedBy(1, {each: ["till"] for each in NEEDED}),
        )  # fmt: skip


class World:
    """A node, and the consumers that stand where its connection to the broker does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.consumers = {name: Consumer() for name in NEEDED}
        self.silent: set[str] = set()
        self.written: dict[str, list[Place]] = {lane.name: [] for lane in LANES}

    async def open(self) -> None:
        self.outbox = Outbox("store-330", "till", LANES)
        self.sqlite = await open_store(self.path, [MigrationSet("forebay", files("forebay.migrations"))])
        self.store = UnitStore(self.sqlite, self.outbox)
        await self.sqlite.write(self.outbox.bind, "s1")
        lanes = {lane.name: LaneState() for lane in LANES}
        relay = SimpleNamespace(lanes=lanes, states=lambda _: lanes, incarnation="i", doubt_stream=lambda: None)
        self.confirming = Confirming(
            self.outbox, self.store, cast("Any", self), cast("Any", relay), grace=GRACE, clock=lambda: self.now
        )
        self.confirming.confirmed_by = ConfirmedBy(1, {name: ["till"] for name in NEEDED})

    async def request(self, subject: str, body: bytes, *, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
        name = subject.split(".")[2]
        consumer = self.consumers[name]
        consumer.told(msgspec.json.decode(body, type=Question))
        return SimpleNamespace(body=msgspec.json.encode(consumer.answer(name)))

    async def write(self, lane: str, name: str, size: int, count: int) -> None:
        def unit(tx: UnitOfWork) -> list[str]:
            return [tx.emit(KINDS[lane](name=f"{name}{n % 3}", text="x" * size)) for n in range(count)]

        try:
            ids = await self.store.write(unit)
        except BudgetSpentError:
            assert lane != "telemetry"
            return
        for each in ids:
            parsed = parse_message_id(each)
            assert parsed is not None
            self.written[lane].append(parsed.place)

    async def rows(self, lane: str) -> list[Place]:
        found = await self.store.read(messages_after, self.outbox, lane, None, limit=10_000, max_bytes=1 << 30)
        return [message.place for message in found if message.place]

    async def ask(self, seconds: float) -> None:
        self.now += seconds
        await self.confirming.ask()
        await self.confirming.free()

    async def check(self) -> None:
        for lane in LANES:
            rows = await self.rows(lane.name)
            aside = await self.store.read(listed, lane.name)
            drops = [
                Place(drop.epoch, sequence)
                for drop in await self.store.read(dropped, lane.name)
                for sequence in range(drop.first, drop.last + 1)
            ]
            withheld = [Place(place.epoch, place.sequence) for place, _ in aside]
            here = [*rows, *drops, *withheld]
            assert len(set(here)) == len(here)  # a place is in one state
            order = {place: at for at, place in enumerate(self.written[lane.name])}
            text = await self.store.read(freeing.floor, lane.name)
            floor = parse_place(text) if text else None
            at = -1 if floor is None else order[floor]
            above = [place for place in self.written[lane.name] if order[place] > at]
            assert set(above) <= set(here)  # what the floor has not passed is here, in some form
            low = {place for place in here if order[place] <= at}
            passed = {Place(place.epoch, place.sequence) for place, passed in aside if passed}
            assert low <= passed | set(drops)  # below it are bodies, and bodies that were dropped
            assert low.isdisjoint(rows)

            def counters(tx: Transaction, lane: str = lane.name) -> tuple[Any, ...]:
                of = "where lane = :lane"
                row = tx.execute(f"select bytes, written, confirmed, dropped from forebay_origin {of}", lane=lane)[0]
                size = tx.execute(
                    "select coalesce(sum(bytes), 0) as size from"
                    " (select epoch, bytes from forebay_outbox"
                    " union all select epoch, bytes from forebay_withheld) as every"
                    f" where epoch in (select id from forebay_epoch where origin ="
                    f" (select id from forebay_origin {of}))",
                    lane=lane,
                )[0]["size"]
                return row["bytes"], size, row["written"], row["confirmed"] + row["dropped"]

            size, stored, written, gone = await self.store.read(counters)
            assert size == stored <= lane.drop_from_bytes
            assert written == len(self.written[lane.name]) == gone + len(rows) + len(withheld)
        books = await self.confirming.books()
        assert len(books) == len(LANES) * len(NEEDED)
        for book in books:
            assert book.balanced, book
            assert min(book.confirmed, book.pending, book.dropped, book.withheld) >= 0, book

    async def settle(self) -> None:
        """Deliver everything, and ask until nothing is left; the books then say what each consumer had."""
        for consumer in self.consumers.values():
            consumer.busy = False
        for _ in range(3):
            for lane in LANES:
                bodies = [Place(place.epoch, place.sequence) for place, _ in await self.store.read(listed, lane.name)]
                for place in [*await self.rows(lane.name), *bodies]:
                    for consumer in self.consumers.values():
                        consumer.take(place)
            await self.ask(GRACE + 1)
            await self.check()
        for lane in LANES:
            assert await self.store.read(freeing.standing, lane.name) == []
        for book in await self.confirming.books():
            epochs = self.consumers[book.consumer].epochs
            of_lane = [epochs[place.epoch][place.sequence] for place in self.written[book.lane]]
            assert (book.pending, book.withheld) == (0, 0)
            assert (book.confirmed, book.dropped) == (of_lane.count("applied"), of_lane.count("dropped")), book


LANE = st.sampled_from([lane.name for lane in LANES])
STEP = st.one_of(
    st.tuples(st.just("write"), LANE, st.sampled_from("ab"), st.sampled_from([0, 90, 300, 700]), st.integers(1, 5)),
    st.tuples(st.just("write"), LANE, st.sampled_from("ab"), st.sampled_from([0, 90, 300, 700]), st.integers(1, 5)),
    st.tuples(
        st.just("take"),
        LANE,
        st.sampled_from(NEEDED),
        st.lists(st.integers(0, 20), max_size=9) | st.just(list(range(20))),
    ),
    st.tuples(st.just("ask"), st.sampled_from([0.1, 3.0, GRACE])),
    st.tuples(st.just("ask"), st.sampled_from([0.1, 3.0, GRACE])),
    st.tuples(st.just("withhold"), LANE, st.integers(0, 12)),
    st.tuples(st.just("fill"), LANE, st.sampled_from(NEEDED)),
    st.tuples(st.just("busy"), st.sampled_from(NEEDED)),
    st.tuples(st.just("backup"), st.sampled_from(NEEDED)),
    st.tuples(st.just("restore"), st.sampled_from(NEEDED)),
    st.just(("reopen",)),
)


async def step(world: World, what: str, *of: Any) -> None:
    match what:
        case "write":
            await world.write(*of)
        case "take":
            lane, name, picks = of
            rows = await world.rows(lane)
            for pick in picks if rows else ():
                world.consumers[name].take(rows[pick % len(rows)])
        case "ask":
            await world.ask(*of)
        case "withhold":
            lane, pick = of
            if rows := await world.rows(lane):
                await world.store.write(withhold, {rows[pick % len(rows)]: "too large"}, 0)
        case "fill":
            lane, name = of
            for place, _ in await world.store.read(listed, lane):
                world.consumers[name].take(Place(place.epoch, place.sequence))
        case "busy":
            world.consumers[of[0]].busy ^= True
        case "backup":
            consumer = world.consumers[of[0]]
            consumer.backup = copy.deepcopy(consumer.epochs)
        case "restore":
            await restore(world, world.consumers[of[0]])
        case "reopen":
            await world.sqlite.close()
            await world.open()


async def restore(world: World, consumer: Consumer) -> None:
    """Put an older state back; what the node no longer has comes from the archive, as it was."""
    lost, consumer.epochs = consumer.epochs, copy.deepcopy(consumer.backup)
    for epoch, known in lost.items():
        consumer.archive.setdefault(epoch, {}).update(known)
    for lane in LANES:
        text = await world.store.read(freeing.floor, lane.name)
        upto = world.written[lane.name].index(parse_place(text)) if text else -1  # type: ignore[arg-type]
        for place in world.written[lane.name][: upto + 1]:
            consumer.epochs.setdefault(place.epoch, {})[place.sequence] = lost[place.epoch][place.sequence]


async def run(path: Path, steps: list[tuple[Any, ...]]) -> None:
    world = World(path)
    await world.open()
    try:
        for each in steps:
            await step(world, *each)
            await world.check()
        await world.settle()
    finally:
        await world.sqlite.close()


@pytest.mark.timeout(900)  # on PostgreSQL: sixty histories, each commit synced to a disk that other work may keep busy
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=15, max_size=40))
def test_the_books_balance_at_every_moment_and_the_floor_passes_nothing_that_a_consumer_lacks_o1_o3_o4(
    steps: list[tuple[Any, ...]],
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "till.db", steps))
