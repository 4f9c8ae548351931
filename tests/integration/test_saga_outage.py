"""A saga whose deadline passed during an outage looks for its answer before it gives up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec

from forebay.event import Event
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.lanes import Lane
from forebay.running import RunningService
from forebay.saga import Saga, Sagas, Step, moves, starts, times_out
from forebay.service import Service
from forebay.testing.nats_server import NatsServer
from forebay.timers import Timer, set_timer
from forebay.unit_of_work import UnitOfWork
from tests.integration.rig import apply, connected, eventually, rows, serving, until

LIMIT = timedelta(seconds=1)
MANY = 2000
"""Events that come before the answer, so that the timers are looked at before it is read."""


class Asked(Event, service="phone", kind="asked", key="call"):
    call: str


class Answered(Event, service="phone", kind="answered", key="call"):
    call: str


class CallEnded(Event, service="calls", kind="ended", key="call"):
    call: str
    how: str


class Call(Saga, saga="call"):
    call: str

    @classmethod
    @starts(Asked)
    def asked(cls, step: Step, event: Asked) -> Self:
        step.timeout("answer", LIMIT)
        return cls(call=event.call)

    @moves(Answered)
    def answered(self, step: Step, event: Answered) -> None:
        step.emit(CallEnded(call=event.call, how="answered"))
        step.complete()

    @times_out("answer")
    def nobody(self, step: Step) -> None:
        step.emit(CallEnded(call=self.call, how="given up"))
        step.complete()


def calls() -> Service:
    service = Service("calls", lanes=[Lane("ledger", budget="8MiB")])
    service.runs(Sagas(Call))

    @service.on_timer("reminder")
    def remind(tx: UnitOfWork, timer: Timer) -> None:
        tx.emit(CallEnded(call=timer.instance, how="reminded"))

    return service


def ask(tx: UnitOfWork, *names: str) -> None:
    for name in names:
        tx.emit(Asked(call=name))


def answer(tx: UnitOfWork, name: str) -> None:
    tx.emit(Answered(call=name))


async def ended(service: RunningService) -> dict[str, str]:
    found = await rows(service.store, "select body from forebay_outbox where kind = 'ended'")
    return {each.call: each.how for each in (msgspec.json.decode(row[0], type=CallEnded) for row in found)}


async def has(connection: Connection, count: int) -> bool:
    return (await stream_state(connection, "EVENTS")).last == count


@asynccontextmanager
async def core(server: NatsServer, folder: Path) -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node="core") as connection,
        serving(calls(), connection, folder, node="core") as it,
    ):
        yield it


async def waiting(service: RunningService, count: int) -> bool:
    return await rows(service.store, "select count(*) as n from forebay_timer") == [(count,)]


async def test_an_answer_that_came_while_the_core_was_away_counts_though_the_deadline_passed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    phone = Service("phone", lanes=[Lane("ledger", budget="8MiB")])
    async with connected(nats_server.url) as connection, serving(phone, connection, tmp_path) as house:
        await apply(connection, "calls", services=("phone",))
        async with core(nats_server, tmp_path) as calling:
            begun = time.time()
            await house.store.write(ask, "one", "two")
            await eventually(lambda: waiting(calling, 2))
            await calling.store.write(set_timer, "reminder", "r", "again", datetime.now(UTC) + LIMIT)
        await house.store.write(ask, *(f"other-{number}" for number in range(MANY)))
        await house.store.write(answer, "one")
        stored = 2 + MANY + 1
        await eventually(lambda: has(connection, stored))
        await until(lambda: time.time() > begun + LIMIT.total_seconds() + 1)
        async with core(nats_server, tmp_path) as calling:

            async def over() -> bool:
                return {"one", "two", "r"} <= (await ended(calling)).keys()

            await eventually(over, 30)
            found = await ended(calling)
            assert (found["one"], found["two"], found["r"]) == ("answered", "given up", "reminded")


async def test_without_a_link_timeouts_wait_and_other_timers_do_not(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        async with core(server, tmp_path) as calling:
            server.kill()
            await until(lambda: not calling._connection.connected)
            (owner,) = calls().patient
            await calling.store.write(set_timer, owner, "x", "answer", datetime.now(UTC))
            await calling.store.write(set_timer, "reminder", "r", "again", datetime.now(UTC))
            await until(lambda: calling.timers is not None and calling.timers.totals.fired == 1)
            assert await rows(calling.store, "select owner from forebay_timer") == [(owner,)]
    finally:
        server.kill()
