"""A core that remembers the epochs under way is the core that reads them anew each time, whatever comes in between."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import Event, Message, UnitOfWork
from forebay.calm_epochs import CalmEpoch
from forebay.delivery import Delivery
from forebay.handlers import Handlers
from forebay.identity import Origin, Place
from forebay.inbox import Inbox
from forebay.intake import Intake, take_all
from forebay.outbox import Outbox
from forebay.row_cache import RowCache
from forebay.sqlite.group import Group
from forebay.sqlite.migrations import migrate
from forebay.transaction import Transaction
from forebay.work import Work
from tests.integration.arrivals import ENGINE, Stream, as_it_came
from tests.property.test_foreseen import TABLES

NODES = ("store-330", "store-1")
LANES = ("ledger", "audit")
LIVES = 3
OF_LIFE = 4
"""Events of an epoch; more of them come of the last one."""
BY_HAND = "update forebay_inbox set watermark = watermark + 1 where held = '[]'"


class Rung(Event, service="till", kind="rung"):
    at: int


class RaisedError(Exception):
    """What a handler or a unit raises."""


def epoch_of(lane: str, life: int) -> str:
    """Return an epoch's name, the same of either node: one may not occupy the other's (B1)."""
    return f"{LANES.index(lane):016x}{life + 1:016x}"


class Twin:
    """A core whose units run in groups, as the store's writer runs them, with or without what it remembers."""

    def __init__(self, empty: sqlite3.Connection, new_future: Callable[[], Any], *, remembers: bool) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        empty.backup(self.connection)
        self.cache = RowCache(self._foreign_commits) if remembers else None
        self.foreign = 0
        self._new_future = new_future
        self._handlers = Handlers()
        self._handlers.add(Rung, self._rung, batch=False)
        self.refused: int | None = None

    def _foreign_commits(self) -> int:
        return self.foreign

    def _rung(self, tx: UnitOfWork, event: Rung, message: Message) -> None:
        if event.at == self.refused:
            raise RaisedError("refused")
        tx.execute("insert into effect (node, at) values (:node, :at)", node=message.node, at=event.at)

    def run(self, units: list[Callable[[Transaction], None]]) -> list[str]:
        """Run units in one group; return what each raised."""
        group = Group(self.connection, "opening", self.cache)
        works = [Work(unit, (), {}, self._new_future()) for unit in units]
        with patch("forebay.sqlite.group.GROUP_TIME", 60.0):
            group.run(works)
        return [type(work.error).__name__ for work in works]

    def take(self, deliveries: list[Delivery], refused: int | None, raises: bool) -> Callable[[Transaction], None]:
        def unit(tx: Transaction) -> None:
            self.refused = refused
            take_all(UnitOfWork(tx, Outbox("core", "sales", [])), self._handlers, "EVENTS", "2017", deliveries, False)
            if raises:
                raise RaisedError("after it was taken")

        return unit

    def say(self, how: str, node: str, lane: str, life: int, first: int) -> Callable[[Transaction], None]:
        epoch = epoch_of(lane, life)

        def unit(tx: Transaction) -> None:
            if how == "by hand":
                tx.execute(f"{BY_HAND} and epoch = :epoch", epoch=epoch)
                return
            intake = Intake(UnitOfWork(tx, Outbox("core", "sales", [])), self._handlers)
            inbox = intake.inbox if how != "beside" else Inbox(tx)
            known = inbox.whole(node, "till")
            if how == "look":
                return  # and nothing is written
            if how == "drop":
                known.drop([(epoch, first, first + 2)], lane, {})
            elif how == "withhold":
                known.withhold([(epoch, first, "a key")], lane, {})
            else:
                state = known.take_on(epoch, lane, None)
                if state.passed.watermark and not state.passed.ranges:
                    known.skip(epoch, state.passed.watermark + 1)
            intake.drain(Origin(node, "till", lane), known, 0)
            intake.finish()
            inbox.save()

        return unit

    def written(self) -> dict[str, list[tuple[Any, ...]]]:
        return {
            table: sorted((tuple(row) for row in self.connection.execute(f"select {columns} from {table}")), key=str)
            for table, columns in TABLES.items()
        }

    def remembered(self) -> Iterator[tuple[int, str, str, str, str, int]]:
        """Yield the row's number, node, service, epoch, lane and watermark of all that is remembered."""
        assert self.cache is not None
        self.cache.begin()
        rows = self.cache.borrow()
        self.cache.give_back(rows)
        self.cache.commit()
        for (node, service), found in rows.items():
            known: CalmEpoch | None = found
            while known is not None:
                assert not known.moved
                yield known.row, node, service, known.epoch, known.lane, known.watermark
                known = known.other


def log_of(stream: Stream, node: str, lane: str) -> list[Delivery]:
    """Return what a node sends in one lane: some short lives, and a long one."""
    log: list[Delivery] = []
    prev: Place | None = None
    for life in range(LIVES):
        epoch = epoch_of(lane, life)
        count = OF_LIFE if life < LIVES - 1 else 4 * OF_LIFE
        for sequence in range(1, count + 1):
            body = b'{"at":%d}' % len(log)
            log.append(stream.event(sequence, body, epoch=epoch, prev=prev, node=node, lane=lane, kind="rung"))
        prev = Place(epoch, count)
    return log


Unit = tuple[str, Any]

saying = st.tuples(
    st.sampled_from(["drop", "withhold", "skip", "beside", "look", "by hand"]),
    st.sampled_from(NODES),
    st.sampled_from(LANES),
    st.integers(0, LIVES - 1),
    st.integers(1, 8),
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Unit]]:
    """Return groups of units: logs that come nearly in order, and what interferes with them."""
    stream = Stream()
    logs = {(node, lane): log_of(stream, node, lane) for node in NODES for lane in LANES}
    at = dict.fromkeys(logs, 0)
    groups: list[list[Unit]] = []
    for _ in range(draw(st.integers(1, 12))):
        group: list[Unit] = []
        for _ in range(draw(st.integers(1, 2))):
            if draw(st.integers(0, 4)) == 0:
                group.append(("say", draw(saying)))
                continue
            pieces: list[Delivery] = []
            for origin in draw(st.lists(st.sampled_from(list(logs)), min_size=1, max_size=6)):
                log = logs[origin]
                how = draw(st.sampled_from(["next"] * 9 + ["again", "later"]))
                place = at[origin] + {"next": 0, "again": -1, "later": 1}[how]
                if 0 <= place < len(log):
                    pieces.append(as_it_came(log[place]))
                if how == "next":
                    at[origin] += 1
            refused = draw(st.none() | st.integers(0, 20)) if draw(st.integers(0, 5)) == 0 else None
            raises = draw(st.integers(0, 7)) == 0
            group.append(("take", (pieces, refused, raises)))
        groups.append(group)
    return groups


@pytest.fixture(scope="module")
def new_future() -> Iterator[Callable[[], Any]]:
    loop = asyncio.new_event_loop()
    yield loop.create_future
    loop.close()


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, [ENGINE])
    connection.execute("create table effect (id integer primary key, node text, at integer)")
    yield connection
    connection.close()


@settings(max_examples=400, deadline=None)
@given(histories(), st.sets(st.integers(0, 12)), st.sampled_from([0, 3]), st.sampled_from([1, 2, 125]))
def test_what_is_remembered_changes_nothing(
    empty: sqlite3.Connection,
    new_future: Callable[[], Any],
    groups: list[list[Unit]],
    foreign: set[int],
    few: int,
    together: int,
) -> None:
    twins = [Twin(empty, new_future, remembers=remembers) for remembers in (True, False)]
    try:
        for number, group in enumerate(groups):
            if number in foreign:  # another connection's commit
                for twin in twins:
                    twin.connection.execute(f"{BY_HAND} and lane = 'audit'")
                    twin.foreign += 1
            with patch("forebay.inbox.FEW", few), patch("forebay.intake.TOGETHER", together):
                raised = [twin.run([getattr(twin, kind)(*arguments) for kind, arguments in group]) for twin in twins]
            assert raised[0] == raised[1]
            assert twins[0].written() == twins[1].written()
            columns = "id, node, service, epoch, lane, watermark"
            rows = {tuple(row) for row in twins[0].connection.execute(f"select {columns} from forebay_inbox")}
            assert set(twins[0].remembered()) <= rows
    finally:
        for twin in twins:
            twin.connection.close()
