"""Following over real databases: whatever is dropped, freed, withheld, restored, killed: effects once and in order."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import Event, Lane, Message, UnitOfWork, followed
from forebay.dropping import _drop
from forebay.followed import FollowedLane
from forebay.followers import Followers
from forebay.following import Followed, Follower
from forebay.freeing import free, head
from forebay.handlers import Handlers
from forebay.identity import Place, parse_message_id
from forebay.outbox import Outbox
from forebay.protocol.confirmation import Confirmations
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore
from forebay.withholding import withhold
from tests.integration.arrivals import ENGINE
from tests.outboxes import messages_after

P = ParamSpec("P")
T = TypeVar("T")
BUDGET = 3000
LANES = [
    Lane("ledger", budget="8MiB"),
    Lane("telemetry", budget=BUDGET, when_full="drop-oldest"),
    Lane("state", budget=BUDGET, when_full="keep-latest"),
]
SCHEMA = "create table effect (id integer primary key autoincrement, lane text not null, at integer not null);"


class Sold(Event, service="till", kind="sold", key="name"):
    name: str
    at: int


class Measured(Event, service="till", kind="measured", lane="telemetry", key="name"):
    name: str
    at: int


class Changed(Event, service="till", kind="changed", lane="state", key="name"):
    name: str
    at: int


KINDS: dict[str, type[Sold | Measured | Changed]] = {"ledger": Sold, "telemetry": Measured, "state": Changed}


class DiedError(BaseException):
    """The process dies here."""


class DyingStore(UnitStore):
    """A store whose process dies before or after one of the next commits."""

    def __init__(self, store: SqliteStore, outbox: Outbox) -> None:
        super().__init__(store, outbox)
        self.dies: tuple[int, bool] | None = None

    async def write(self, unit: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.dies is None:
            return await super().write(unit, *args, **kwargs)
        left, kept = self.dies
        self.dies = (left - 1, kept)
        if left == 0 and not kept:
            raise DiedError
        result = await super().write(unit, *args, **kwargs)
        if left == 0:
            raise DiedError
        return result


def _note(tx: UnitOfWork, event: Any, message: Message) -> None:
    tx.execute("insert into effect (lane, at) values (:lane, :at)", lane=message.lane, at=event.at)


def _note_all(tx: UnitOfWork, events: list[Any], messages: list[Message]) -> None:
    for event, message in zip(events, messages, strict=True):
        _note(tx, event, message)


class Node:
    """A till, and a stock that follows it; the process that runs both may die and start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, list[int]] = {lane: [] for lane in KINDS}
        self.outbox = Outbox("store-330", "till", LANES)
        self.clock = 0.0
        self.at = 0
        self.handlers = Handlers()
        self.handlers.add(Sold, _note, batch=False)
        self.handlers.add(Measured, _note_all, batch=True)
        self.handlers.add(Changed, _note, batch=False)
        migrations = folder / "migrations"
        migrations.mkdir()
        (migrations / "0001_stock.sqlite.sql").write_text(SCHEMA)
        self.stock_sets = [ENGINE, MigrationSet("stock", migrations)]

    async def start(self) -> None:
        self._till = await SqliteStore.open(self.folder / "till.db", migrations=[ENGINE])
        self._stock = await SqliteStore.open(self.folder / "stock.db", migrations=self.stock_sets)
        await self._till.write(self.outbox.bind, "till-1")
        self.outbox.sheddable = {}
        self.till = UnitStore(self._till, self.outbox)
        stock_outbox = Outbox("store-330", "stock", [])
        await self._stock.write(stock_outbox.bind, "stock-1")
        self.stock = DyingStore(self._stock, stock_outbox)
        self.known: dict[str, Confirmations] = {}
        self.followers = Followers(self.outbox, self.till, self.known, lambda: self.clock)
        self.follow_anew()
        await self.followers.add("stock", self.follower.answer)

    def follow_anew(self) -> None:
        lanes = [FollowedLane(self.outbox, self.till, lane) for lane in self.outbox.lanes]
        followed = Followed("till", "till-1", lanes, lambda: None)
        self.follower = Follower("stock", "store-330", self.handlers, self.stock, "stock-1", [followed])

    async def stop(self) -> None:
        await self._till.close()
        await self._stock.close()

    async def emit(self, lane: str, name: str) -> None:
        self.at += 1
        event = KINDS[lane](name=name, at=self.at)
        await self.till.write(lambda tx: tx.emit(event))
        self.written[lane].append(self.at)

    async def refuse(self, lane: str) -> None:
        """The broker refuses the oldest event of a lane for itself."""
        messages = await self.till.read(messages_after, self.outbox, lane, None, limit=1, max_bytes=1)
        if messages and (identity := parse_message_id(messages[0].message_id)):
            await self.till.write(withhold, {identity.place: "too large"}, 0)

    async def free(self) -> None:
        """Free what the follower confirmed, as the confirmation does once the core has it too."""
        await self.followers.ask()
        self.clock += 1
        await self.followers.ask()
        said = self.known["stock@node"]
        for lane in self.outbox.lanes:
            oldest = await self.till.read(head, lane)
            if oldest is None or oldest.what != "rows":
                continue
            upto = min(oldest.last, said.ripe(oldest.epoch, 0.5, oldest.first))
            if upto >= oldest.first:
                await self.till.write(free, lane, oldest.epoch, upto, limit=1000)

    async def follow(self) -> None:
        while await self.follower.take_next():
            pass

    async def dropped(self, lane: str) -> int:
        def query(tx: Transaction) -> int:
            sql = "select coalesce(sum(last - first + 1), 0) as events from forebay_gap where lane = :lane"
            return int(tx.execute(sql, lane=lane)[0]["events"])

        return await self.stock.read(query)

    async def effects(self, lane: str) -> list[int]:
        def query(tx: Transaction) -> list[int]:
            return [row["at"] for row in tx.execute("select at from effect where lane = :lane order by id", lane=lane)]

        return await self.stock.read(query)


STEPS = st.one_of(
    st.tuples(st.just("emit"), st.sampled_from(sorted(KINDS)), st.sampled_from("abc")),
    st.tuples(st.just("emit"), st.sampled_from(sorted(KINDS)), st.sampled_from("abc")),
    st.tuples(st.just("refuse"), st.sampled_from(sorted(KINDS))),
    st.tuples(st.just("follow")),
    st.tuples(st.just("free")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("die"), st.integers(0, 3), st.booleans()),
)


async def _run(folder: Path, steps: list[tuple[Any, ...]]) -> None:
    node = Node(folder)
    await node.start()
    try:
        for step in steps:
            match step:
                case "emit", lane, name:
                    for _ in range(4):
                        await node.emit(lane, name)
                case "refuse", lane:
                    await node.refuse(lane)
                case ("follow",):
                    await node.follow()
                case ("free",):
                    await node.free()
                case ("restart",):
                    await node.stop()
                    await node.start()
                case "die", commits, kept:
                    node.stock.dies = (commits, kept)
                    with suppress(DiedError):
                        await node.follow()
                    node.stock.dies = None
                    node.follow_anew()
                    await node.followers.add("stock", node.follower.answer)
            for lane, written in node.written.items():
                seen = await node.effects(lane)
                assert seen == sorted(set(seen)), "in order, and none twice"
                assert set(seen) <= set(written)
        await node.follow()
        for lane, written in node.written.items():
            seen, lacking = await node.effects(lane), await node.dropped(lane)
            assert len(seen) + lacking == len(written), f"{lane}: what has no effect is on record"
            if not node.outbox.lanes[lane].drops:
                assert seen == written
        held = await node.stock.read(lambda tx: len(tx.execute("select 1 from forebay_held")))
        parked = await node.stock.read(lambda tx: len(tx.execute("select 1 from forebay_parked")))
        assert (held, parked) == (0, 0)
        await _all_confirmed(node)
    finally:
        await node.stop()


async def _all_confirmed(node: Node) -> None:
    """Everything that is still here is confirmed: nothing keeps a row for ever."""
    await node.followers.ask()
    for lane in node.outbox.lanes:
        messages = await node.till.read(messages_after, node.outbox, lane, None, limit=10_000, max_bytes=1 << 30)
        places = [message.place for message in messages if message.place is not None]
        assert all(node.known["stock@node"].confirmed(Place(*place)) for place in places)


def _restore(folder: Path, service: str) -> None:
    if (folder / "backup").exists():
        for path in folder.glob(f"{service}.db*"):
            path.unlink()
        shutil.copy(folder / "backup", folder / f"{service}.db")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=1, max_size=25))
def test_each_event_takes_effect_once_and_in_order_or_is_on_record_as_dropped(steps: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_run(Path(folder), steps))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from("abc")), min_size=1, max_size=8),
    st.integers(0, 8),
    st.sampled_from(["till", "stock"]),
)
def test_after_a_restore_of_either_store_nothing_is_twice_nothing_waits_and_nothing_is_out_of_order(
    events: list[tuple[str, str]], backed_up_after: int, restored: str
) -> None:
    async def run(folder: Path) -> None:
        node = Node(folder)
        await node.start()
        for index, (lane, name) in enumerate(events):
            if index == backed_up_after:
                await node.stop()
                shutil.copy(folder / f"{restored}.db", folder / "backup")
                await node.start()
            for _ in range(3):
                await node.emit(lane, name)
            await node.follow()
        await node.stop()
        _restore(folder, restored)
        await node.start()
        try:
            await node.emit("ledger", "after")
            await node.follow()
            for lane in KINDS:
                seen = await node.effects(lane)
                assert seen == sorted(set(seen))
            assert (await node.effects("ledger"))[-1] == node.at
            assert await node.effects("ledger") == node.written["ledger"]
            assert await node.stock.read(lambda tx: len(tx.execute("select 1 from forebay_held"))) == 0
            await _all_confirmed(node)
        finally:
            await node.stop()

    with TemporaryDirectory() as name:
        asyncio.run(run(Path(name)))


async def test_o3_more_drops_than_a_page_says_are_told_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "DROPS", 2)
    node = Node(tmp_path)
    await node.start()
    try:
        for at in range(9):
            await node.emit("state", f"door-{at % 2}" if at % 2 else f"window-{at}")

        def lose(tx: UnitOfWork) -> None:
            for sequence in (1, 3, 5, 7):
                pushed_out = "epoch = (select max(id) from forebay_epoch) and sequence = :at"
                rows = tx.execute(f"select epoch, sequence, bytes from forebay_outbox where {pushed_out}", at=sequence)
                _drop(tx, tx.execute("select id from forebay_origin where lane = 'state'")[0]["id"], rows)

        await node.till.write(lose)
        while await node.follower.take_next():
            pass
        effects = await node.stock.read(lambda tx: tx.execute("select at from effect order by id"))
        assert [row["at"] for row in effects] == [2, 4, 6, 8, 9]
        assert node.follower.totals.held == 0
    finally:
        await node.stop()
