"""A broker that loses what it acknowledged loses nothing: the node sends again what no consumer met (rules C2, I4)."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from forebay import Service, UnitOfWork
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import api_request, stream_state
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import (
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    serving,
)

BEFORE, LOST, AFTER = 10, 30, 40
"""The copy that the broker goes back to has 1 to 10; 11 to 30 were acknowledged after it, and 31 to 40 come later."""


def notes() -> Service:
    service = Service("notes")

    @service.on(DoorOpened)
    def take(tx: UnitOfWork, opened: DoorOpened) -> None:
        note(tx, "house-1", opened.number)

    return service


async def forwarded(service: RunningService, message_id: str) -> bool:
    found = await service.find(message_id)
    return found is not None and found.state == "forwarded"


async def go_back(server: NatsServer, connection: Connection, copy: Path) -> None:
    """Let the broker lose what it acknowledged since the copy of its store was made."""
    server.kill()
    shutil.rmtree(server.folder / "store")
    shutil.copytree(copy, server.folder / "store")
    await server.start()
    await connection.wait_connected()


async def wipe(server: NatsServer, connection: Connection, _: Path) -> None:
    """Let the broker lose its store, and apply the topology again."""
    server.kill()
    shutil.rmtree(server.folder / "store")
    await server.start()
    await connection.wait_connected()
    await apply(connection, "notes")


async def delete_stream(_: NatsServer, connection: Connection, __: Path) -> None:
    """Delete the stream and create it again; the broker remembers the ids of the old one as little as its messages."""
    await api_request(connection, "STREAM.DELETE.EVENTS")
    await apply(connection, "notes")


@pytest.mark.parametrize("forget", [go_back, wipe, delete_stream])
async def test_what_the_broker_lost_before_anybody_read_it_takes_effect_once_and_in_order(
    nats_server: NatsServer,
    tmp_path: Path,
    forget: Callable[[NatsServer, Connection, Path], Awaitable[None]],
) -> None:
    """C2: acknowledged, lost, and nobody had read it."""
    async with connected(nats_server.url, node="house-1") as edge, connected(nats_server.url, node="core") as core:
        await apply(edge, "notes")
        async with serving(door(), edge, tmp_path) as node:
            ids = await node.store.write(open_doors, 1, BEFORE)
            await eventually(partial(forwarded, node, ids[-1]))
            copy = tmp_path / "copy"
            shutil.copytree(nats_server.folder / "store", copy)
            ids = await node.store.write(open_doors, BEFORE + 1, LOST)
            await eventually(partial(forwarded, node, ids[-1]))

            await forget(nats_server, edge, copy)
            ids = await node.store.write(open_doors, LOST + 1, AFTER)
            async with serving(notes(), core, tmp_path, node="core", schema=NOTES) as center:

                async def all_there() -> bool:
                    return len(await numbers(center.store)) >= AFTER

                await eventually(all_there, limit=30)
                assert await numbers(center.store) == list(range(1, AFTER + 1))

                async def confirmed() -> bool:
                    found = await node.find(ids[-1])
                    return found is not None and found.state == "confirmed"

                await eventually(confirmed, limit=20)
            assert node.relay is not None
            assert node.relay.resent >= LOST - BEFORE


async def test_what_had_taken_effect_before_the_broker_forgot_it_takes_no_second_effect(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """C2: what is confirmed is not sent again, and what is sent again is known to the inbox."""
    async with connected(nats_server.url, node="house-1") as edge, connected(nats_server.url, node="core") as core:
        await apply(edge, "notes")
        async with (
            serving(door(), edge, tmp_path) as node,
            serving(notes(), core, tmp_path, node="core", schema=NOTES) as center,
        ):
            ids = await node.store.write(open_doors, 1, BEFORE)

            async def confirmed() -> bool:
                found = await node.find(ids[-1])
                return found is not None and found.state == "confirmed"

            await eventually(confirmed)
            await wipe(nats_server, edge, tmp_path)
            ids = await node.store.write(open_doors, BEFORE + 1, LOST)
            await eventually(confirmed, limit=30)
            assert await numbers(center.store) == list(range(1, LOST + 1))
            assert node.relay is not None
            assert node.relay.resent == 0
            state = await stream_state(edge, "EVENTS")
            assert state.last == LOST - BEFORE
