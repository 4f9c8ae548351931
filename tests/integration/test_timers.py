from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import StoreFullError
from forebay.event import Event
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.timers import (
    LONGEST_RETRY,
    TOGETHER,
    Timer,
    TimerHandler,
    Timers,
    cancel_timer,
    failing,
    fire_one,
    set_timer,
)
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.integration.rig import until

FIRE = """
import asyncio, sys
from pathlib import Path
from forebay.crash_points import arm
from tests.integration.test_timers import bell

async def fire() -> None:
    async with bell(Path(sys.argv[1])) as one:
        arm(sys.argv[2])
        await one.timers.fire_due()

asyncio.run(fire())
"""
"""Fires what is due in a process of its own, which is killed at a crash point."""

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Rang(Event, service="bell", kind="rang", key="instance"):
    instance: str
    name: str


def ring(tx: UnitOfWork, timer: Timer) -> None:
    tx.emit(Rang(instance=timer.instance, name=timer.name))


class Bell:
    """One service's store with timers, and a clock that stands where it was set."""

    def __init__(self, store: UnitStore, handler: TimerHandler) -> None:
        self.store = store
        self.now = START
        self.timers = Timers({"bell": handler}, store, lambda: self.now.timestamp())

    async def set(self, instance: str, seconds: float, name: str = "ring", owner: str = "bell") -> None:
        await self.store.write(set_timer, owner, instance, name, self.now + timedelta(seconds=seconds))

    async def rang(self) -> list[str]:
        rows = await self.store.read(lambda tx: tx.execute("select key from forebay_outbox order by epoch, sequence"))
        return [row["key"] for row in rows]

    async def causes(self) -> list[str]:
        rows = await self.store.read(lambda tx: tx.execute("select cause from forebay_outbox order by epoch, sequence"))
        return [row["cause"] for row in rows]


@asynccontextmanager
async def bell(path: Path, handler: TimerHandler = ring) -> AsyncIterator[Bell]:
    sqlite = await SqliteStore.open(path / "bell.db", migrations=[MigrationSet("forebay", files("forebay.migrations"))])
    outbox = Outbox("core", "bell", [Lane("ledger", budget="1MiB")])
    await sqlite.write(outbox.bind, "s1")
    try:
        yield Bell(UnitStore(sqlite, outbox), handler)
    finally:
        await sqlite.close()


async def test_a_timer_fires_once_when_its_deadline_has_come_and_not_before(tmp_path: Path) -> None:
    async with bell(tmp_path) as one:
        await one.set("a", 10)
        one.now += timedelta(seconds=9.999)
        assert await one.timers.fire_due() == 0
        one.now += timedelta(seconds=0.001)
        assert await one.timers.fire_due() == 1
        assert await one.timers.fire_due() == 0
        assert await one.rang() == ["a"]


async def test_a_timer_that_was_due_while_nothing_ran_fires_at_the_next_start(tmp_path: Path) -> None:
    async with bell(tmp_path) as before:
        await before.set("a", 10)
    async with bell(tmp_path) as after:
        after.now += timedelta(days=3)
        await after.timers.fire_due()
        assert await after.rang() == ["a"]


async def test_one_that_is_set_again_replaces_the_one_before_and_one_that_is_cancelled_never_fires(
    tmp_path: Path,
) -> None:
    async with bell(tmp_path) as one:
        await one.set("a", 10)
        await one.set("a", 20)
        await one.set("b", 10)
        assert await one.store.write(cancel_timer, "bell", "b", "ring")
        assert not await one.store.write(cancel_timer, "bell", "b", "ring")
        one.now += timedelta(seconds=15)
        assert await one.timers.fire_due() == 0
        one.now += timedelta(seconds=5)
        assert await one.timers.fire_due() == 1


async def test_one_that_is_set_anew_while_it_is_about_to_fire_waits_for_its_new_deadline(tmp_path: Path) -> None:
    async with bell(tmp_path) as one:
        await one.set("a", 10)
        due = Timer("bell", "a", "ring", one.now + timedelta(seconds=10))
        await one.set("a", 20)
        assert not await one.store.write(fire_one, ring, due)
        assert await one.rang() == []
        one.now += timedelta(seconds=20)
        assert await one.timers.fire_due() == 1


async def test_the_earliest_timers_fire_first_whosever_they_are(tmp_path: Path) -> None:
    async with bell(tmp_path) as one:
        timers = Timers({"bell": ring, "zither": ring}, one.store, lambda: one.now.timestamp())
        for number in range(TOGETHER):
            await one.set(f"b{number}", 10)
        await one.set("z", 5, owner="zither")
        one.now += timedelta(seconds=20)
        assert await timers.fire_due() == TOGETHER
        assert "z" in await one.rang()


async def test_one_that_failed_and_is_set_anew_has_all_its_attempts_before_it(tmp_path: Path) -> None:
    def fail(_: UnitOfWork, __: Timer) -> None:
        raise ZeroDivisionError

    async with bell(tmp_path, fail) as one:
        await one.set("a", 0)
        await one.timers.fire_due()
        assert await one.store.read(failing) == 1
        await one.set("a", 10)
        assert await one.store.read(failing) == 0


async def test_b5_what_a_timer_emits_names_instance_deadline_and_index_the_same_after_a_restore(
    tmp_path: Path,
) -> None:
    def twice(tx: UnitOfWork, timer: Timer) -> None:
        ring(tx, timer)
        ring(tx, timer)

    async with bell(tmp_path, twice) as one:
        await one.set("a", 1)
        one.now += timedelta(seconds=1)
        await one.timers.fire_due()
        milliseconds = round(one.now.timestamp() * 1000)
        assert await one.causes() == [f"bell:a:ring/{milliseconds}/{index}" for index in (0, 1)]


async def test_a_timer_whose_unit_is_undone_was_never_set(tmp_path: Path) -> None:
    def fail(tx: UnitOfWork) -> None:
        set_timer(tx, "bell", "a", "ring", START)
        raise LookupError

    async with bell(tmp_path) as one:
        with pytest.raises(LookupError):
            await one.store.write(fail)
        assert await one.timers.fire_due() == 0


async def test_a_handler_that_fails_leaves_nothing_and_is_tried_again_later_each_time(tmp_path: Path) -> None:
    broken = True

    def handler(tx: UnitOfWork, timer: Timer) -> None:
        ring(tx, timer)
        if broken and timer.instance == "bad":
            raise LookupError("no such bell")

    async with bell(tmp_path, handler) as one:
        await one.set("bad", 0)
        await one.set("good", 0)
        assert await one.timers.fire_due() == 2
        assert await one.rang() == ["good"]
        assert await one.store.read(failing) == 1
        waited = []
        for _ in range(12):
            before = one.now
            while not await one.timers.fire_due():
                one.now += timedelta(seconds=0.5)
            waited.append((one.now - before).total_seconds())
        assert waited[:4] == [1, 2, 4, 8]
        assert waited[-1] == LONGEST_RETRY
        assert one.timers.totals == (1, 13)
        broken = False
        one.now += timedelta(seconds=LONGEST_RETRY)
        await one.timers.fire_due()
        assert await one.rang() == ["good", "bad"]
        assert await one.store.read(failing) == 0


async def test_a_failing_database_spends_no_attempt(tmp_path: Path) -> None:
    failing_now = True

    def handler(tx: UnitOfWork, timer: Timer) -> None:
        if failing_now:
            raise StoreFullError("no room")
        ring(tx, timer)

    async with bell(tmp_path, handler) as one:
        await one.set("a", 0)
        with pytest.raises(StoreFullError):
            await one.timers.fire_due()
        assert await one.store.read(failing) == 0
        failing_now = False
        await one.timers.fire_due()
        assert await one.rang() == ["a"]


async def test_timers_of_an_owner_that_is_not_known_stay_and_hinder_nobody(tmp_path: Path) -> None:
    async with bell(tmp_path) as one:
        for number in range(TOGETHER + 1):
            await one.set(f"strange-{number}", -10, owner="gong")
        await one.set("a", 0)
        assert await one.timers.fire_due() == 1
        assert await one.rang() == ["a"]


@pytest.mark.parametrize("point", ["timer.taken", "timer.fired", "write.committing", "write.committed"])
async def test_a_timer_fires_once_whatever_line_the_process_dies_at(tmp_path: Path, point: str) -> None:
    async with bell(tmp_path) as before:
        await before.set("a", 0)
    died = await anyio.run_process([sys.executable, "-c", FIRE, str(tmp_path), point], check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    async with bell(tmp_path) as after:
        await after.timers.fire_due()
        assert await after.rang() == ["a"]


async def test_a_running_one_hears_of_an_earlier_deadline(tmp_path: Path) -> None:
    async with bell(tmp_path) as one:
        one.now = datetime.now(UTC)
        fired = anyio.Event()

        def handler(tx: UnitOfWork, timer: Timer) -> None:
            ring(tx, timer)

        timers = Timers({"bell": handler}, one.store)
        async with anyio.create_task_group() as tasks:
            await tasks.start(timers.run)
            await one.set("later", 3600)
            timers.wake()
            await one.set("now", 0)
            timers.wake()
            await until(lambda: timers.totals.fired == 1)
            fired.set()
            tasks.cancel_scope.cancel()
        assert await one.rang() == ["now"]


@pytest.mark.parametrize(
    ("instance", "deadline", "what"),
    [("a b", START, "instance 'a b'"), ("", START, "instance ''"), ("a", START.replace(tzinfo=None), "offset")],
)
async def test_what_cannot_be_a_timer_is_refused(tmp_path: Path, instance: str, deadline: datetime, what: str) -> None:
    async with bell(tmp_path) as one:
        with pytest.raises(ValueError, match=what):
            await one.store.write(set_timer, "bell", instance, "ring", deadline)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.sampled_from("abc"), st.integers(0, 20)),
            st.tuples(st.just("cancel"), st.sampled_from("abc"), st.just(0)),
            st.tuples(st.just("wait"), st.just(""), st.integers(0, 8)),
        ),
        max_size=30,
    )
)
async def test_timers_fire_as_a_list_of_deadlines_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    model: dict[str, datetime] = {}
    expected: list[str] = []

    async with bell(tmp_path_factory.mktemp("bell")) as one:
        for what, instance, seconds in steps:
            if what == "set":
                await one.set(instance, seconds)
                model[instance] = one.now + timedelta(seconds=seconds)
            elif what == "cancel":
                await one.store.write(cancel, instance)
                model.pop(instance, None)
            else:
                one.now += timedelta(seconds=seconds)
                due = sorted((deadline, name) for name, deadline in model.items() if deadline <= one.now)
                expected += [name for _, name in due]
                for _, name in due:
                    del model[name]
                await one.timers.fire_due()
                assert sorted(await one.rang()) == sorted(expected)


def cancel(tx: Transaction, instance: str) -> None:
    cancel_timer(tx, "bell", instance, "ring")
