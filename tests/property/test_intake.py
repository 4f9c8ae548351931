"""The intake over a real schema in memory: whatever the order of arrival, each effect once, each origin in order."""

import sqlite3
from typing import NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import Event, Message, UnitOfWork
from forebay.delivery import Delivery
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.inbox import Ahead
from forebay.intake import take_all
from forebay.outbox import Outbox
from forebay.sqlite.migrations import migrate
from forebay.sqlite.transaction import SqliteTransaction
from tests.integration.arrivals import ENGINE, Stream


class Rung(Event, service="till", kind="rung"):
    at: int


class RungTogether(Event, service="till", kind="rung-together"):
    at: int


class Core:
    """A consumer's store in memory, and the effects that it has seen: (node, position in the node's log)."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        migrate(self._connection, [ENGINE])
        self._connection.execute("create table effect (id integer primary key, node text, at integer)")
        self._handlers = Handlers()
        self._handlers.add(Rung, _rung, batch=False)
        self._handlers.add(RungTogether, _rung_together, batch=True)

    def take(self, deliveries: list[Delivery], *, commit: bool = True, ahead: Ahead | None = None) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        work = UnitOfWork(self.transaction(), Outbox("core", "sales", []))
        take_all(work, self._handlers, "EVENTS", "2017", deliveries, one_by_one=False, ahead=ahead)
        self._connection.execute("COMMIT" if commit else "ROLLBACK")

    def transaction(self) -> SqliteTransaction:
        return SqliteTransaction(self._connection, "opening")

    def effects(self, node: str) -> list[int]:
        rows = self._connection.execute("select at from effect where node = ? order by id", (node,))
        return [row["at"] for row in rows]

    def count(self, table: str) -> int:
        return int(self._connection.execute(f"select count(*) from {table}").fetchone()[0])

    def close(self) -> None:
        self._connection.close()


def _rung(tx: UnitOfWork, event: Rung, message: Message) -> None:
    tx.execute("insert into effect (node, at) values (:node, :at)", node=message.node, at=event.at)


def _rung_together(tx: UnitOfWork, events: list[RungTogether], messages: list[Message]) -> None:
    rows = [{"node": message.node, "at": event.at} for event, message in zip(events, messages, strict=True)]
    tx.executemany("insert into effect (node, at) values (:node, :at)", rows)


class Piece(NamedTuple):
    """What comes in one message: one event, or a frame, and the ids of its events."""

    delivery: Delivery
    ids: list[str]


NODES = ("store-330", "store-1")


@st.composite
def logs(draw: st.DrawFn) -> dict[str, list[Delivery]]:
    """Return the log of each node: one to three lives, each with its own epoch and the place before it."""
    stream = Stream()
    found: dict[str, list[Delivery]] = {}
    for number, node in enumerate(NODES[: draw(st.integers(1, 2))]):
        prev: Place | None = None
        log: list[Delivery] = []
        for life in range(draw(st.integers(1, 3))):
            epoch = f"{number + 1:016x}{life + 1:016x}"
            count = draw(st.integers(1, 5))
            for sequence in range(1, count + 1):
                body = msgspec.json.encode({"at": len(log)})
                kind = draw(st.sampled_from(["rung", "rung-together"]))
                log.append(stream.event(sequence, body, epoch=epoch, prev=prev, node=node, kind=kind))
            prev = Place(epoch, count)
        found[node] = log
    return found


@st.composite
def cuts(draw: st.DrawFn, stream: Stream, log: list[Delivery]) -> list[Piece]:
    """Return a node's log in pieces: single events, and frames of consecutive ones that may stand in one."""
    pieces, at = [], 0
    while at < len(log):
        run = 1
        while at + run < len(log) and _together(log[at], log[at + run]):
            run += 1
        size = draw(st.integers(1, run))
        events = log[at : at + size]
        delivery = events[0]
        if size > 1:
            delivery = stream.frame(events, packed=draw(st.booleans()), suffix=draw(st.sampled_from(["", "~ab"])))
        pieces.append(Piece(delivery, [_id(each) for each in events]))
        at += size
    return pieces


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[dict[str, list[Delivery]], list[list[Piece]]]:
    """Return logs and the transactions in which they arrive: in any order, some more than once, all in the end.

    Each event comes alone or in frames, which may be cut in another way when it comes again.
    """
    found = draw(logs())
    stream = Stream()
    every = [piece for log in found.values() for piece in draw(cuts(stream, log))]
    others = [piece for log in found.values() for piece in draw(cuts(stream, log))]
    repeated = draw(st.lists(st.sampled_from(every + others), max_size=8))
    order = draw(st.permutations(every + repeated))
    batches: list[list[Piece]] = []
    while order:
        size = draw(st.integers(1, 6))
        batches.append(list(order[:size]))
        order = order[size:]
    return found, batches


@settings(max_examples=150, deadline=None)
@given(arrivals(), st.data())
def test_whatever_the_order_of_arrival_effects_are_made_once_and_in_order(
    known: tuple[dict[str, list[Delivery]], list[list[Piece]]], data: st.DataObject
) -> None:
    found, batches = known
    core = Core()
    try:
        arrived: set[str] = set()
        for batch in batches:
            if data.draw(st.booleans(), label="the process dies before COMMIT"):
                core.take([piece.delivery for piece in batch], commit=False)
            core.take([piece.delivery for piece in batch])
            arrived |= {message_id for piece in batch for message_id in piece.ids}
            for node, log in found.items():
                # Exactly the prefix of the log that has arrived: nothing out of order, and nothing held needlessly.
                ready = next(
                    (at for at, each in enumerate(log) if each.headers["Nats-Msg-Id"] not in arrived), len(log)
                )
                assert core.effects(node) == list(range(ready))
        assert core.count("forebay_held") == core.count("forebay_parked") == 0
        assert core.count("forebay_inbox") == len(
            {each.headers["Nats-Msg-Id"][:32] for log in found.values() for each in log}
        )
    finally:
        core.close()


def _id(delivery: Delivery) -> str:
    return delivery.headers["Nats-Msg-Id"]


def _together(one: Delivery, other: Delivery) -> bool:
    return (one.subject, _id(one)[:32]) == (other.subject, _id(other)[:32])
