"""The consumer against a real broker: failing handlers and stores, positions, claims, restarts."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from forebay import Event, Message, Service, UnitOfWork
from forebay.consumer import Consumer
from forebay.errors import StoreError
from forebay.identity import partition_of
from forebay.jetstream.connection import Connection
from forebay.jetstream.outcomes import Stored
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.streams import api_request, consumer_info, stream_state
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.transaction import Transaction
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    Measured,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    rows,
    serving,
    until,
)

PARTITION = partition_of(NODE)
OTHER = next(f"house-{n}" for n in range(2, 50) if partition_of(f"house-{n}") != PARTITION)


class Audit:
    """A consuming service whose handler fails while it is told to."""

    def __init__(self, *, batch: bool = False) -> None:
        self.failing: Callable[[str, int], Exception | None] = lambda _node, _number: None
        self.busy: int | None = None
        self.go_on = threading.Event()
        self.attempts: list[int] = []
        self.sizes: list[int] = []
        self.service = Service("audit")

        def one(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
            self.attempts.append(event.number)
            if event.number == self.busy:
                assert self.go_on.wait(30)
            note(tx, message.node, event.number)
            if error := self.failing(message.node, event.number):
                raise error

        def many(tx: UnitOfWork, events: Sequence[DoorOpened], messages: Sequence[Message]) -> None:
            self.sizes.append(len(events))
            for event, message in zip(events, messages, strict=True):
                one(tx, event, message)

        if batch:
            self.service.on(DoorOpened, batch=True)(many)
        else:
            self.service.on(DoorOpened)(one)

    def fail_on(self, number: int, error: Exception | None = None, *, node: str = NODE) -> None:
        raised = error or ValueError("the shelf is full\nof jam")
        self.failing = lambda at, found: raised if (at, found) == (node, number) else None

    def busy_on(self, number: int) -> None:
        """Stay in the handler of an event until ``go_on`` is set."""
        self.busy = number

    def work_again(self) -> None:
        self.failing = lambda _node, _number: None


def consumer_of(service: RunningService) -> Consumer:
    assert service.consumer is not None
    return service.consumer


@asynccontextmanager
async def reading(
    audit: Audit | Service, connection: Connection, folder: Path, **options: Any
) -> AsyncIterator[RunningService]:
    declared = audit if isinstance(audit, Service) else audit.service
    async with serving(declared, connection, folder, node="core", schema=NOTES, **options) as service:
        yield service


@asynccontextmanager
async def two_sides(server: NatsServer, folder: Path, audit: Audit) -> AsyncIterator[tuple[Connection, RunningService]]:
    """Run the edge service of a node; yield a connection for the core, with everything applied."""
    async with connected(server.url, node=NODE) as edge, connected(server.url, node="core") as core:
        await apply(core, audit.service.name)
        async with serving(door(), edge, folder) as emitting:
            yield core, emitting


async def settled(service: RunningService, expected: list[int], limit: float = 20) -> None:
    """Wait until at least as many effects are there as expected, and compare them all."""

    async def all_there() -> bool:
        return len(await numbers(service.store)) >= len(expected)

    try:
        await eventually(all_there, limit)
    except TimeoutError:
        found = await numbers(service.store)
        raise AssertionError(f"{found}, expected {expected}; {service.problems()}") from None
    assert await numbers(service.store) == expected


async def _has(service: RunningService, node: str, expected: list[int]) -> bool:
    return await numbers(service.store, node) == expected


async def parked(service: RunningService) -> list[tuple[str, str]]:
    """Return reason and message id of what is parked and alive, in order."""
    found = await rows(
        service.store, "select reason, message_id from forebay_parked where discarded_at is null order by id"
    )
    return [(reason, message_id) for reason, message_id in found]


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_a_handler_that_breaks_a_deferred_constraint_has_its_event_parked_like_any_other_f1(
    nats_server: NatsServer, tmp_path: Path, *, batch: bool
) -> None:
    """Only COMMIT finds it, and does not say whose it is."""
    audit = Audit(batch=batch)
    schema = (
        "create table known (number integer primary key);"
        "create table note (id integer primary key, node text not null,"
        " number integer not null references known (number) deferrable initially deferred);"
    )
    async with (
        two_sides(nats_server, tmp_path, audit) as (core, emitting),
        serving(audit.service, core, tmp_path, node="core", schema=schema) as service,
    ):

        def know(tx: Transaction, first: int, last: int) -> None:
            tx.executemany("insert into known values (:n)", [{"n": n} for n in range(first, last + 1)])

        await service.store.write(know, 1, 3)
        ids = await emitting.store.write(open_doors, 1, 6)
        await until(lambda: consumer_of(service).totals.parked == 3)
        assert await parked(service) == [("handler", ids[3]), ("behind", ids[4]), ("behind", ids[5])]
        await settled(service, [1, 2, 3])
        await service.store.write(know, 4, 6)
        await settled(service, [1, 2, 3, 4, 5, 6])
        await until(lambda: not service.problems())


async def test_a_store_that_fails_pauses_the_consumer_and_parks_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    audit.fail_on(3, StoreError("the disk is gone"))
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting), reading(audit, core, tmp_path) as service:
        await emitting.store.write(open_doors, 1, 5)
        await until(lambda: any("the disk is gone" in each for each in service.problems()))
        audit.work_again()
        await settled(service, [1, 2, 3, 4, 5])
        assert await rows(service.store, "select count(*) from forebay_parked") == [(0,)]
        assert not service.problems()


async def reset(connection: Connection, sequence: int) -> None:
    await api_request(connection, f"CONSUMER.RESET.EVENTS.audit-{PARTITION}", {"seq": sequence})


async def test_a_durable_that_is_moved_from_outside_is_set_back_to_the_databases_position(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting), reading(audit, core, tmp_path) as service:
        await emitting.store.write(open_doors, 1, 10)
        await settled(service, list(range(1, 11)))
        await reset(core, 3)  # back: all of it is delivered once more
        await emitting.store.write(open_doors, 11, 20)
        await settled(service, list(range(1, 21)))
        await until(lambda: consumer_of(service).reading)
        audit.busy_on(21)
        await emitting.store.write(open_doors, 21, 30)
        await until(lambda: 21 in audit.attempts)
        await reset(core, 29)  # forward, beyond what has no effect yet
        audit.go_on.set()
        await emitting.store.write(open_doors, 31, 40)
        await settled(service, list(range(1, 41)))
        await until(lambda: not service.problems())


async def test_a_durable_that_was_moved_while_nobody_read_is_set_to_the_databases_position(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting):
        async with reading(audit, core, tmp_path) as service:
            await emitting.store.write(open_doors, 1, 10)
            await settled(service, list(range(1, 11)))
        await emitting.store.write(open_doors, 11, 20)
        await eventually(lambda: _stream_has(core, 20))
        for sequence in (20, 2):
            await reset(core, sequence)
            async with reading(audit, core, tmp_path) as service:
                await settled(service, list(range(1, 21)))
        assert audit.attempts == list(range(1, 21))


async def _stream_has(connection: Connection, count: int) -> bool:
    return (await stream_state(connection, "EVENTS")).last == count


async def test_a_durable_that_was_deleted_and_applied_again_goes_on_from_the_databases_position(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting), reading(audit, core, tmp_path) as service:
        await emitting.store.write(open_doors, 1, 10)
        await settled(service, list(range(1, 11)))
        await api_request(core, f"CONSUMER.DELETE.EVENTS.audit-{PARTITION}")
        await until(lambda: any(f"audit-{PARTITION}' does not exist" in each for each in service.problems()))
        await emitting.store.write(open_doors, 11, 15)
        await apply(core, "audit")
        await settled(service, list(range(1, 16)))
        assert audit.attempts == list(range(1, 16))


async def test_what_was_committed_but_not_acknowledged_is_a_duplicate_after_a_restart(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting):
        with monkeypatch.context() as patch:
            patch.setattr("forebay.jetstream.pulling.Pull.acknowledge", lambda *_: None)
            async with reading(audit, core, tmp_path) as service:
                await emitting.store.write(open_doors, 1, 10)
                await settled(service, list(range(1, 11)))
        assert (await consumer_info(core, "EVENTS", f"audit-{PARTITION}")).ack_floor == 0
        async with reading(audit, core, tmp_path) as service:  # the position knows
            await emitting.store.write(open_doors, 11, 12)
            await settled(service, list(range(1, 13)))
            assert consumer_of(service).totals.duplicates == 0
            await service.store.write(lambda tx: tx.execute("delete from forebay_position"))
        async with reading(audit, core, tmp_path) as service:  # and without a position the inbox does
            await until(lambda: consumer_of(service).totals.duplicates == 12)
            await emitting.store.write(open_doors, 13, 13)
            await settled(service, list(range(1, 14)))
        assert audit.attempts == list(range(1, 14))


async def test_a_consumer_goes_on_through_restarts_of_the_broker(nats_server: NatsServer, tmp_path: Path) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting), reading(audit, core, tmp_path) as service:
        for round_ in range(3):
            await emitting.store.write(open_doors, round_ * 100 + 1, round_ * 100 + 100)
            await nats_server.restart()
        await settled(service, list(range(1, 301)), 40)
        await until(lambda: not service.problems())


def send_everything(service: RunningService) -> None:
    """Let a node send all that it has, also what it could learn to be confirmed."""
    assert service.relay is not None
    service.relay._confirmed_upto = None


async def test_a_stream_that_was_deleted_and_applied_again_is_read_from_its_start_without_a_double_effect(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with connected(nats_server.url, node="core") as core:
        await apply(core, "audit")
        async with reading(audit, core, tmp_path) as service:
            async with connected(nats_server.url, node=NODE) as edge, serving(door(), edge, tmp_path) as emitting:
                await emitting.store.write(open_doors, 1, 10)
                await settled(service, list(range(1, 11)))
            await api_request(core, "STREAM.DELETE.EVENTS")
            await until(lambda: bool(service.problems()))
            await apply(core, "audit")
            async with (
                connected(nats_server.url, node=NODE) as edge,
                serving(door(), edge, tmp_path, prepare=send_everything) as emitting,
            ):
                await emitting.store.write(open_doors, 11, 15)
                await settled(service, list(range(1, 16)), 30)
            assert consumer_of(service).totals.duplicates == 10
            incarnation = (await stream_state(core, "EVENTS")).created
            positions = await rows(service.store, "select incarnation, sequence from forebay_position")
            assert positions == [(incarnation, 15)]
            await until(lambda: not service.problems())


async def test_a_stream_without_its_partitions_is_named_by_the_consumer(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Its durables would silently match nothing."""
    audit = Audit()
    async with connected(nats_server.url, node="core") as core:
        await apply(core, "audit")
        config = (await stream_state(core, "EVENTS")).config
        durables = [(await consumer_info(core, "EVENTS", f"audit-{n}")).config for n in range(8)]
        await api_request(core, "STREAM.DELETE.EVENTS")
        config.pop("subject_transform")
        await api_request(core, "STREAM.CREATE.EVENTS", config)
        for durable in durables:
            name = durable["durable_name"]
            await api_request(
                core, f"CONSUMER.CREATE.EVENTS.{name}", {"stream_name": "EVENTS", "config": durable, "action": "create"}
            )
        async with reading(audit, core, tmp_path) as service:
            await until(lambda: any("subject_transform is missing" in each for each in service.problems()))


async def test_another_database_is_refused_and_told_what_to_do(nats_server: NatsServer, tmp_path: Path) -> None:
    audit, stranger = Audit(), Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting):
        async with reading(audit, core, tmp_path) as service:
            await until(lambda: consumer_of(service).reading)
        async with reading(stranger, core, tmp_path / "elsewhere") as service:
            await emitting.store.write(open_doors, 1, 3)
            await until(lambda: any("is read by the store" in each for each in service.problems()))
            assert any("forebay apply" in each for each in service.problems())
            assert not stranger.attempts
        async with reading(audit, core, tmp_path) as service:
            await settled(service, [1, 2, 3])


async def publish(connection: Connection, headers: dict[str, str], body: bytes = b'{"number":7}') -> None:
    async with Publisher(connection, "EVENTS") as publisher:
        (outcome,) = await publisher.publish([Outgoing(f"evt.{NODE}.door.door-opened", headers, body)])
        assert isinstance(outcome, Stored), outcome


FOREIGN = {
    "Nats-Msg-Id": "order/4711",
    "ce-specversion": "1.0",
    "ce-id": "order/4711",
    "ce-source": f"/{NODE}/door",
    "ce-type": "door.door-opened.v1",
}


async def test_a_foreign_producers_message_is_taken_once(nats_server: NatsServer, tmp_path: Path) -> None:
    audit = Audit()
    async with connected(nats_server.url, node="core") as core:
        await apply(core, "audit")
        await publish(core, FOREIGN)
        async with reading(audit, core, tmp_path) as service:
            await settled(service, [7])
            state = await stream_state(core, "EVENTS")
            await api_request(core, "STREAM.UPDATE.EVENTS", {**state.config, "duplicate_window": 120_000_000_000})
            # Under the broker's eyes it is another message only by its id; the retry after its window has the same one.
            await nats_server.restart()
            await core.wait_connected()
            await api_request(core, "STREAM.DELETE.EVENTS")
            await until(lambda: bool(service.problems()))
            await apply(core, "audit")
            await publish(core, FOREIGN)
            await until(lambda: consumer_of(service).totals.duplicates == 1, 30)
            assert await numbers(service.store) == [7]


async def test_a_foreign_id_is_remembered_until_the_stream_has_passed_its_last_copy(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with connected(nats_server.url, node="core") as core:
        await apply(core, "audit")
        await publish(core, FOREIGN)
        async with reading(audit, core, tmp_path) as service:
            await settled(service, [7])
            await api_request(core, "STREAM.DELETE.EVENTS")
            await until(lambda: bool(service.problems()))
            await apply(core, "audit")
            for number in range(1, 4):
                await publish(core, {**FOREIGN, "Nats-Msg-Id": f"other-{number}"})
            await publish(core, FOREIGN)
            await until(lambda: consumer_of(service).totals.duplicates == 1, 30)
            found = await rows(
                service.store, "select stream_sequence from forebay_foreign where message_id = 'order/4711'"
            )
            assert found == [(4,)]


async def test_a_header_that_is_not_text_is_parked_and_what_follows_goes_on(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with connected(nats_server.url, node="core") as core, reading(audit, core, tmp_path) as service:
        await apply(core, "audit")
        async with await anyio.connect_tcp("127.0.0.1", nats_server.port) as raw:
            headers = b"NATS/1.0\r\nNats-Msg-Id: odd\r\nce-type: \xff\xfe\r\n\r\n"
            subject = f"evt.{NODE}.door.door-opened".encode()
            await raw.send(b'CONNECT {"verbose":false,"headers":true}\r\n')
            await raw.send(b"HPUB %s %d %d\r\n%s{}\r\nPING\r\n" % (subject, len(headers), len(headers) + 2, headers))
            seen = b""
            while b"PONG" not in seen:
                seen += await raw.receive()
        await publish(core, FOREIGN)
        await settled(service, [7])
        assert len(await rows(service.store, "select * from forebay_parked")) == 1


async def test_a_batch_handler_gets_many_and_a_failing_one_among_them_is_found_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit(batch=True)
    audit.fail_on(50)
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting):
        ids = await emitting.store.write(open_doors, 1, 100)
        await eventually(lambda: _stream_has(core, 100))
        async with reading(audit, core, tmp_path) as service:
            await until(lambda: consumer_of(service).totals.parked == 51)
            assert (await parked(service))[:2] == [("handler", ids[49]), ("behind", ids[50])]
            await settled(service, list(range(1, 50)))
            audit.work_again()
            await settled(service, list(range(1, 101)))
            assert max(audit.sizes) > 10


async def test_a_consumer_that_is_cancelled_leaves_whole_batches_and_acknowledges_what_it_committed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting):
        await emitting.store.write(open_doors, 1, 3000)
        await eventually(lambda: _stream_has(core, 3000))
        for stop_after in (1, 40, 700, 1500):
            async with reading(audit, core, tmp_path) as service:
                await until(lambda limit=stop_after: len(audit.attempts) >= limit)  # type: ignore[misc]
            async with serving(Service("audit"), core, tmp_path, node="core", schema=NOTES) as service:
                done = await numbers(service.store)
                assert done == list(range(1, len(done) + 1))
                position = await rows(service.store, "select sequence from forebay_position")
                assert position == [(len(done),)]
            await eventually(partial(_acknowledged, core, len(done)))
        async with reading(audit, core, tmp_path) as service:
            await settled(service, list(range(1, 3001)), 30)


async def _acknowledged(connection: Connection, count: int) -> bool:
    return (await consumer_info(connection, "EVENTS", f"audit-{PARTITION}")).ack_floor == count


async def test_an_event_without_a_handler_is_skipped_and_one_of_an_unknown_version_is_parked(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    class Opened2(Event, service="door", kind="door-opened", version=2):
        number: int

    def mixed(tx: UnitOfWork) -> None:
        tx.emit(Measured(number=1))
        tx.emit(Opened2(number=1))
        tx.emit(DoorOpened(number=2))

    audit = Audit()
    async with two_sides(nats_server, tmp_path, audit) as (core, emitting), reading(audit, core, tmp_path) as service:
        await emitting.store.write(mixed)
        await settled(service, [2])
        await until(lambda: consumer_of(service).totals.skipped == 1)
        assert await rows(service.store, "select reason from forebay_parked") == [("unknown-version",)]
