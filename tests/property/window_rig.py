"""A core service with one window, in memory; its results and its side output are tables, written as its events come."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from forebay import Event, Service, UnitOfWork
from forebay.delivery import Delivery
from forebay.intake import take_all
from forebay.outbox import Outbox
from forebay.panes import milliseconds_of
from forebay.protocol.windows import Kind, Span
from forebay.sqlite.migrations import migrate
from forebay.sqlite.transaction import SqliteTransaction
from forebay.timers import Timer
from forebay.window import Late, Period, Result
from tests.integration.arrivals import ENGINE, Stream

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BASE = milliseconds_of(NOON)
NODES = ("store-1", "store-2", "store-3")


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
    """The service's store. Results that are replaced are deleted, so that what stands is what a receiver knows."""

    def __init__(
        self, kind: Kind, *, lateness: float, nodes: Any = "each", idle: float = 300, time: Any = "event"
    ) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        migrate(self.connection, [ENGINE])
        self.connection.execute("create table result (node, key, opens, closes, numbers, revision)")
        self.connection.execute("create table late (node, key, number, opens, closes)")
        self.connection.execute("create table ahead (number)")
        self.service = Service("core-probe")
        self.now = BASE + 3_600_000
        self.service.windows.wall = lambda: self.now
        self.stream, self.places = Stream(), dict[str, int]()

        @self.service.window(Read, kind, state=Numbers, lateness=lateness, nodes=nodes, idle=idle, time=time)
        def numbers(state: Numbers, read: Read) -> Numbers:
            return Numbers(sorted([*state.numbers, read.number]))

        @numbers.merge
        def both(left: Numbers, right: Numbers) -> Numbers:
            return Numbers(sorted(left.numbers + right.numbers))

        numbers.closed(tell)
        numbers.late(tell_late)
        self.service.windows.check({})

    def read(self, *readings: Reading) -> None:
        """Take readings in one transaction."""
        self.take([delivered(self.stream, reading, self.places) for reading in readings])

    def take(self, deliveries: list[Delivery], *, commit: bool = True, one_by_one: bool = False) -> None:
        self._write(
            lambda work: take_all(work, self.service.handlers, "EVENTS", "2026", deliveries, one_by_one), commit=commit
        )

    def pass_silent(self, at: int) -> None:
        timer = Timer("window", "numbers", "idle", datetime.fromtimestamp(at / 1000, UTC))
        self._write(lambda work: self.service.windows.pass_silent(work, timer))

    def _write(self, unit: Callable[[UnitOfWork], object], *, commit: bool = True) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        tx, outbox = SqliteTransaction(self.connection, "opening"), Outbox("core", "core-probe", self.service.lanes)
        outbox.bind(tx, "store")
        work = UnitOfWork(tx, outbox)
        unit(work)
        work.flush()
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

    def close_all(self) -> None:
        """Let every window close and be final: each node speaks of a time far ahead, under a key of its own."""
        self.read(*[Reading(node, "end", 3000, 10**6) for node in NODES])


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
    if late.reason == "ahead":
        tx.execute("insert into ahead values (:number)", number=late.event.number)
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
