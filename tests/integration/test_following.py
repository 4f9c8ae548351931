"""A service follows another of its node straight from its outbox: exactly once, in order, with no link at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forebay import Event, Lane, Message, Service, UnitOfWork
from forebay.errors import ConfigurationError, StoreError
from forebay.freeing import free
from forebay.identity import Place, parse_message_id
from forebay.intents import Discard, RemoveFollower, Retry
from forebay.losses import mend
from forebay.metrics import render
from forebay.running import RunningService
from forebay.taken import FAILURES_IN_A_ROW
from forebay.testing.nats_server import NatsServer
from forebay.withholding import withhold
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    Measured,
    apply,
    connected,
    door,
    eventually,
    measure,
    note,
    numbers,
    open_doors,
    rows,
    serving,
    until,
)
from tests.integration.together import followed_all, follower_of, together


class LampLit(Event, service="lamp", kind="lamp-lit", key="door"):
    number: int
    door: str


class Lamp:
    """A service that follows the door, notes what it sees, and emits; its handler fails where it is told to."""

    def __init__(self) -> None:
        self.failing: set[int] = set()
        self.service = Service("lamp", lanes=[Lane("ledger", budget="8MiB")])

        @self.service.follow(DoorOpened)
        def one(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
            note(tx, message.node, event.number)
            tx.emit(LampLit(number=event.number, door=event.door))
            if event.number in self.failing:
                raise ValueError("the bulb is broken")

        @self.service.follow(Measured, batch=True)
        def many(tx: UnitOfWork, events: list[Measured], messages: list[Message]) -> None:
            for event, message in zip(events, messages, strict=True):
                note(tx, message.node, MEASURED + event.number)


SCHEMAS = {"lamp": NOTES}
MEASURED = 1_000_000
"""Above it stand the notes of the other lane."""


async def noted(service: RunningService) -> list[int]:
    return [number for number in await numbers(service.store) if number < MEASURED]


async def measured(service: RunningService) -> list[int]:
    return [number - MEASURED for number in await numbers(service.store) if number >= MEASURED]


def place_of(message_id: str) -> Place:
    found = parse_message_id(message_id)
    assert found is not None
    return found.place


async def test_a_follower_has_every_event_of_every_lane_once_and_in_order_without_a_link(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        for first in range(1, 1500, 300):
            await running["door"].store.write(open_doors, first, first + 299)
            await running["door"].store.write(measure, first, first + 299)
        await followed_all(running["lamp"], 3000)
        assert await noted(running["lamp"]) == list(range(1, 1501))
        assert await measured(running["lamp"]) == list(range(1, 1501))
        assert follower_of(running["lamp"]).problem is None
        assert running["lamp"].notices() == running["door"].notices() == []


async def test_what_a_follower_emits_names_its_cause(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        ids = await running["door"].store.write(open_doors, 1, 2)
        await followed_all(running["lamp"], 2)
        assert await rows(running["lamp"].store, "select cause from forebay_outbox order by sequence") == [
            (f"{message_id}/lamp/0",) for message_id in ids
        ]


async def test_a_follower_goes_on_where_it_was_after_any_number_of_restarts(tmp_path: Path) -> None:
    for life in range(3):
        async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
            await running["door"].store.write(open_doors, life * 10 + 1, life * 10 + 10)
            await followed_all(running["lamp"], 10)
            assert await noted(running["lamp"]) == list(range(1, life * 10 + 11))
            assert follower_of(running["lamp"]).totals.duplicates == 0


async def test_what_was_written_while_the_follower_did_not_run_is_there_for_it_later(tmp_path: Path) -> None:
    async with together(tmp_path, door()) as running:
        await running["door"].store.write(open_doors, 1, 700)
    async with together(tmp_path, door()) as running:
        await running["door"].store.write(open_doors, 701, 1300)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await followed_all(running["lamp"], 1300)
        assert await noted(running["lamp"]) == list(range(1, 1301))


async def test_followers_of_followers_run_on_the_node(tmp_path: Path) -> None:
    meter = Service("meter")

    @meter.follow(LampLit)
    def count(tx: UnitOfWork, event: LampLit, message: Message) -> None:
        note(tx, message.node, event.number)

    schemas = {"lamp": NOTES, "meter": NOTES}
    async with together(tmp_path, meter, Lamp().service, door(), schemas=schemas) as running:
        await running["door"].store.write(open_doors, 1, 20)
        await followed_all(running["meter"], 20)
        assert await noted(running["meter"]) == list(range(1, 21))


# --- failures (F1, F2)


async def test_f1_a_failing_event_is_parked_with_its_key_and_retried_while_other_keys_go_on(tmp_path: Path) -> None:
    lamp = Lamp()
    lamp.failing = {2}

    def open_two(tx: UnitOfWork) -> None:
        for number, name in enumerate("aababa", start=1):
            tx.emit(DoorOpened(number=number, door=name))

    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_two)
        await until(lambda: follower_of(running["lamp"]).totals.parked == 3)
        await eventually(lambda: _has(running["lamp"], [1, 3, 5]))
        lamp.failing = set()
        assert running["lamp"].intents is not None
        [(head,)] = await rows(running["lamp"].store, "select min(id) from forebay_parked")
        await running["lamp"].intents.execute(Retry(head))
        await eventually(lambda: _has(running["lamp"], [1, 3, 5, 2, 4, 6]))
        assert await rows(running["lamp"].store, "select * from forebay_parked") == []


async def test_f1_a_parked_event_is_still_retried_after_a_restart_and_can_be_discarded(tmp_path: Path) -> None:
    lamp = Lamp()
    lamp.failing = {1}
    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 1, 2)
        await until(lambda: follower_of(running["lamp"]).totals.parked == 2)
    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        assert running["lamp"].intents is not None
        [(head,)] = await rows(running["lamp"].store, "select min(id) from forebay_parked")
        await running["lamp"].intents.execute(Discard(head, "nobody needs the light"))
        await eventually(lambda: _has(running["lamp"], [2]))


async def test_f2_ten_failures_in_a_row_stop_the_follower_and_the_process_says_so(tmp_path: Path) -> None:
    lamp = Lamp()
    lamp.failing = set(range(1, 100))

    def open_many(tx: UnitOfWork) -> None:
        for number in range(1, 40):
            tx.emit(DoorOpened(number=number, door=f"door-{number}"))

    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_many)
        await until(lambda: follower_of(running["lamp"]).suspended is not None)
        assert [notice for notice in running["lamp"].notices() if "does not follow door" in notice]
        assert running["lamp"].problems() == [], "the node accepts writes"
        assert follower_of(running["lamp"]).totals.parked == FAILURES_IN_A_ROW
        lamp.failing = set()
        await eventually(lambda: _count(running["lamp"], 39))
        assert running["lamp"].notices() == []
        assert sorted(await noted(running["lamp"])) == list(range(1, 40))


async def test_f1_a_service_with_two_readers_retries_each_ones_events_with_its_own_handlers(tmp_path: Path) -> None:
    lamp = Lamp()
    lamp.failing = {1}

    @lamp.service.on(Elsewhere)
    def elsewhere(_: UnitOfWork, __: Elsewhere) -> None:
        raise AssertionError("nothing of the stream comes here")

    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 1, 1)
        await until(lambda: follower_of(running["lamp"]).totals.parked == 1)
        consumer = running["lamp"].consumer
        assert consumer is not None
        assert consumer.committing.retries.until_next() is None
        await consumer.committing.retries.look()
        assert consumer.committing.retries.until_next() is None
        await follower_of(running["lamp"]).committing.retries.look()
        assert follower_of(running["lamp"]).committing.retries.until_next() is not None


class Elsewhere(Event, service="elsewhere", kind="happened"):
    number: int


# --- what is not there any more (O3, O4, B4)


async def test_o3_what_the_budget_pushed_out_before_the_follower_had_it_is_a_drop_on_record(tmp_path: Path) -> None:
    dropping = Service("door", lanes=[Lane("ledger"), Lane("telemetry", budget="64KiB", when_full="drop-oldest")])
    async with together(tmp_path, dropping) as running:
        await running["door"].store.write(measure, 1, 1000)
        [(dropped,)] = await rows(running["door"].store, "select dropped from forebay_origin where lane = 'telemetry'")
        assert 0 < dropped < 1000
    async with together(tmp_path, dropping, Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 1, 1)
        await followed_all(running["lamp"], 1000 - dropped + 1)
        assert await measured(running["lamp"]) == list(range(dropped + 1, 1001))
        gaps = await rows(running["lamp"].store, "select lane, kind, first, last from forebay_gap")
        assert gaps == [("telemetry", "drop", 1, dropped)]


async def test_b4_a_follower_added_later_gets_what_is_there_and_a_gap_on_record_for_what_is_not(
    tmp_path: Path,
) -> None:
    async with together(tmp_path, door()) as running:
        ids = await running["door"].store.write(open_doors, 1, 30)
    async with together(tmp_path, door()) as running:
        later = await running["door"].store.write(open_doors, 31, 60)
        await running["door"].store.write(free, "ledger", ids[0][:32], 30, limit=100)
        await running["door"].store.write(free, "ledger", later[0][:32], 10, limit=100)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 61, 70)
        await followed_all(running["lamp"], 30)
        assert await noted(running["lamp"]) == list(range(41, 71))
        gaps = await rows(running["lamp"].store, "select epoch, kind, first, last from forebay_gap order by id")
        assert gaps == [(ids[0][:32], "gap", 1, 30), (later[0][:32], "gap", 1, 10)]


async def test_b4_where_everything_is_freed_already_all_of_it_is_a_gap_on_record(tmp_path: Path) -> None:
    async with together(tmp_path, door()) as running:
        ids = await running["door"].store.write(open_doors, 1, 30)
        await running["door"].store.write(free, "ledger", ids[0][:32], 30, limit=100)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await until(lambda: follower_of(running["lamp"]).totals.missing == 30)
        await running["door"].store.write(open_doors, 31, 31)
        await followed_all(running["lamp"], 1)
        assert await rows(running["lamp"].store, "select first, last from forebay_gap") == [(1, 30)]


async def test_o4_an_event_that_the_broker_refuses_is_not_withheld_from_the_follower(tmp_path: Path) -> None:
    async with together(tmp_path, door()) as running:
        ids = await running["door"].store.write(open_doors, 1, 5)
        await running["door"].store.write(withhold, {place_of(ids[2]): "too large"}, 0)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await followed_all(running["lamp"], 5)
        assert await noted(running["lamp"]) == [1, 2, 3, 4, 5]


# --- stores that were restored or replaced


async def test_a_followed_store_that_was_restored_goes_on_in_a_new_epoch(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 1, 10)
        await followed_all(running["lamp"], 10)
    shutil.copy(tmp_path / "door.db", tmp_path / "backup")
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 11, 20)
        await followed_all(running["lamp"], 10)
    _replace(tmp_path, "door", tmp_path / "backup")
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 21, 30)
        await followed_all(running["lamp"], 10)
        assert await noted(running["lamp"]) == list(range(1, 31))
        assert await rows(running["lamp"].store, "select * from forebay_held") == []


async def test_b5_what_a_restored_store_emits_again_has_no_second_effect(tmp_path: Path) -> None:
    meter = Service("meter")

    @meter.follow(LampLit)
    def count(tx: UnitOfWork, event: LampLit, message: Message) -> None:
        note(tx, message.node, event.number)

    schemas = {"lamp": NOTES, "meter": NOTES}
    declared = (door(), Lamp().service, meter)
    async with together(tmp_path, *declared, schemas=schemas) as running:
        await running["door"].store.write(open_doors, 1, 5)
        await followed_all(running["meter"], 5)
    shutil.copy(tmp_path / "lamp.db", tmp_path / "backup")
    async with together(tmp_path, *declared, schemas=schemas) as running:
        await running["door"].store.write(open_doors, 6, 10)
        await followed_all(running["meter"], 5)
    _replace(tmp_path, "lamp", tmp_path / "backup")
    async with together(tmp_path, *declared, schemas=schemas) as running:
        await running["door"].store.write(open_doors, 11, 12)
        await followed_all(running["meter"], 2)
        assert await noted(running["lamp"]) == list(range(1, 13)), "it handles again what it forgot"
        assert await noted(running["meter"]) == list(range(1, 13))
        assert follower_of(running["meter"]).totals.duplicates == 5


async def test_a_replaced_follower_begins_with_what_is_there(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        ids = await running["door"].store.write(open_doors, 1, 10)
        await followed_all(running["lamp"], 10)
        await running["door"].store.write(free, "ledger", ids[0][:32], 4, limit=100)
    _replace(tmp_path, "lamp", None)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await followed_all(running["lamp"], 6)
        assert await noted(running["lamp"]) == [5, 6, 7, 8, 9, 10]
        assert await rows(running["lamp"].store, "select first, last from forebay_gap") == [(1, 4)]


async def test_b4_an_event_that_turns_up_inside_a_gap_is_parked_alone_and_confirmed(tmp_path: Path) -> None:
    async with together(tmp_path, door()) as running:
        ids = await running["door"].store.write(open_doors, 1, 10)
    shutil.copy(tmp_path / "door.db", tmp_path / "backup")
    async with together(tmp_path, door()) as running:
        await running["door"].store.write(free, "ledger", ids[0][:32], 4, limit=100)
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await followed_all(running["lamp"], 6)
    _replace(tmp_path, "door", tmp_path / "backup")
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await until(lambda: follower_of(running["lamp"]).totals.parked == 4)
        await running["door"].store.write(open_doors, 11, 11)
        await followed_all(running["lamp"], 1)
        assert await noted(running["lamp"]) == [5, 6, 7, 8, 9, 10, 11]
        assert await rows(running["lamp"].store, "select distinct reason, alone from forebay_parked") == [("late", 1)]
        await eventually(lambda: _confirmed(running["door"], ids[0]))


async def test_what_a_damaged_disk_took_of_the_followed_store_is_a_drop_on_record(tmp_path: Path) -> None:
    async with together(tmp_path, door()) as running:
        await running["door"].store.write(open_doors, 1, 10)
        take = "delete from forebay_outbox where sequence between 4 and 6"
        await running["door"].store.write(lambda tx: tx.execute(take))
        assert len(await running["door"].store.write(mend)) == 1
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        await running["door"].store.write(open_doors, 11, 12)
        await followed_all(running["lamp"], 9)
        assert await noted(running["lamp"]) == [1, 2, 3, 7, 8, 9, 10, 11, 12]
        assert await rows(running["lamp"].store, "select kind, first, last from forebay_gap") == [("drop", 4, 6)]


async def test_a_follower_whose_store_fails_says_so_and_goes_on_by_itself(tmp_path: Path) -> None:
    lamp = Lamp()
    broken = True

    @lamp.service.follow(Closed)
    def closed(tx: UnitOfWork, event: Closed, message: Message) -> None:
        if broken:
            raise StoreError("the disk does not answer")
        note(tx, message.node, event.number)

    async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS) as running:
        await running["door"].store.write(lambda tx: tx.emit(Closed(number=1)))
        await until(lambda: follower_of(running["lamp"]).problem == "the disk does not answer")
        assert running["lamp"].notices() == ["lamp: does not follow door: the disk does not answer"]
        broken = False
        await followed_all(running["lamp"], 1)
        assert await rows(running["lamp"].store, "select * from forebay_parked") == []


class Closed(Event, service="door", kind="closed", key="door"):
    number: int
    door: str = "front"


# --- confirmation (O1, C1)


async def test_o1_nothing_is_freed_before_the_followers_have_it_also_in_a_process_without_them(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url, node=NODE) as edge, connected(nats_server.url, node="core") as core:
        await apply(core, "audit")
        audit = Service("audit")

        @audit.on(DoorOpened)
        def one(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
            note(tx, message.node, event.number)

        lamp = Lamp()
        async with serving(audit, core, tmp_path / "core", node="core", schema=NOTES) as auditing:
            async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS, connection=edge, grace=0) as running:
                await running["door"].store.write(open_doors, 1, 5)
                await eventually(lambda: _freed(running["door"], 5))
            async with together(tmp_path, door(), connection=edge, grace=0) as running:
                ids = await running["door"].store.write(open_doors, 6, 10)
                await eventually(lambda: _confirmed(running["door"], ids[-1], "audit"))
                assert running["door"].confirming is not None
                await running["door"].confirming.ask()
                await running["door"].confirming.ask()
                assert await running["door"].confirming.free() == 0
                assert [each for each in running["door"].notices() if "keeps its events for lamp" in each]
            async with together(tmp_path, door(), lamp.service, schemas=SCHEMAS, connection=edge, grace=0) as running:
                await eventually(lambda: _freed(running["door"], 10))
                assert await noted(running["lamp"]) == list(range(1, 11))
            async with together(tmp_path, door(), connection=edge, grace=0) as running:
                await running["door"].store.write(open_doors, 11, 15)
                assert running["door"].intents is not None
                said = await running["door"].intents.execute(RemoveFollower("lamp", "the lamp was sold"))
                assert "removed" in said
                await eventually(lambda: _freed(running["door"], 15))
                assert running["door"].notices() == []
            assert await numbers(auditing.store) == list(range(1, 16))


async def test_c1_a_follower_is_listed_as_a_consumer_wherever_consumers_are(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        (message_id,) = await running["door"].store.write(open_doors, 1, 1)
        await eventually(lambda: _confirmed(running["door"], message_id))
        found = await running["door"].find(message_id)
        assert found is not None
        assert found.state == "stored", "what the core needs is not known: a follower's word alone is not enough (S3)"
        text = await render(list(running.values()), connected=False)
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert _value(samples, "forebay_outbox_events", consumer="lamp@node", lane="ledger", state="confirmed") == 1
        assert _value(samples, "forebay_follower_reading", service="lamp") == 1
        assert _value(samples, "forebay_consumer_events_total", service="lamp", outcome="applied") == 1
        books = "select consumer, confirmed from forebay_book where confirmed > 0"
        await eventually(lambda: _rows_are(running["door"], books, [("lamp@node", 1)]))


async def test_a_follower_that_runs_cannot_be_removed(tmp_path: Path) -> None:
    async with together(tmp_path, door(), Lamp().service, schemas=SCHEMAS) as running:
        assert running["door"].confirming is not None
        remove = running["door"].confirming.followers.remove
        said = await running["door"].store.write(remove, "lamp", "no reason")
        assert said == "lamp follows door in this process: start it without lamp first"


# --- declarations that cannot be


async def test_to_follow_a_service_that_is_not_in_the_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="follows 'door', which does not run in this process"):
        async with together(tmp_path, Lamp().service, schemas=SCHEMAS):
            pass


async def test_to_follow_a_service_that_emits_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no lanes"):
        async with together(tmp_path, Service("door"), Lamp().service, schemas=SCHEMAS):
            pass


@pytest.mark.parametrize("first", ["on", "follow"])
def test_a_services_events_are_handled_from_the_stream_or_from_its_outbox_and_not_both(first: str) -> None:
    lamp = Service("lamp")
    second = {"on": lamp.follow, "follow": lamp.on}[first]

    def handle(tx: UnitOfWork, event: Any) -> None: ...

    getattr(lamp, first)(DoorOpened)(handle)
    with pytest.raises(ConfigurationError, match="from the stream and follows them as well"):
        second(Measured)(handle)


def test_a_service_cannot_follow_itself() -> None:
    with pytest.raises(ConfigurationError, match="cannot follow its own"):
        Service("door").follow(DoorOpened)(lambda _, __: None)


def _value(samples: list[Any], name: str, **labels: str) -> float:
    (found,) = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    return float(found)


async def _has(service: RunningService, expected: list[int]) -> bool:
    return await noted(service) == expected


async def _count(service: RunningService, count: int) -> bool:
    return len(await noted(service)) == count


async def _freed(service: RunningService, count: int) -> bool:
    return await rows(service.store, "select confirmed from forebay_origin where lane = 'ledger'") == [(count,)]


async def _rows_are(service: RunningService, sql: str, expected: list[tuple[Any, ...]]) -> bool:
    return await rows(service.store, sql) == expected


async def _confirmed(service: RunningService, message_id: str, consumer: str = "lamp@node") -> bool:
    found = await service.find(message_id)
    return found is not None and consumer in found.consumers and found.consumers[consumer].confirmed


def _replace(folder: Path, service: str, backup: Path | None) -> None:
    """Put a backup in the place of a database, or nothing."""
    for path in folder.glob(f"{service}.db*"):
        path.unlink()
    if backup is not None:
        shutil.copy(backup, folder / f"{service}.db")
