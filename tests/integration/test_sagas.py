"""Sagas on a real store: what moves them, what ends them, and what undoes them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.command import Command
from forebay.envelope import Message
from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.handlers import Handlers
from forebay.intake import take_all
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.saga import Saga, Sagas, Step, compensates, moves, starts, times_out
from forebay.saga.instances import Instance, Told, counts, listed, load, story
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.timers import Timers
from forebay.transaction import Row
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.integration.arrivals import Stream, opened

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMIT = timedelta(minutes=10)


class TripBooked(Event, service="trips", kind="trip-booked", key="trip"):
    trip: str


class TripEnded(Event, service="trips", kind="trip-ended", key="trip"):
    trip: str
    how: str


class HoldRoom(Command, service="hotel", kind="hold-room", key="trip"):
    trip: str


class FreeRoom(Command, service="hotel", kind="free-room", key="trip"):
    trip: str


class HoldSeat(Command, service="train", kind="hold-seat", key="trip"):
    trip: str


class FreeSeat(Command, service="train", kind="free-seat", key="trip"):
    trip: str


class RoomHeld(Event, service="hotel", kind="room-held", key="trip"):
    trip: str


class RoomFreed(Event, service="hotel", kind="room-freed", key="trip"):
    trip: str


class SeatHeld(Event, service="train", kind="seat-held", key="trip"):
    trip: str


class SeatRefused(Event, service="train", kind="seat-refused", key="trip"):
    trip: str


class SeatFreed(Event, service="train", kind="seat-freed", key="trip"):
    trip: str


class Trip(Saga, saga="trip"):
    trip: str
    room: bool = False

    @classmethod
    @starts(TripBooked)
    def booked(cls, step: Step, event: TripBooked) -> Self:
        saga = cls(trip=event.trip)
        step.undo(saga.free_room)
        step.send(HoldRoom(trip=event.trip), to="house-1")
        step.timeout("room", LIMIT)
        return saga

    @moves(RoomHeld)
    def has_room(self, step: Step, event: RoomHeld) -> None:
        if self.room:
            return  # somebody said it twice, in two events
        self.room = True
        step.clear("room")
        step.undo(self.free_seat)
        step.undo(self.apologize)
        step.send(HoldSeat(trip=event.trip), to="rail-1")

    @moves(SeatHeld)
    def has_seat(self, step: Step, event: SeatHeld) -> None:
        step.emit(TripEnded(trip=event.trip, how="booked"))
        step.complete()

    @moves(SeatRefused)
    def has_no_seat(self, step: Step, event: SeatRefused) -> None:
        step.compensate(f"no seat for {event.trip}")

    @times_out("room")
    def no_answer(self, step: Step) -> None:
        step.compensate("the hotel does not answer")

    @compensates(until=RoomFreed)
    def free_room(self, step: Step) -> None:
        step.send(FreeRoom(trip=self.trip), to="house-1")

    @compensates(until=SeatFreed)
    def free_seat(self, step: Step) -> None:
        step.send(FreeSeat(trip=self.trip), to="rail-1")

    @compensates()
    def apologize(self, step: Step) -> None:
        step.emit(TripEnded(trip=self.trip, how="not booked"))


TRIPS = Sagas(Trip)


class Desk:
    """The service that books trips: its store, and what its consumer would do with an answer."""

    def __init__(self, store: UnitStore) -> None:
        self.store = store
        self.now = NOW
        self.received = 0
        self.timers = Timers(TRIPS.timers, store, lambda: self.now.timestamp())

    async def take(self, event: Event, *, answers: str | None = None) -> None:
        """Take an event as the consumer does; ``answers`` is the id of the command that it answers."""
        self.received += 1
        message = Message(
            message_id=f"{self.received:032x}-1",
            node="house-1",
            service=event.spec.service,
            kind=event.spec.kind,
            id="1",
            source="/house-1/hotel",
            type=event.spec.type,
            time=self.now,
            stored_at=self.now,
            cause=answers and f"{answers}/{event.spec.service}/0",
        )

        def unit(tx: UnitOfWork) -> None:
            tx.because_of(message)
            TRIPS.tell(tx, event, message)

        await self.store.write(unit)

    async def sent(self) -> list[Row]:
        return await self.store.read(
            lambda tx: tx.execute(
                "select r.type, r.key, r.cause, e.epoch || '-' || r.sequence as message_id"
                " from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
                " order by r.hlc"
            )
        )

    async def types(self) -> list[str]:
        return [row["type"].split(".")[1] for row in await self.sent()]

    async def last(self, kind: str) -> str:
        return next(str(row["message_id"]) for row in reversed(await self.sent()) if kind in row["type"])

    async def instance(self, trip: str = "t-1") -> Instance:
        known = await self.store.read(load, "trip", trip)
        assert known is not None
        return known

    async def told(self, trip: str = "t-1") -> list[Told]:
        return await self.store.read(story, "trip", trip)


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    sqlite = await SqliteStore.open(
        folder / "trips.db", migrations=[MigrationSet("forebay", files("forebay.migrations"))]
    )
    outbox = Outbox("core", "trips", [Lane("ledger", budget="8MiB")], sends=True)
    await sqlite.write(outbox.bind, "s1")
    try:
        yield Desk(UnitStore(sqlite, outbox))
    finally:
        await sqlite.close()


async def test_events_move_a_saga_to_its_end_and_its_story_tells_every_step(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        await one.take(RoomHeld(trip="t-1"), answers=await one.last("hold-room"))
        await one.take(SeatHeld(trip="t-1"), answers=await one.last("hold-seat"))
        known = await one.instance()
        assert (known.status, known.undo, known.awaiting) == ("done", [], None)
        assert await one.types() == ["hold-room", "hold-seat", "trip-ended"]
        told = await one.told()
        assert [(each.step, each.status) for each in told] == [
            ("booked", "running"),
            ("has_room", "running"),
            ("has_seat", "done"),
        ]
        assert any(sentence.startswith("sent hotel.hold-room.v1") for sentence in told[0].did)
        assert told[1].moved_by.startswith("hotel.room-held.v1 ")


async def test_what_a_step_sends_names_the_message_that_moved_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        assert [row["cause"] for row in await one.sent()] == [f"{1:032x}-1/trips/0"]


async def test_a_saga_that_gives_up_undoes_its_steps_the_latest_first_each_after_the_other(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        await one.take(RoomHeld(trip="t-1"))
        await one.take(SeatRefused(trip="t-1"))
        assert (await one.instance()).status == "compensating"
        assert (await one.types())[2:] == ["trip-ended", "free-seat"]
        await one.take(SeatFreed(trip="t-1"), answers=await one.last("free-seat"))
        assert (await one.types())[4:] == ["free-room"]
        await one.take(RoomFreed(trip="t-1"), answers=await one.last("free-room"))
        assert (await one.instance()).status == "compensated"
        assert len(await one.sent()) == 5


async def test_a_repeated_answer_is_not_taken_for_the_end_of_another_compensation(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        await one.take(RoomHeld(trip="t-1"))
        await one.take(SeatRefused(trip="t-1"))
        for answer in (RoomFreed(trip="t-1"), SeatFreed(trip="t-1")):
            await one.take(answer, answers="0" * 32 + "-1")  # to a command that this compensation did not send
        known = await one.instance()
        assert known.awaiting is not None
        assert (known.status, known.awaiting.compensation) == ("compensating", "free_seat")


async def test_a_timeout_ends_the_wait_and_a_late_answer_changes_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        one.now += LIMIT
        assert await one.timers.fire_due() == 1
        assert await one.types() == ["hold-room", "free-room"]
        await one.take(RoomHeld(trip="t-1"))
        assert (await one.told())[-1].did == ["it is compensating"]
        await one.take(RoomFreed(trip="t-1"), answers=await one.last("free-room"))
        assert (await one.instance()).status == "compensated"
        await one.take(RoomHeld(trip="t-1"))
        assert await one.types() == ["hold-room", "free-room"]


@pytest.mark.parametrize("trip", ["t 1", "Übernachtung", "50%", 'the "grand" tour'])
async def test_an_instance_may_have_any_name_that_an_ordering_key_may_be(tmp_path: Path, trip: str) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip=trip))
        one.now += LIMIT
        assert await one.timers.fire_due() == 1
        assert (await one.instance(trip)).status == "compensating"
        assert await one.store.read(lambda tx: tx.execute("select * from forebay_timer")) == []
        await one.take(TripBooked(trip=f"{trip}2"))
        await one.take(RoomHeld(trip=f"{trip}2"))
        assert await one.store.read(lambda tx: tx.execute("select * from forebay_timer")) == [], "it was cleared"


@pytest.mark.parametrize(("answer", "status"), [(SeatHeld, "done"), (SeatRefused, "compensating")])
async def test_the_end_and_giving_up_take_every_timeout_back(
    tmp_path: Path, answer: type[SeatHeld] | type[SeatRefused], status: str
) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        await one.take(answer(trip="t-1"))  # the timeout of the room is still set
        assert (await one.instance()).status == status
        assert await one.store.read(lambda tx: tx.execute("select * from forebay_timer")) == []


async def test_timeouts_survive_a_restart_and_go_when_the_saga_ends(tmp_path: Path) -> None:
    async with desk(tmp_path) as before:
        await before.take(TripBooked(trip="t-1"))
        await before.take(TripBooked(trip="t-2"))
        await before.take(RoomHeld(trip="t-2"))
    async with desk(tmp_path) as after:
        after.now += 2 * LIMIT
        await after.timers.fire_due()
        assert (await after.instance("t-1")).status == "compensating"
        assert (await after.instance("t-2")).status == "running"


async def test_b5_a_step_that_is_taken_again_sets_the_deadline_that_it_set_before(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(TripBooked(trip="t-1"))
        rows = await one.store.read(lambda tx: tx.execute("select deadline from forebay_timer"))
        assert [row["deadline"] for row in rows] == [round((NOW + LIMIT).timestamp() * 1000)]


async def test_b5_a_deadline_stays_and_passes_once_though_the_stream_is_made_anew_and_brings_the_event_later(
    tmp_path: Path,
) -> None:
    handlers, stream = Handlers(), Stream()
    for kind in TRIPS.events:
        handlers.add(kind, TRIPS.tell, batch=False)
    booked = stream.event(1, b'{"trip":"t-1"}', service="trips", kind="trip-booked", key="t-1")
    anew = booked._replace(stored_at=booked.stored_at + 3_600_000_000_000)

    async with opened(tmp_path / "trips.db", "trips", handlers, lanes=[Lane("ledger")]) as core:
        await core.store.write(take_all, handlers, "EVENTS", "2017", [booked], True)
        deadline = await core.rows("select deadline from forebay_timer")
        taken = await core.store.write(take_all, handlers, "EVENTS", "2018", [anew], True)
        assert (taken.applied, taken.duplicates) == (0, 1)
        reckoned = booked.stored_at // 1_000_000 + round(LIMIT.total_seconds() * 1000)
        assert await core.rows("select deadline from forebay_timer") == deadline == [{"deadline": reckoned}]

        timers = Timers(TRIPS.timers, core.store, lambda: anew.stored_at / 1e9 + 2 * LIMIT.total_seconds())
        await timers.fire_due()
        await core.store.write(take_all, handlers, "EVENTS", "2018", [anew], True)
        await timers.fire_due()
        sent = await core.rows("select type from forebay_outbox order by hlc")
        assert [row["type"] for row in sent] == ["hotel.hold-room.v1", "hotel.free-room.v1"]


async def test_a_saga_starts_once_and_events_of_nobody_start_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as one:
        await one.take(RoomHeld(trip="t-9"))
        await one.take(TripBooked(trip="t-1"))
        await one.take(TripBooked(trip="t-1"))
        assert await one.types() == ["hold-room"]
        assert [each.instance for each in await one.store.read(listed)] == ["t-1"]
        assert (await one.told())[-1].did == ["it was started before"]


async def test_the_service_itself_may_start_one_in_its_own_transaction(tmp_path: Path) -> None:
    def book(tx: UnitOfWork) -> None:
        event = TripBooked(trip="t-1")
        tx.emit(event)
        TRIPS.tell(tx, event)

    async with desk(tmp_path) as one:
        await one.store.write(book)
        assert await one.types() == ["trip-booked", "hold-room"]
        assert [
            tuple(row[name] for name in ("saga", "status", "instances")) for row in await one.store.read(counts)
        ] == [("trip", "running", 1)]


async def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Failing(Saga, saga="failing"):
        trip: str

        @classmethod
        @starts(TripBooked)
        def booked(cls, step: Step, event: TripBooked) -> Self:
            step.send(HoldRoom(trip=event.trip), to="house-1")
            raise LookupError(event.trip)

    async with desk(tmp_path) as one:
        with pytest.raises(LookupError):
            await one.store.write(Sagas(Failing).tell, TripBooked(trip="t-1"))
        assert await one.sent() == []
        assert await one.store.read(listed) == []


def test_what_a_saga_class_leaves_out_or_says_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing starts it"):

        class Still(Saga, saga="still"):
            trip: str

    with pytest.raises(ConfigurationError, match="no class method"):

        class Unbound(Saga, saga="unbound"):
            @starts(TripBooked)
            def booked(self, step: Step, event: TripBooked) -> None: ...

    with pytest.raises(ConfigurationError, match="no field 'journey'"):
        moves(RoomHeld, by="journey")
    with pytest.raises(ConfigurationError, match="same name"):
        Sagas(Trip, Trip)


ANSWERS: dict[str, tuple[type[Event], ...]] = {
    "hold-room": (RoomHeld,),
    "free-room": (RoomFreed,),
    "hold-seat": (SeatHeld, SeatRefused),
    "free-seat": (SeatFreed,),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), trips=st.integers(1, 3))
async def test_every_saga_ends_once_whatever_the_order_the_repetitions_and_the_timeouts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, trips: int
) -> None:
    """Nodes answer in order, perhaps twice (two events), perhaps after the deadline; every instance ends, undone in
    reverse and each step once."""
    async with desk(tmp_path_factory.mktemp("desk")) as one:
        for trip in range(trips):
            await one.take(TripBooked(trip=f"t-{trip}"))
        answered = 0
        waiting: deque[tuple[Event, str]] = deque()
        for _ in range(60):
            sent = await _commands(one)
            for row in sent[answered:]:
                kinds = ANSWERS[row["type"].split(".")[1]]
                event = data.draw(st.sampled_from(kinds))(trip=row["key"])
                waiting.extend([(event, row["message_id"])] * data.draw(st.integers(1, 2)))
            answered = len(sent)
            if not waiting:
                break
            if data.draw(st.integers(0, 3)) == 0:
                one.now += LIMIT
                await one.timers.fire_due()
            at = data.draw(st.integers(0, len(waiting) - 1))
            waiting.rotate(-at)
            event, command = waiting.popleft()
            waiting.rotate(at)
            await one.take(event, answers=command)
        one.now += LIMIT
        await one.timers.fire_due()
        assert not waiting
        ended = {each.instance: each.status for each in await one.store.read(listed)}
        assert set(ended) == {f"t-{trip}" for trip in range(trips)}
        for name, status in ended.items():
            done = [row["type"].split(".")[1] for row in await one.sent() if row["key"] == name]
            assert status in ("done", "compensated")
            assert len(set(done)) == len(done), f"{name}: {done}"
            assert ("free-room" in done) == (status == "compensated")
            if "free-seat" in done:
                assert done.index("trip-ended") < done.index("free-seat") < done.index("free-room")
        assert not await one.store.read(lambda tx: tx.execute("select 1 from forebay_timer"))


async def _commands(one: Desk) -> list[Row]:
    return [row for row in await one.sent() if row["type"].split(".")[1] in ANSWERS]
