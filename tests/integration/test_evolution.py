"""Releases of different ages on one stream: old nodes and a new core, new nodes and an old core (rule S2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from forebay import Event, Lane, Message, Service, UnitOfWork, upcasts
from forebay.consumer import Consumer
from forebay.jetstream.connection import Connection
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import NODE, apply, connected, eventually, rows, serving, until

SCHEMA = "create table seen (id integer primary key, number integer not null, door text not null, said text not null);"


class OpenedV1(Event, service="door", kind="opened", version=1, key="door"):
    number: int
    door: str


class OpenedV2(Event, service="door", kind="opened", version=2, key="door"):
    number: int
    door: str
    by: str


class OpenedV3(Event, service="door", kind="opened", version=3, key="door"):
    number: int
    door: str
    person: str
    badge: int | None


class OpenedV2Grown(Event, service="door", kind="opened", version=2, key="door"):
    """The same version, as a later release has it: a field was added."""

    number: int
    door: str
    by: str
    way: str = "in"


@upcasts(OpenedV1)
def by_somebody(old: OpenedV1) -> OpenedV2:
    return OpenedV2(number=old.number, door=old.door, by="somebody")


@upcasts(OpenedV2)
def with_badge(old: OpenedV2) -> OpenedV3:
    return OpenedV3(number=old.number, door=old.door, person=old.by, badge=None)


def emit(tx: UnitOfWork, events: Sequence[Event]) -> list[str]:
    return [tx.emit(event) for event in events]


def v1(number: int, door: str = "front") -> OpenedV1:
    return OpenedV1(number=number, door=door)


def v2(number: int, door: str = "front") -> OpenedV2:
    return OpenedV2(number=number, door=door, by="ann")


def core_of(event: type[Event], said: str) -> Service:
    """A release of the core that handles one version; it notes a field that only that version has."""
    audit = Service("audit")

    @audit.on(event)
    def note(tx: UnitOfWork, opened: Any, message: Message) -> None:
        tx.execute(
            "insert into seen (number, door, said) values (:number, :door, :said)",
            number=opened.number,
            door=opened.door,
            said=f"{message.type.rpartition('.')[2]} {getattr(opened, said)}",
        )

    return audit


@asynccontextmanager
async def node_and_core(server: NatsServer, folder: Path) -> AsyncIterator[tuple[RunningService, Connection]]:
    door = Service("door", lanes=[Lane("ledger", budget="8MiB")])
    async with connected(server.url, node=NODE) as edge, connected(server.url, node="core") as core:
        await apply(core, "audit")
        async with serving(door, edge, folder) as node:
            yield node, core


@asynccontextmanager
async def release(audit: Service, core: Connection, folder: Path) -> AsyncIterator[tuple[RunningService, Consumer]]:
    async with serving(audit, core, folder, node="core", schema=SCHEMA) as service:
        assert service.consumer is not None
        yield service, service.consumer


async def seen(service: RunningService, door: str = "front") -> list[tuple[Any, ...]]:
    return await rows(service.store, f"select number, said from seen where door = '{door}' order by id")


async def parked(service: RunningService) -> list[str]:
    found = await rows(service.store, "select reason from forebay_parked where discarded_at is null order by id")
    return [reason for (reason,) in found]


def put_off(tx: UnitOfWork) -> None:
    """Let the next retries be minutes away, as they are after a few."""
    tx.execute("update forebay_parked set retry_at = retry_at + 290000 where retry_at is not null")


async def test_a_core_of_today_takes_what_a_node_of_last_year_sends_and_old_and_new_in_order(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with node_and_core(nats_server, tmp_path) as (node, core):
        await node.store.write(emit, [v1(1), v1(2)])
        async with release(core_of(OpenedV3, "person"), core, tmp_path) as (service, consumer):
            await until(lambda: consumer.totals.applied == 2)
            await node.store.write(
                emit, [v2(3), OpenedV3(number=4, door="front", person="bob", badge=7), v1(5)]
            )  # the node is upgraded, and rolled back
            await until(lambda: consumer.totals.applied == 5)
            assert await parked(service) == []
            assert await seen(service) == [
                (1, "v1 somebody"),
                (2, "v1 somebody"),
                (3, "v2 ann"),
                (4, "v3 bob"),
                (5, "v1 somebody"),
            ]


async def test_a_core_rolled_back_parks_a_newer_version_and_its_key_until_it_is_upgraded_s2_f1(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with node_and_core(nats_server, tmp_path) as (node, core):
        async with release(core_of(OpenedV1, "door"), core, tmp_path) as (service, consumer):
            await node.store.write(emit, [v1(1), v1(1, "back"), v2(2), v1(3), v1(2, "back"), v2(4)])
            await until(lambda: consumer.totals.applied == 3 and consumer.totals.parked == 3)
            assert await parked(service) == ["unknown-version", "behind", "behind"]
            assert await seen(service) == [(1, "v1 front")]
            assert await seen(service, "back") == [(1, "v1 back"), (2, "v1 back")]
            assert not service.problems()
            await service.store.write(put_off)
        await node.store.write(emit, [v2(5), v1(3, "back")])  # while no core runs
        async with release(core_of(OpenedV2, "by"), core, tmp_path) as (service, consumer):

            async def taken() -> bool:
                return len(await seen(service)) == 5 and await parked(service) == []

            await eventually(taken, 20)
            assert [number for number, _ in await seen(service)] == [1, 2, 3, 4, 5]
            assert [number for number, _ in await seen(service, "back")] == [1, 2, 3]
            assert await seen(service) == [
                (1, "v1 front"),
                (2, "v2 ann"),
                (3, "v1 somebody"),
                (4, "v2 ann"),
                (5, "v2 ann"),
            ]


async def test_fields_added_within_a_version_are_passed_over_by_a_core_that_was_rolled_back(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    grown = OpenedV2Grown(number=1, door="front", by="ann", way="out")
    async with node_and_core(nats_server, tmp_path) as (node, core):
        await node.store.write(emit, [grown])
        async with release(core_of(OpenedV2, "by"), core, tmp_path) as (service, consumer):
            await until(lambda: consumer.totals.applied == 1)
            assert await seen(service) == [(1, "v2 ann")]
            await node.store.write(emit, [v2(2)])
            await until(lambda: consumer.totals.applied == 2)
        async with release(core_of(OpenedV2Grown, "way"), core, tmp_path) as (service, consumer):
            await node.store.write(emit, [v2(3), grown])
            await until(lambda: consumer.totals.applied == 2)
            assert (await seen(service))[2:] == [(3, "v2 in"), (1, "v2 out")]
