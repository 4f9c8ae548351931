"""Budgets against a real broker: what a node without a link drops, what it says of it, and its books (O1, O3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from forebay import Event, Lane, Message, Service, UnitOfWork
from forebay.books import Books
from forebay.confirming import Confirming
from forebay.dropping import dropped
from forebay.errors import BudgetSpentError
from forebay.gaps import own
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.unit_of_work import UnitStore
from forebay.withholding import withhold
from tests.integration.rig import NOTES, apply, connected, eventually, note, numbers, rows, serving, until
from tests.outboxes import messages_after

BUDGET = 20_000


class Rung(Event, service="meter", kind="rung"):
    number: int
    text: str = "x" * 200


class Measured(Event, service="meter", kind="measured", lane="telemetry"):
    number: int
    text: str = "x" * 200


class Changed(Event, service="meter", kind="changed", lane="state", key="name"):
    number: int
    name: str
    text: str = "x" * 200


def meter() -> Service:
    return Service(
        "meter",
        lanes=[
            Lane("ledger", budget=BUDGET),
            Lane("telemetry", budget=BUDGET, when_full="drop-oldest"),
            Lane("state", budget=BUDGET, when_full="keep-latest"),
        ],
    )


def measure(tx: UnitOfWork, first: int, last: int) -> list[str]:
    return [tx.emit(Measured(number=number)) for number in range(first, last + 1)]


def listener() -> Service:
    service = Service("audit")
    for kind in (Rung, Measured, Changed):

        @service.on(kind)
        def write_down(tx: UnitOfWork, event: Any, message: Message) -> None:
            note(tx, message.node, event.number)

    return service


def confirming_of(service: RunningService) -> Confirming:
    assert service.confirming is not None
    return service.confirming


async def question(service: RunningService, lane: str) -> dict[str, Any]:
    asked = msgspec.to_builtins((await service.store.read(confirming_of(service)._prepare)).question)
    return next(dict(origin) for origin in asked["origins"] if origin["lane"] == lane)


async def book(service: RunningService, lane: str) -> Books:
    return next(each for each in await confirming_of(service).books() if each.lane == lane)


@asynccontextmanager
async def reading(connection: Connection, folder: Path) -> AsyncIterator[RunningService]:
    async with serving(listener(), connection, folder, node="core", schema=NOTES) as service:
        await until(lambda: service.consumer is not None and service.consumer.reading)
        yield service


async def test_a_node_without_a_link_drops_its_oldest_and_asks_for_the_range_when_the_link_is_back_o3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await apply(connection, "audit", services=["meter"])
        async with serving(meter(), connection, tmp_path) as node:
            assert node.relay is not None
            nats_server.kill()
            await until(lambda: not connection.connected)
            for number in range(1, 100):
                await node.store.write(measure, number, number)
            (drop,) = await node.store.read(dropped, "telemetry")
            assert drop.first == 1
            left = 99 - drop.last
            assert 0.7 * BUDGET < left * 400 <= 0.8 * BUDGET
            await nats_server.start()
            await until(lambda: node.relay is not None and node.relay.published == left, 20)
            asked = await question(node, "telemetry")
            assert asked["drops"] == [{"epoch": drop.epoch, "first": 1, "last": drop.last}]
            assert "floor" not in asked  # it does not pass the drop before every needed consumer has
            assert asked["stream_sequence"] == left == (await stream_state(connection, "EVENTS")).last


async def test_what_was_dropped_is_passed_by_the_consumer_and_the_floor_follows_o1_o3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await apply(connection, "audit", services=["meter"])
        async with serving(meter(), connection, tmp_path, grace=0.1) as node, reading(connection, tmp_path) as audit:
            ids = await node.store.write(measure, 1, 5)
            await eventually(lambda: _is_confirmed(node, ids[-1]))
            nats_server.kill()
            await until(lambda: not connection.connected)
            ids += [each for number in range(6, 100) for each in await node.store.write(measure, number, number)]
            (drop,) = await node.store.read(dropped, "telemetry")
            await nats_server.start()
            await eventually(lambda: _is_confirmed(node, ids[-1]), 30)
            gone = set(range(drop.first, drop.last + 1))
            assert await numbers(audit.store) == [number for number in range(1, 100) if number not in gone]
            await eventually(lambda: _nothing_is_dropped(node), 30)
            lost, had = await node.find(ids[drop.first - 1]), await node.find(ids[0])
            assert lost is not None
            assert had is not None
            assert (lost.state, lost.consumers["audit"].state) == ("dropped", "dropped")
            assert had.state == "confirmed"
            held = await book(node, "telemetry")
            assert held == Books("telemetry", "audit", 99, 99 - len(gone), 0, len(gone), 0)
            ((_, told),) = await node.store.read(own, node.outbox.node, "meter")
            assert (told.kind, told.first, told.last) == ("drop", drop.first, drop.last)  # it stays on record


async def _is_confirmed(node: RunningService, message_id: str) -> bool:
    found = await node.find(message_id)
    return found is not None and found.state == "confirmed"


async def _nothing_is_dropped(node: RunningService) -> bool:
    return not await node.store.read(dropped, "telemetry")


@pytest.mark.parametrize("seed", range(3))
async def test_the_books_balance_whatever_happens_to_the_broker_and_the_link_o3(
    nats_server: NatsServer, tmp_path: Path, seed: int
) -> None:
    """A seeded schedule of writes, outages and refusals beside the running relay, with the books read all along."""
    chance = random.Random(seed)
    async with connected(nats_server.url) as connection:
        await apply(connection, "audit", services=["meter"])
        async with (
            serving(meter(), connection, tmp_path, grace=0.05) as node,
            reading(connection, tmp_path),
            anyio.create_task_group() as tasks,
        ):
            read = 0

            async def audit_the_books() -> None:
                nonlocal read
                while True:
                    for each in await confirming_of(node).books():
                        assert each.balanced, each
                        assert min(each.confirmed, each.pending, each.dropped, each.withheld) >= 0, each
                        read += 1
                    await asyncio.sleep(0)

            tasks.start_soon(audit_the_books)
            for number in range(60):
                await one_step(chance, number, nats_server, node)
            await nats_server.start()
            await until(lambda: read > 100, 20)
            tasks.cancel_scope.cancel()
            assert await totals(node.store) == []


async def one_step(chance: random.Random, number: int, server: NatsServer, node: RunningService) -> None:
    def unit(tx: UnitOfWork) -> None:
        for _ in range(chance.randrange(1, 20)):
            kind = chance.choice([Rung, Measured, Measured, Changed])
            named = {"name": chance.choice("abcdef")} if kind is Changed else {}
            tx.emit(kind(number=number, **named))

    dice = chance.random()
    if dice < 0.7:
        try:
            await node.store.write(unit)
        except BudgetSpentError as error:
            assert error.lane == "ledger"  # noqa: PT017 -- what blocks is the ledger alone
    elif dice < 0.8:
        server.kill()
    elif dice < 0.9:
        await server.start()
    else:
        lane = chance.choice(["ledger", "telemetry"])
        rows = await node.store.read(messages_after, node.outbox, lane, None, limit=50, max_bytes=1 << 20)
        if rows and (place := chance.choice(rows).place):
            await node.store.write(withhold, {place: "as if the broker had refused it"}, 0)


async def totals(store: UnitStore) -> list[Any]:
    """Return the lanes whose counters are not what their tables hold."""
    return await rows(
        store,
        "select * from (select o.lane, o.written - o.confirmed - o.dropped as counted,"
        " (select count(*) from forebay_outbox r join forebay_epoch e on e.id = r.epoch where e.origin = o.id)"
        " + (select count(*) from forebay_withheld w join forebay_epoch e on e.id = w.epoch where e.origin = o.id)"
        " as held from forebay_origin o) as every where counted <> held",
    )
