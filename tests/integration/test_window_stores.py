"""Windows on every database that a service may have, with the timers of a running service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import core.coldwatch.app
from contracts.coldchain import FridgeRead
from forebay import Event, Lane, Service, UnitOfWork
from forebay.clock import wall_milliseconds
from forebay.clock_offsets import ClockOffsets
from forebay.delivery import Delivery
from forebay.intake import take_all
from forebay.marks import late_events
from forebay.outbox import Outbox
from forebay.panes import open_windows
from forebay.postgres import PostgresStore
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.testing.waiting import until
from forebay.timers import Timers
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore
from forebay.window import Late, Result, Session, Tumbling
from tests.integration.arrivals import ENGINE, Stream
from tests.integration.rig import rows

RESULTS = """
create table result (key text not null, opens bigint not null, closes bigint not null, events bigint not null,
    revision bigint not null, primary key (key, opens));
create table too_late (number bigint not null);
"""


class Counted(Event, service="probe", kind="counted", lane="telemetry", key="probe"):
    probe: str
    number: int


class Count(msgspec.Struct):
    n: int = 0


def sessions_of_all_nodes() -> Service:
    service = Service("probes")

    @service.window(Counted, Session(10), state=Count, lateness=30, nodes="together", idle="100ms")
    def burst(count: Count, _: Counted) -> Count:
        return Count(count.n + 1)

    @burst.merge
    def both(left: Count, right: Count) -> Count:
        return Count(left.n + right.n)

    @burst.closed
    def write(tx: UnitOfWork, result: Result[Count]) -> None:
        for gone in result.replaces:
            tx.execute(
                "delete from result where key = :key and opens = :opens", key=result.key, opens=seconds(gone.opens)
            )
        tx.execute(
            "insert into result (key, opens, closes, events, revision)"
            " values (:key, :opens, :closes, :events, :revision)",
            key=result.key,
            opens=seconds(result.opens),
            closes=seconds(result.closes),
            events=result.events,
            revision=result.revision,
        )

    @burst.late
    def keep(tx: UnitOfWork, late: Late[Counted]) -> None:
        tx.execute("insert into too_late (number) values (:number)", number=late.event.number)

    return service


START = datetime.now(UTC) - timedelta(hours=1)


def seconds(time: datetime) -> int:
    return round((time - START).total_seconds())


class Opened:
    """A service's store, and what comes into it."""

    def __init__(self, service: Service, store: Any) -> None:
        self.service = service
        self.outbox = Outbox("core", service.name, service.lanes)
        self.store = UnitStore(store, self.outbox, service.configured({}))
        self._stream = Stream()
        self._last: dict[str, int] = {}

    async def take(self, deliveries: Sequence[Delivery]) -> None:
        await self.store.write(take_all, self.service.handlers, "EVENTS", "2026", deliveries, one_by_one=False)

    def deliver(self, event: Event, node: str, second: float) -> Delivery:
        self._last[node] = self._last.get(node, 0) + 1
        spec = event.spec
        return self._stream.event(
            self._last[node],
            msgspec.json.encode(event),
            epoch=f"{int(node[-1]):032x}",
            node=node,
            service=spec.service,
            kind=spec.kind,
            lane=spec.lane,
            key="key",
            time=START + timedelta(seconds=second),
        )


@pytest.fixture
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    stores: list[Any] = []

    async def open_on(database: str, service: Service, migrations: Path | str) -> Opened:
        if isinstance(migrations, str):
            folder = tmp_path / "migrations"
            folder.mkdir()
            (folder / "0001_results.sql").write_text(migrations)
            migrations = folder
        sets = [ENGINE, MigrationSet(service.name, migrations)]
        store: Any
        if database == "sqlite":
            store = await SqliteStore.open(tmp_path / "store.db", migrations=sets)
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            store = await PostgresStore.open(server.create_database(), service.name, migrations=sets)
        stores.append(store)
        found = Opened(service, store)
        await store.write(found.outbox.bind, "store-1")
        return found

    yield open_on
    for store in stores:
        await store.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_silent_node_is_left_behind_by_a_timer_and_late_events_join_sessions(
    opened: Any, database: str
) -> None:
    probes = await opened(database, sessions_of_all_nodes(), RESULTS)

    def counted(node: str, second: float, number: int = 0) -> Delivery:
        return probes.deliver(Counted(probe="a", number=number), node, second)  # type: ignore[no-any-return]

    heard_at = wall_milliseconds()
    probes.service.windows.wall = lambda: heard_at
    await probes.take([counted("node-1", 0), counted("node-2", 1), counted("node-1", 16)])
    probes.service.windows.wall = lambda: heard_at + 50
    await probes.take([counted("node-1", 41)])
    assert await rows(probes.store, "select * from result") == []
    timers = Timers(probes.service.timers, probes.store)
    async with anyio.create_task_group() as tasks:
        await tasks.start(timers.run)
        await until(lambda: has(probes, [("a", 0, 11, 2, 0), ("a", 16, 26, 1, 0)]), limit=30)
        tasks.cancel_scope.cancel()
    await probes.take([counted("node-2", 11), counted("node-2", 2, number=7), counted("node-2", 10.5)])
    assert await rows(probes.store, "select * from result order by opens") == [("a", 0, 11, 2, 0), ("a", 11, 26, 2, 1)]
    assert await rows(probes.store, "select number from too_late") == [(7,), (0,)]
    assert await probes.store.read(open_windows) == {"burst": 2}
    assert await probes.store.read(late_events) == {"burst": 2}


async def test_of_many_nodes_only_those_that_were_heard_are_written(opened: Any) -> None:
    counting = """
    create table written (node text not null);
    create trigger note_written after update on forebay_watermark_node
      begin insert into written (node) values (new.node); end;
    """
    probes = await opened("sqlite", sessions_of_all_nodes(), RESULTS + counting)

    def counted(node: str, second: float) -> Delivery:
        return probes.deliver(Counted(probe="a", number=0), node, second)  # type: ignore[no-any-return]

    heard_at = wall_milliseconds()
    probes.service.windows.wall = lambda: heard_at
    await probes.take([counted(f"node-{number}", 0) for number in range(20)])
    probes.service.windows.wall = lambda: heard_at + 1
    await probes.take([counted("node-7", 1), counted("node-7", 2)])
    assert await rows(probes.store, "select node from written") == [("node-7",)]


class Hour(Event, service="hours", kind="hour", lane="ledger", key="probe"):
    probe: str
    events: int


def hours_that_are_told() -> Service:
    service = Service("hours", lanes=[Lane("ledger")])

    @service.window(Counted, Tumbling(10), state=Count, lateness=30)
    def hour(count: Count, _: Counted) -> Count:
        return Count(count.n + 1)

    @hour.closed
    def tell(tx: UnitOfWork, result: Result[Count]) -> None:
        tx.emit(Hour(probe=result.key, events=result.events))

    return service


async def test_b5_a_result_that_late_events_change_has_a_cause_of_its_own(opened: Any) -> None:
    hours = await opened("sqlite", hours_that_are_told(), RESULTS)

    def counted(second: float) -> Delivery:
        return hours.deliver(Counted(probe="a", number=0), "node-1", second)  # type: ignore[no-any-return]

    aligned = -(START.timestamp() % 10)
    await hours.take([counted(aligned), counted(aligned + 11)])
    await hours.take([counted(aligned + 5)])
    told = await rows(hours.store, "select cause, body from forebay_outbox order by sequence")
    assert [msgspec.json.decode(body)["events"] for _, body in told] == [1, 2]
    assert len({cause for cause, _ in told}) == 2, "a receiver would take the second for the first, told again"


async def has(probes: Opened, wanted: list[tuple[object, ...]]) -> bool:
    return await rows(probes.store, "select * from result order by opens") == wanted


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_the_cold_watch_runs_on_it(opened: Any, database: str) -> None:
    migrations = Path(core.coldwatch.app.__file__).parent / "migrations"
    watch = await opened(database, core.coldwatch.app.coldwatch, migrations)
    await ClockOffsets(watch.store).told("node-1", 0.2)
    warm = [
        watch.deliver(FridgeRead(fridge="dairy", milli_degrees=9_000), "node-1", 60 * minute) for minute in range(30)
    ]
    cold = watch.deliver(FridgeRead(fridge="dairy", milli_degrees=4_000), "node-1", 60 * 30)
    end = watch.deliver(FridgeRead(fridge="dairy", milli_degrees=4_000), "node-1", 60 * 32)
    late = watch.deliver(FridgeRead(fridge="dairy", milli_degrees=4_000), "node-1", 60 * 10)
    await watch.take(warm[:16])
    await watch.take([*warm[16:], cold, end])
    await watch.take([late, *warm[3:5]])

    def both(tx: Transaction) -> tuple[list[Any], list[Any]]:
        return core.coldwatch.app.alerts(tx, 10), core.coldwatch.app.fridges(tx)

    alerts, fridges = await watch.store.read(both)
    assert [round((each.until - each.since).total_seconds() / 60) for each in alerts] == [19]
    assert [(each.fridge, each.coldest, each.warm_since, each.late) for each in fridges] == [("dairy", 4_000, None, 0)]
    assert len(await rows(watch.store, "select cause from forebay_outbox")) == 1
