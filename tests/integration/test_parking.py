"""Failing events against a real broker: parked with their key, tried again from there, exactly once (rules F1, F2)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay import Event, Message, Service, UnitOfWork
from forebay.consumer import Consumer
from forebay.jetstream.connection import Connection
from forebay.redrive import discard, retry
from forebay.running import RunningService
from forebay.taken import FAILURES_IN_A_ROW
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    rows,
    serving,
    until,
)

Failing = Callable[[DoorOpened], Exception | None]


class Audit:
    """A consuming service whose handler fails for some events."""

    def __init__(self) -> None:
        self.failing: Failing = lambda _: None
        self.attempts: list[int] = []
        self.service = Service("audit")

        @self.service.on(DoorOpened)
        def one(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
            self.attempts.append(event.number)
            note(tx, message.node, event.number)
            if error := self.failing(event):
                raise error

    def fail_on(self, *numbers: int) -> None:
        self.failing = lambda event: ValueError("the shelf is full\nof jam") if event.number in numbers else None

    def work_again(self) -> None:
        self.failing = lambda _: None


@asynccontextmanager
async def both(server: NatsServer, folder: Path) -> AsyncIterator[tuple[RunningService, Connection]]:
    """Run the door of a node; yield it and a connection for the core."""
    async with connected(server.url, node=NODE) as edge, connected(server.url, node="core") as core:
        await apply(core, "audit")
        async with serving(door(), edge, folder) as emitting:
            yield emitting, core


@asynccontextmanager
async def reading(audit: Audit, core: Connection, folder: Path) -> AsyncIterator[RunningService]:
    async with serving(audit.service, core, folder, node="core", schema=NOTES) as service:
        yield service


def consumer_of(service: RunningService) -> Consumer:
    assert service.consumer is not None
    return service.consumer


def open_doors(tx: UnitOfWork, doors: str) -> list[str]:
    """Open doors in order, each a letter; they are numbered from 1."""
    return [tx.emit(DoorOpened(number=at, door=each)) for at, each in enumerate(doors, 1)]


async def parked(service: RunningService) -> list[tuple[Any, ...]]:
    return await rows(
        service.store, "select reason, message_id from forebay_parked where discarded_at is null order by id"
    )


async def emptied(service: RunningService, limit: float = 20) -> None:
    async def empty() -> bool:
        return not await parked(service)

    await eventually(empty, limit)


async def test_a_failing_event_and_its_key_wait_while_other_keys_go_on_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    audit.fail_on(3)
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        ids = await node.store.write(open_doors, "abababab")
        await until(lambda: consumer_of(service).totals.parked == 3)
        await eventually(lambda: _noted(service, [1, 2, 4, 6, 8]))
        assert await parked(service) == [("handler", ids[2]), ("behind", ids[4]), ("behind", ids[6])]
        assert not service.problems()
        (detail,) = (await rows(service.store, "select detail from forebay_parked limit 1"))[0]
        assert "ValueError: the shelf is full" in detail
        assert "\n" not in detail
        audit.work_again()
        await emptied(service)
        assert await numbers(service.store) == [1, 2, 4, 6, 8, 3, 5, 7]
        await node.store.write(lambda tx: tx.emit(DoorOpened(number=9, door="a")))
        await eventually(lambda: _noted(service, [1, 2, 4, 6, 8, 3, 5, 7, 9]))


async def _noted(service: RunningService, expected: list[int]) -> bool:
    return await numbers(service.store) == expected


async def test_parked_events_are_confirmed_to_their_node_b2(nats_server: NatsServer, tmp_path: Path) -> None:
    """The consumer has them: the node need not keep them for it."""
    audit = Audit()
    audit.fail_on(1)
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path):
        ids = await node.store.write(open_doors, "aab")

        async def all_confirmed() -> bool:
            found = [await node.find(each) for each in ids]
            return all(each is not None and each.state == "confirmed" for each in found)

        await eventually(all_confirmed)


async def test_what_is_parked_survives_a_restart_and_later_events_of_its_key_still_wait_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    audit.fail_on(1)
    async with both(nats_server, tmp_path) as (node, core):
        async with reading(audit, core, tmp_path) as service:
            await node.store.write(open_doors, "ab")
            await eventually(lambda: _noted(service, [2]))
        await node.store.write(lambda tx: tx.emit(DoorOpened(number=3, door="a")))
        async with reading(audit, core, tmp_path) as service:
            await until(lambda: consumer_of(service).totals.parked == 1)
            audit.work_again()
            await eventually(lambda: _noted(service, [2, 1, 3]))


async def test_retries_come_with_growing_pauses_and_their_number_is_kept_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    audit.fail_on(1)
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        await node.store.write(open_doors, "a")

        async def tried(times: int) -> bool:
            ((attempts,),) = await rows(service.store, "select attempts from forebay_parked")
            return bool(attempts >= times)

        await until(lambda: consumer_of(service).totals.parked == 1)
        await eventually(lambda: tried(3))
        ((retry_at,),) = await rows(service.store, "select retry_at from forebay_parked")
        pause = retry_at - time.time() * 1000
        assert 1000 < pause < 9000, "the third pause is 4 to 8 s"
        assert await numbers(service.store) == []


async def test_a_discarded_event_stays_on_record_and_its_key_goes_on_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    audit.fail_on(1)
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        await node.store.write(open_doors, "aaa")
        await until(lambda: consumer_of(service).totals.parked == 3)
        ((first,), (second,), _) = await rows(service.store, "select id from forebay_parked order by id")
        assert "waits behind" in await service.store.write(retry, second)
        assert await service.store.write(discard, first, "rung up twice by hand") == f"{first} is discarded"
        consumer_of(service).look_again()
        await emptied(service)
        assert await numbers(service.store) == [2, 3]
        record = await rows(service.store, "select id, discarded_why from forebay_parked")
        assert record == [(first, "rung up twice by hand")]
        assert await service.store.write(discard, first, "again") == f"there is no parked event {first}"


async def test_many_failures_in_a_row_stop_the_reading_until_a_retry_succeeds_f2(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is likely not the events' fault: something that every handler needs is away."""
    audit = Audit()
    audit.failing = lambda _: ConnectionError("the till's tax service is away")
    count = 3 * FAILURES_IN_A_ROW
    doors = "".join(chr(ord("A") + at) for at in range(count))
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        await node.store.write(open_doors, doors)
        await until(lambda: consumer_of(service).suspended is not None)
        assert len(await parked(service)) == FAILURES_IN_A_ROW
        assert any("waits for a retry to succeed" in each for each in service.problems())
        before = len(audit.attempts)
        await until(lambda: len(audit.attempts) > before)  # retries go on
        assert len(await parked(service)) == FAILURES_IN_A_ROW
        audit.work_again()
        await emptied(service)
        await eventually(lambda: _sorted(service, list(range(1, count + 1))))
        assert consumer_of(service).suspended is None
        assert not service.problems()
        assert caplog.messages.count("consumer.resumed") == 1


async def _sorted(service: RunningService, expected: list[int]) -> bool:
    return sorted(await numbers(service.store)) == expected


async def test_events_that_fail_now_and_then_do_not_stop_the_reading_f2(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    audit = Audit()
    count = 6 * FAILURES_IN_A_ROW
    audit.failing = lambda event: ValueError("odd") if event.number % 2 else None
    doors = "".join(chr(0x100 + at) for at in range(count))
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        await node.store.write(open_doors, doors)
        await until(lambda: consumer_of(service).totals.parked == count // 2)
        assert consumer_of(service).suspended is None
        assert await numbers(service.store) == list(range(2, count + 1, 2))


async def test_a_body_that_cannot_be_read_blocks_its_key_f1(nats_server: NatsServer, tmp_path: Path) -> None:
    class Other(Event, service="door", kind="door-opened", key="door"):
        number: str
        door: str = "front"

    audit = Audit()
    async with both(nats_server, tmp_path) as (node, core), reading(audit, core, tmp_path) as service:
        ids = [
            await node.store.write(lambda tx: tx.emit(Other(number="one", door="a"))),
            *await node.store.write(open_doors, "ab"),
        ]
        await until(lambda: consumer_of(service).totals.parked == 2)
        await eventually(lambda: _noted(service, [2]))
        assert await parked(service) == [("undecodable-body", ids[0]), ("behind", ids[1])]
