"""Windows over a real schema in memory: whatever the order of arrival, the batches and the crashes, what comes out is
what a batch computation over the same events gives."""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import Event, Service, UnitOfWork
from forebay.delivery import Delivery
from forebay.intake import take_all
from forebay.outbox import Outbox
from forebay.panes import milliseconds_of
from forebay.protocol.windows import Kind, Session, Sliding, Span, Tumbling, sessions
from forebay.sqlite.migrations import migrate
from forebay.sqlite.transaction import SqliteTransaction
from forebay.timers import Timer
from forebay.window import Late, Period, Result
from tests.integration.arrivals import ENGINE, Stream

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BASE = milliseconds_of(NOON)
NODES = ("store-1", "store-2", "store-3")
KINDS: list[Kind] = [Tumbling(10), Sliding(12, every=4), Session(7)]


class Read(Event, service="probe", kind="read", lane="telemetry", key="probe"):
    probe: str
    number: int


class Numbers(msgspec.Struct):
    """A fold that shows what is missing, doubled or strange: the numbers of the readings, sorted."""

    numbers: list[int] = []


class Reading(NamedTuple):
    node: str
    probe: str
    second: int
    number: int

    @property
    def at(self) -> int:
        return BASE + self.second * 1000


class Rig:
    """A core service with one window, in memory; its results and side output are tables, written as its events come."""

    def __init__(self, kind: Kind, *, lateness: float, nodes: Any = "each", idle: float = 300) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        migrate(self.connection, [ENGINE])
        self.connection.execute("create table result (node, key, opens, closes, numbers, revision)")
        self.connection.execute("create table late (node, key, number, opens, closes)")
        self.service = Service("core-probe")
        self.service.windows.wall = lambda: BASE + 3_600_000
        self._opening = "opening"

        @self.service.window(Read, kind, state=Numbers, lateness=lateness, nodes=nodes, idle=idle)
        def numbers(state: Numbers, read: Read) -> Numbers:
            return Numbers(sorted([*state.numbers, read.number]))

        @numbers.merge
        def both(left: Numbers, right: Numbers) -> Numbers:
            return Numbers(sorted(left.numbers + right.numbers))

        numbers.closed(tell)
        numbers.late(tell_late)
        self.service.windows.check({})

    def take(self, deliveries: list[Delivery], *, commit: bool = True, one_by_one: bool = False) -> None:
        self._write(
            lambda work: take_all(work, self.service.handlers, "EVENTS", "2026", deliveries, one_by_one), commit=commit
        )

    def pass_silent(self, at: int) -> None:
        timer = Timer("window", "numbers", "idle", datetime.fromtimestamp(at / 1000, UTC))
        self._write(lambda work: self.service.windows.pass_silent(work, timer))

    def _write(self, unit: Callable[[UnitOfWork], object], *, commit: bool = True) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        unit(UnitOfWork(SqliteTransaction(self.connection, self._opening), Outbox("core", "core-probe", [])))
        self.connection.execute("COMMIT" if commit else "ROLLBACK")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.connection.execute(sql)]

    def results(self) -> dict[tuple[str, str, Span], list[int]]:
        rows = self.rows("select node, key, opens, closes, numbers from result")
        assert len({row[:4] for row in rows}) == len(rows), "one result of a window stands"
        return {(node, key, Span(opens, closes)): msgspec.json.decode(text) for node, key, opens, closes, text in rows}

    def late(self) -> dict[tuple[str, str, Span], list[int]]:
        found: dict[tuple[str, str, Span], list[int]] = {}
        for node, key, number, opens, closes in self.rows("select * from late order by number"):
            found.setdefault((node, key, Span(opens, closes)), []).append(number)
        return found

    def close_all(self, stream: Stream, places: dict[str, int]) -> None:
        """Let every window close and be final: each node speaks of a time far ahead, under a key of its own."""
        far = [Reading(node, "end", 3000, 10**6) for node in NODES]
        self.take([delivered(stream, reading, places) for reading in far])


def tell(tx: UnitOfWork, result: Result[Numbers]) -> None:
    for period in result.replaces:
        gone = tx.execute(
            "delete from result where node = :node and key = :key and opens = :opens and closes = :closes returning 1",
            node=result.node, key=result.key, **span(period)
        )  # fmt: skip
        assert len(gone) == 1, "what a result replaces was told"
    assert result.events == len(result.state.numbers)
    tx.execute(
        "insert into result values (:node, :key, :opens, :closes, :numbers, :revision)",
        node=result.node,
        key=result.key,
        numbers=msgspec.json.encode(result.state.numbers).decode(),
        revision=result.revision,
        **span(Period(result.opens, result.closes)),
    )


def tell_late(tx: UnitOfWork, late: Late[Read]) -> None:
    assert late.reason == "late"
    for period in late.missed:
        tx.execute(
            "insert into late values (:node, :key, :number, :opens, :closes)",
            node=late.message.node, key=late.event.probe, number=late.event.number, **span(period)
        )  # fmt: skip


def span(period: Period) -> dict[str, int]:
    return {"opens": milliseconds_of(period.opens), "closes": milliseconds_of(period.closes)}


def delivered(stream: Stream, reading: Reading, places: dict[str, int]) -> Delivery:
    places[reading.node] = places.get(reading.node, 0) + 1
    body = msgspec.json.encode(Read(probe=reading.probe, number=reading.number))
    return stream.event(
        places[reading.node],
        body,
        epoch=f"{NODES.index(reading.node) + 1:032x}",
        node=reading.node,
        service="probe",
        kind="read",
        lane="telemetry",
        key=reading.probe,
        time=datetime.fromtimestamp(reading.at / 1000, UTC),
    )


def computed(kind: Kind, readings: Iterable[Reading], scope: Callable[[Reading], str]) -> dict[Any, list[int]]:
    """The batch computation: all windows of readings that are all known."""
    found: dict[Any, list[int]] = {}
    of_key: dict[tuple[str, str], list[Reading]] = {}
    for reading in readings:
        of_key.setdefault((scope(reading), reading.probe), []).append(reading)
    for (where, probe), each in of_key.items():
        spans = [span for reading in each for span in kind.spans(reading.at)]
        for whole in sessions(spans) if isinstance(kind, Session) else sorted(set(spans)):
            found[where, probe, whole] = sorted(
                reading.number for reading in each if whole.opens <= reading.at < whole.closes
            )
    return found


@st.composite
def arrivals(draw: st.DrawFn) -> list[Reading]:
    """Readings of up to three nodes in an order of arrival: each node with a delay and a disorder of its own."""
    nodes = NODES[: draw(st.integers(1, 3))]
    delays = {node: draw(st.integers(0, 60)) for node in nodes}
    disorder = draw(st.sampled_from([0, 3, 40]))
    reading = st.tuples(st.sampled_from(nodes), st.sampled_from("ab"), st.integers(0, 120), st.integers(0, disorder))
    readings = draw(st.lists(reading, min_size=1, max_size=40))
    timed = [
        (second + delays[node] + late, Reading(node, probe, second, number))
        for number, (node, probe, second, late) in enumerate(readings)
    ]
    return [reading for _, reading in sorted(timed, key=lambda each: each[0])]


def run(rig: Rig, readings: list[Reading], draw: Callable[[Any], Any]) -> None:
    """Deliver readings in random batches, some twice, some in transactions that crash and run again."""
    stream, places = Stream(), dict[str, int]()
    waiting = [delivered(stream, reading, places) for reading in readings]
    seen: list[Delivery] = []
    while waiting:
        size = draw(st.integers(1, len(waiting)))
        batch, waiting = waiting[:size], waiting[size:]
        if draw(st.booleans()):
            rig.take(batch, commit=False)
        doubled = batch + ([draw(st.sampled_from(seen))] if seen and draw(st.booleans()) else [])
        rig.take(doubled, one_by_one=draw(st.booleans()))
        seen += batch
    rig.close_all(stream, places)


def check(rig: Rig, kind: Kind, readings: list[Reading], scope: Callable[[Reading], str]) -> None:
    """Results are the batch computation over what was not too late; both together are what came in."""
    by_number = {reading.number: reading for reading in readings}
    late, results = rig.late(), {at: numbers for at, numbers in rig.results().items() if at[1] != "end"}
    expected: dict[Any, list[int]] = {}
    if isinstance(kind, Session):
        missed = {number for numbers in late.values() for number in numbers}
        expected = computed(kind, [each for each in readings if each.number not in missed], scope)
    else:
        missed_by = {(scope(by_number[number]), *at[1:], number) for at, numbers in late.items() for number in numbers}
        for at, numbers in computed(kind, readings, scope).items():
            if kept := [number for number in numbers if (*at, number) not in missed_by]:
                expected[at] = kept
    assert results == expected
    assert rig.rows("select count(*) from forebay_window where key <> 'end'") == [(0,)], "what is final is deleted"
    (counted,) = rig.rows("select sum(late) from forebay_watermark")[0]
    assert counted == len({number for numbers in late.values() for number in numbers})


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30, 1000]), st.data())
def test_each_nodes_windows_are_the_batch_computation(
    kind: Kind, readings: list[Reading], lateness: int, data: st.DataObject
) -> None:
    rig = Rig(kind, lateness=lateness)
    with closing(rig.connection):
        run(rig, readings, data.draw)
        check(rig, kind, readings, lambda reading: reading.node)
        if lateness == 1000:
            assert rig.late() == {}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30, 1000]), st.data())
def test_windows_of_all_nodes_together_are_the_batch_computation(
    kind: Kind, readings: list[Reading], lateness: int, data: st.DataObject
) -> None:
    rig = Rig(kind, lateness=lateness, nodes="together")
    with closing(rig.connection):
        run(rig, readings, data.draw)
        check(rig, kind, readings, lambda _: "")
        if lateness == 1000:
            assert rig.late() == {}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30]), st.sampled_from(["each", "together"]), st.data()
)
def test_the_size_of_the_batches_does_not_change_what_comes_out(
    kind: Kind, readings: list[Reading], lateness: int, nodes: str, data: st.DataObject
) -> None:
    outcomes = []
    for whole in (True, False):
        rig = Rig(kind, lateness=lateness, nodes=nodes)
        with closing(rig.connection):
            stream, places = Stream(), dict[str, int]()
            waiting = [delivered(stream, reading, places) for reading in readings]
            while waiting:
                size = len(waiting) if whole else data.draw(st.integers(1, len(waiting)))
                rig.take(waiting[:size])
                waiting = waiting[size:]
            standing = rig.rows("select name, scope, key, opens, closes, state, events, content from forebay_window")
            outcomes.append((rig.results(), rig.late(), standing, rig.rows("select * from forebay_watermark")))
    assert outcomes[0] == outcomes[1]
