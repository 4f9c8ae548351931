"""Read models that are rebuilt from the archive beside the one in use (rule F3), over a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import anyio
import pytest

from core.archive.app import archive
from forebay import Lane, Message, Service, UnitOfWork, rebuilding
from forebay.envelope import encode_headers
from forebay.errors import ConfigurationError, LinkError
from forebay.handlers import Handlers
from forebay.identity import Origin, Place
from forebay.intents import CloseHole, Discard, RebuildProjection, Retry, StopRebuild
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.outbox import Outbox
from forebay.projection import Effects, ask, asked, declare, effects
from forebay.replaying import Step, begin, load, plan, replay
from forebay.running import RunningService
from forebay.sqlite.beside import FileBeside, path_beside
from forebay.testing.nats_server import NatsServer
from forebay.timers import Timer, set_timer
from forebay.unit_of_work import UnitStore
from tests.integration.arrivals import ENGINE, own
from tests.integration.rig import (
    NODE,
    DoorOpened,
    connected,
    door,
    eventually,
    open_doors,
    rows,
    serving,
    until,
)
from tests.stores import on_postgres, open_store, written_for

ROOT = Path(__file__).parents[2]
ARCHIVE_MIGRATIONS = ROOT / "core/archive/migrations"
OLD = """
create table note (id integer primary key autoincrement, node text not null, number integer not null);
create table total (node text not null primary key, openings integer not null, numbers integer not null);
"""
NEW = """
create table door_total (door text not null primary key, openings integer not null);
"""
BODY = b'{"number": %d, "door": "front"}'


def audit(version: int | None, broken: set[int] = frozenset(), **options: Any) -> Service:  # type: ignore[assignment]
    """Declare a read model; from version 2 on it has totals per door as well."""
    service = Service("audit", projection=version, **options)

    @service.on(DoorOpened, batch=True)
    def add_up(tx: UnitOfWork, events: list[DoorOpened], messages: list[Message]) -> None:
        for event, message in zip(events, messages, strict=True):
            if event.number in broken:
                raise ValueError(f"{event.number} is broken")
            params = {"node": message.node, "number": event.number}
            tx.execute("insert into note (node, number) values (:node, :number)", **params)
            tx.execute(
                "insert into total (node, openings, numbers) values (:node, 1, :number) on conflict (node)"
                " do update set openings = total.openings + 1, numbers = total.numbers + excluded.numbers",
                **params,
            )
            if version is not None and version >= 2:
                tx.execute(
                    "insert into door_total (door, openings) values (:door, 1) on conflict (door)"
                    " do update set openings = door_total.openings + 1",
                    door=event.door,
                )

    return service


class Core(NamedTuple):
    archive: RunningService
    audit: RunningService
    connection: Connection

    async def notes(self, node: str = NODE) -> list[int]:
        """What took effect of a node, in order."""
        return [
            row[0] for row in await rows(self.audit.store, f"select number from note where node = '{node}' order by id")
        ]

    async def ask(self, intent: RebuildProjection | StopRebuild | Discard | Retry | CloseHole) -> str:
        assert self.audit.intents is not None
        return await self.audit.intents.execute(intent)

    async def projection(self) -> tuple[Any, ...]:
        """Version in use, and how many events it was rebuilt from."""
        return (await rows(self.audit.store, "select version, replayed from forebay_projection"))[0]

    async def rebuilt(self, **options: bool) -> None:
        """Rebuild, and wait until it has ended."""
        assert await self.ask(RebuildProjection(**options)) in ("the rebuild begins", "the rebuild goes on")
        await self.ended()

    async def ended(self) -> None:
        async def over() -> bool:
            return not await rows(self.audit.store, "select 1 as x from forebay_rebuild")

        await eventually(over, 30)

    async def stands(self) -> tuple[str, str]:
        """Wait until the rebuild stands; return its state and why."""

        async def standing() -> bool:
            return bool(await rows(self.audit.store, "select 1 as x from forebay_rebuild where state <> 'running'"))

        await eventually(standing, 30)
        state, said = (await rows(self.audit.store, "select state, said from forebay_rebuild"))[0]
        return state, said

    async def archived(self, count: int) -> None:
        async def there() -> bool:
            return await rows(self.archive.store, "select count(*) as n from archived") == [(count,)]

        await eventually(there)

    async def publish(self, *messages: Message) -> None:
        """Publish as a node or a foreign producer does."""
        publisher = Publisher(self.connection, "EVENTS")
        await publisher.start()
        for message in messages:
            subject = f"evt.{message.node}.{message.service}.{message.kind}"
            await publisher.publish([Outgoing(subject, encode_headers(message), message.body)])
        await publisher.stop()


@asynccontextmanager
async def core(server: NatsServer, folder: Path, declared: Service) -> AsyncIterator[Core]:
    """Run the archive and a read model in one process, on one connection."""
    migrations = folder / "audit-migrations"
    migrations.mkdir(exist_ok=True)
    if declared.projection != 1 and declared.projection is not None:
        for ending, text in written_for(NEW).items():
            (migrations / f"0002_doors.{ending}").write_text(text)
    async with connected(server.url, node="core") as connection:
        specs = [consumer_spec("audit", ("door",)), consumer_spec("archive", ("*",))]

        async def request(subject: str, body: bytes) -> bytes:
            return (await connection.request(subject, body, timeout=5)).body

        await apply_topology(request, desired(None, derived=specs))
        async with (
            serving(archive, connection, folder, node="core", schema=ARCHIVE_MIGRATIONS) as kept,
            serving(declared, connection, folder, node="core", schema=OLD) as service,
        ):
            for each in (kept, service):
                consumer = each.consumer
                assert consumer is not None
                await until(lambda consumer=consumer: consumer.reading)  # type: ignore[misc]
            yield Core(kept, service, connection)


@asynccontextmanager
async def house(server: NatsServer, folder: Path) -> AsyncIterator[Callable[[int, int], Any]]:
    """Run an edge node; yields what opens its doors, numbered from first to last."""
    async with (
        connected(server.url, node=NODE) as connection,
        serving(door(), connection, folder) as service,
    ):

        async def opened(first: int, last: int) -> None:
            await service.store.write(open_doors, first, last)

        yield opened


def event(epoch: str, sequence: int, number: int, *, prev: Place | None = None, cause: str | None = None) -> Message:
    kind, time = DoorOpened.spec, own(Place(epoch, sequence)).time
    return own(
        Place(epoch, sequence),
        BODY % number,
        node=NODE,
        service=kind.service,
        kind=kind.kind,
        type=kind.type,
        prev=prev,
        cause=cause,
        time=time,
        key=f"door-{number}",
    )


def foreign(message_id: str, number: int) -> Message:
    return own(
        Place("0" * 32, 1),
        BODY % number,
        node=NODE,
        service="door",
        kind="door-opened",
        type="door.door-opened.v1",
        lane="",
        place=None,
        message_id=message_id,
        id=message_id,
        hlc=0,
    )


ONE, TWO = f"{1:032x}", f"{2:032x}"


async def test_a_new_release_serves_on_and_its_read_model_is_rebuilt_while_events_arrive_f3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with core(nats_server, tmp_path, audit(None)) as old, house(nats_server, tmp_path) as opened:
        await opened(1, 700)
        await eventually(lambda: _has(old, 700))

    async with core(nats_server, tmp_path, audit(2)) as new, house(nats_server, tmp_path) as opened:
        assert await new.projection() == (1, 0)
        await opened(701, 710)
        await eventually(lambda: _has(new, 710))
        assert await rows(new.audit.store, "select openings from door_total") == [(10,)], "it keeps up the new tables"
        await new.archived(710)

        await new.ask(RebuildProjection())
        for first in range(711, 900, 20):
            await opened(first, first + 19)
        await new.ended()

        assert (await new.projection())[0] == 2
        await eventually(lambda: _has(new, 910))
        assert await new.notes() == list(range(1, 911)), "in order, nothing twice and nothing lost"
        assert await rows(new.audit.store, "select * from total") == [(NODE, 910, sum(range(911)))]
        assert await rows(new.audit.store, "select openings from door_total") == [(910,)]
        await eventually(lambda: _nothing_beside(new))
        # An older release keeps up its own tables alone: what it leaves is an old read model.
    async with core(nats_server, tmp_path, audit(1)) as old:
        assert await old.projection() == (1, (await old.projection())[1])


async def _nothing_beside(core: Core) -> bool:
    if on_postgres():
        return not await rows(core.audit.store, "select 1 as x from pg_namespace where nspname = 'audit-rebuild'")
    return not path_beside(core.audit.path).exists()


async def _has(core: Core, count: int) -> bool:
    return len(await core.notes()) == count


async def test_what_was_parked_discarded_or_never_came_is_not_brought_back_f3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    broken = {2, 5}
    async with core(nats_server, tmp_path, audit(1, broken)) as known:
        # 2 and 5 fail, 4 never comes, 7 is foreign, and 8 is emitted again after a restore.
        await known.publish(
            *(event(ONE, n, n) for n in (1, 2, 3, 5)),
            foreign("till-7", 7),
            event(TWO, 1, 8, prev=Place(ONE, 5), cause=f"{ONE}-1/door/0"),
            event(TWO, 2, 8, prev=Place(ONE, 5), cause=f"{ONE}-1/door/0"),
            event(TWO, 3, 9, prev=Place(ONE, 5)),
        )
        await eventually(lambda: _holds(known, ONE))
        hole = CloseHole(NODE, "door", ONE, 4, 4, "its disk burned")
        assert known.archive.intents is not None
        await known.archive.intents.execute(hole)
        await known.ask(hole)
        await eventually(lambda: _has(known, 5))
        (first, _) = await rows(known.audit.store, "select id from forebay_parked order by id")
        await known.ask(Discard(first[0], "nobody knows that door"))
        await known.archived(8)
        before = await known.notes()
        assert sorted(before) == [1, 3, 7, 8, 9]

        broken.clear()  # the handler is corrected, and what was discarded stays so
        await known.rebuilt()
        assert sorted(await known.notes()) in ([1, 3, 7, 8, 9], [1, 3, 5, 7, 8, 9])

        async def retried() -> bool:
            return sorted(await known.notes()) == [1, 3, 5, 7, 8, 9]

        await known.ask(Retry(first[0] + 1))
        await eventually(retried)
        await known.rebuilt()
        assert sorted(await known.notes()) == [1, 3, 5, 7, 8, 9], "5 took effect from the parking: it counts"
        assert (await known.projection())[1] == 7, "and the repeated cause is met, and acted on once"


async def _holds(core: Core, epoch: str) -> bool:
    found = await rows(core.audit.store, f"select held from forebay_inbox where epoch = '{epoch}'")
    kept = await rows(core.archive.store, f"select held from forebay_inbox where epoch = '{epoch}'")
    return found == kept == [("[[5,5]]",)]


async def test_events_that_are_not_in_the_archive_are_reported_before_anything_is_replaced_f3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        await known.publish(*(event(ONE, n, n) for n in range(1, 8)))
        await known.archived(7)
        await eventually(lambda: _has(known, 7))
        await known.archive.store.write(lambda tx: tx.execute("delete from archived where sequence in (3, 4, 6)"))

        await known.ask(RebuildProjection())
        state, said = await known.stands()
        assert state == "lacking"
        assert said.startswith(f"3 events that had an effect are not in the archive: {NODE}/door/ledger {ONE} 3-4")
        assert await known.notes() == list(range(1, 8)), "the tables in use stay"
        assert await rows(known.audit.store, "select first, last from forebay_rebuild_lacking order by first") == [
            (3, 4),
            (6, 6),
        ]

        await known.rebuilt(accept_lacking=True)
        assert await known.notes() == [1, 2, 5, 7]


async def test_an_event_that_the_new_handler_cannot_take_stops_the_rebuild_and_is_named_f3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    broken: set[int] = set()
    async with core(nats_server, tmp_path, audit(1, broken)) as known:
        await known.publish(*(event(ONE, n, n) for n in range(1, 8)))
        await known.archived(7)
        await eventually(lambda: _has(known, 7))
        broken.add(4)

        await known.ask(RebuildProjection())
        state, said = await known.stands()
        assert (state, f"{ONE}-4: ValueError: 4 is broken" in said) == ("failed", True), said
        assert await known.notes() == list(range(1, 8))

        broken.clear()
        await known.rebuilt()
        assert await known.notes() == list(range(1, 8))


async def test_one_rebuild_at_a_time_and_one_that_is_given_up_leaves_nothing_f3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    broken: set[int] = set()
    async with core(nats_server, tmp_path, audit(1, broken)) as known:
        assert await known.ask(StopRebuild()) == "no rebuild is under way"
        await known.publish(event(ONE, 1, 1))
        await known.archived(1)
        await eventually(lambda: _has(known, 1))
        broken.add(1)
        assert await known.ask(RebuildProjection()) == "the rebuild begins"
        assert (await known.ask(RebuildProjection())).startswith("a rebuild is under way already")
        await known.stands()
        assert on_postgres() or path_beside(known.audit.path).exists()
        assert (await known.ask(StopRebuild())).startswith("the rebuild is given up")
        await eventually(lambda: _nothing_beside(known))
        assert await known.notes() == [1]


async def test_what_is_not_archived_in_order_is_replayed_in_order_f3(nats_server: NatsServer, tmp_path: Path) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        await known.publish(*(event(ONE, n, n) for n in range(1, 7)), event(TWO, 1, 7, prev=Place(ONE, 6)))
        await known.archived(7)
        await eventually(lambda: _has(known, 7))
        await known.archive.store.write(  # 2 was archived last, and the second epoch before the end of the first
            lambda tx: [
                tx.execute("update archived set id = 100 where sequence = 2"),
                tx.execute(f"update archived set id = 50 where epoch = '{ONE}' and sequence = 6"),
            ]
        )

        await known.rebuilt()
        assert await known.notes() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("what", "declare"),
    [
        ("emits events", lambda: audit(1, lanes=[Lane("ledger")])),
        ("sets timers", lambda: _with_timer()),
        ("handles no event", lambda: Service("audit", projection=1)),
    ],
)
async def test_a_version_is_refused_where_the_tables_do_not_follow_from_events_alone(
    what: str, declare: Callable[[], Service], nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        with pytest.raises(ConfigurationError, match=what):
            RunningService(declare(), "core", tmp_path / "audit.db", connection, {})


def _with_timer() -> Service:
    service = audit(1)

    @service.on_timer("late")
    def remind(tx: UnitOfWork, timer: Timer) -> None:
        set_timer(tx, "late", timer.instance, "again", timer.deadline)

    return service


async def test_a_handler_that_emits_stops_the_rebuild(nats_server: NatsServer, tmp_path: Path) -> None:
    service, emits = Service("audit", projection=1), [False]

    class Noted(DoorOpened, service="audit", kind="noted"):
        pass

    @service.on(DoorOpened)
    def note(tx: UnitOfWork, opened: DoorOpened) -> None:
        tx.execute("insert into note (node, number) values (:node, :number)", node=NODE, number=opened.number)
        if emits[0]:
            tx.emit(Noted(number=opened.number))

    async with core(nats_server, tmp_path, service) as known:
        await known.publish(event(ONE, 1, 1))
        await known.archived(1)
        await eventually(lambda: _has(known, 1))
        emits[0] = True
        await known.ask(RebuildProjection())
        assert (await known.stands())[0] == "failed"
        assert await known.notes() == [1]


async def test_a_step_that_runs_twice_before_it_counts_notes_its_places_f3(tmp_path: Path) -> None:
    origin, epoch = Origin(NODE, "door", "ledger"), f"{7:032x}"
    store = await open_store(tmp_path / "audit.db", migrations=[ENGINE])
    units = UnitStore(store, Outbox("core", "audit", []))
    try:
        await units.write(begin, "rebuild", 2, "archive", 9, 0)
        planned = await units.write(plan, [Effects(origin, epoch, "none", [(1, 3)])])
        planned.saved()
        planned.take(NODE, "door", epoch, 1)
        step = Step(deliveries=[], before=0, position=1, end=9)

        def collided(work: UnitOfWork) -> None:
            replay(work, Handlers(), step, planned, one_by_one=False)
            raise ZeroDivisionError  # as where a transaction collides with another one, and runs again

        with pytest.raises(ZeroDivisionError):
            await units.write(collided)
        await units.write(replay, Handlers(), step, planned, one_by_one=False)

        assert [places for _, places in (await units.read(load)).left()] == [(2, 3)], "1 is not replayed again"
    finally:
        await store.close()


async def test_what_a_rebuild_left_is_removed_once_and_not_looked_for_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Beside(FileBeside):
        removed = 0

        async def remove(self) -> None:
            self.removed += 1
            await super().remove()

    class Store(UnitStore):
        looked = 0

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            self.looked += 1
            return await super().read(*args, **kwargs)

    monkeypatch.setattr(rebuilding, "INTERVAL", 0.001)
    opened = await open_store(tmp_path / "audit.db", [ENGINE])
    beside, nothing = Beside(tmp_path / "audit.db"), cast("Any", None)
    store = Store(opened, Outbox("core", "audit", []))
    path_beside(tmp_path / "audit.db").touch()
    parts = rebuilding.Rebuilding(1, nothing, Handlers(), store, beside, [ENGINE], nothing, nothing, nothing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parts.run)
        await until(lambda: store.looked > 5)
        tasks.cancel_scope.cancel()
    await opened.close()
    assert beside.removed == 1
    assert not path_beside(tmp_path / "audit.db").exists()


async def test_what_is_wanted_missing_or_parked_had_no_effect_f3(tmp_path: Path) -> None:
    def fill_inbox(tx: UnitOfWork) -> None:
        tx.execute(
            "insert into forebay_inbox (node, service, epoch, lane, prev, watermark, held, missing, wanted)"
            " values (:node, 'door', :epoch, 'ledger', 'none', 9, '[]', '[[2,3]]', '[[5,5]]')",
            node=NODE,
            epoch=f"{7:032x}",
        )

    opened = await open_store(tmp_path / "audit.db", [ENGINE])
    store = UnitStore(opened, Outbox("core", "audit", []))
    try:
        await store.write(fill_inbox)
        (had,) = await store.read(effects)
        assert had.places == [(1, 1), (4, 4), (6, 9)]
    finally:
        await opened.close()


async def test_nothing_is_replaced_where_another_process_has_taken_something_in_meanwhile_f3(tmp_path: Path) -> None:
    opened = await open_store(tmp_path / "audit.db", [ENGINE])
    nothing = cast("Any", None)
    store = UnitStore(opened, Outbox("core", "audit", []))
    parts = rebuilding.Rebuilding(
        1, nothing, Handlers(), store, FileBeside(tmp_path / "audit.db"), [ENGINE], nothing, nothing, nothing
    )
    planned = [Effects(Origin(NODE, "door", "ledger"), f"{7:032x}", "none", [(1, 3)])]
    building = cast("Any", SimpleNamespace(replayed=3, lacking=[], effects=planned))
    try:
        await store.write(declare, 1)
        await store.write(partial(ask, accept_lacking=False))
        rebuild = await store.read(asked)
        assert rebuild is not None
        with pytest.raises(LinkError, match="took effect"):
            await store.write(parts._swap, rebuild, building)
        assert await store.read(asked) == rebuild, "it goes on"
    finally:
        await opened.close()
