"""A consumer that nobody needs any more is taken off the list, explicitly and on record (rule S3)."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from forebay.errors import TopologyError
from forebay.identity import partition_of
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.jetstream.topology.apply import Request, durables_of
from forebay.jetstream.topology.removal import listed_consumers, remove_consumer
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import NODE, apply, connected, door, eventually, open_doors, serving
from tests.integration.test_confirmation import reading
from tests.services.command_line import forebay
from tests.stores import url_of


def request_of(connection: Connection) -> Request:
    async def request(subject: str, body: bytes) -> bytes:
        return (await connection.request(subject, body, timeout=5)).body

    return request


async def _confirmed(node: RunningService, message_id: str) -> bool:
    found = await node.find(message_id)
    return found is not None and found.state == "confirmed"


async def test_nodes_go_on_without_a_consumer_that_was_removed_s3(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node="admin") as admin, connected(nats_server.url) as edge:
        await apply(admin, "audit", "stats")
        async with reading(nats_server, tmp_path), serving(door(), edge, tmp_path) as node:
            (event,) = await node.store.write(open_doors, 1, 1)

            async def confirmed_by_audit_alone() -> bool:
                found = await node.find(event)
                return found is not None and {n: c.confirmed for n, c in found.consumers.items()} == {
                    "audit": True,
                    "stats": False,
                }

            await eventually(confirmed_by_audit_alone)
            before, _ = await listed_consumers(request_of(admin), "EVENTS")
            assert before is not None
            deleted = await remove_consumer(request_of(admin), "EVENTS", "stats", "replaced by the warehouse")
            assert len(deleted) == 8
            await eventually(partial(_confirmed, node, event))
            known, removed = await listed_consumers(request_of(admin), "EVENTS")
            assert known is not None
            assert (known.version, list(known.consumers)) == (before.version + 1, ["audit"])
            assert removed["stats"].reason == "replaced by the warehouse"
            assert {name.rpartition("-")[0] for name in await durables_of(request_of(admin), "EVENTS")} == {"audit"}
            await apply(admin, "audit")
            metadata = (await stream_state(admin, "EVENTS")).metadata
            assert "replaced by the warehouse" in metadata["forebay.removed.stats"], "apply keeps the record"


async def test_a_consumer_that_reads_is_not_removed_s3(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path):
            with pytest.raises(TopologyError, match=r"a process reads from audit-.*stop the consumer audit first"):
                await remove_consumer(request_of(admin), "EVENTS", "audit", "by mistake")
            known, _ = await listed_consumers(request_of(admin), "EVENTS")
            assert known is not None
            assert list(known.consumers) == ["audit"]


async def test_the_command_removes_and_lists(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit", "stats")
    run = partial(anyio.to_thread.run_sync)
    url = nats_server.url
    unknown = await run(lambda: forebay(tmp_path, "consumers", "rm", "nobody", "--reason", "x", "--nats", url))
    assert "lists no consumer 'nobody' (it lists: audit, stats)" in unknown.stderr
    assert unknown.returncode == 1
    done = await run(lambda: forebay(tmp_path, "consumers", "rm", "stats", "--reason", "moved", "--nats", url))
    assert done.stdout.startswith("stats is removed, and its durables: stats-0"), done.stderr
    listed = await run(lambda: forebay(tmp_path, "consumers", "ls", "--nats", url))
    assert "moved" in listed.stdout


async def test_the_command_shows_partitions_readers_and_lag(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node=NODE) as node, connected(nats_server.url, node="core") as core:
        await apply(node, "audit", "stats")
        data = tmp_path / "data"
        store = url_of(data / "core")
        async with serving(door(), node, data) as edge, reading(nats_server, data):
            await edge.store.write(open_doors, 1, 7)

            async def show(name: str) -> dict[int, dict[str, Any]]:
                where = ("--store", store) if store else ("--data", str(data))
                command = ("consumers", "show", name, "--nats", nats_server.url, *where, "--json")
                done = await anyio.to_thread.run_sync(lambda: forebay(tmp_path, *command))
                return {each["partition"]: each for each in msgspec.json.decode(done.stdout)}

            async def arrived() -> bool:
                return (await stream_state(core, "EVENTS")).last == 7

            await eventually(arrived)
            mine = partition_of(NODE)
            me = f"{socket.gethostname()}/{os.getpid()}" if store else f"process {os.getpid()}"
            read, unread = await show("audit"), (await show("stats"))[mine]
            assert sorted(read) == list(range(8))
            assert {each["reader"] for each in read.values()} == {me}
            assert (unread["unprocessed"], unread["lag_events"], unread["ack_floor"]) == (7, 7, 0)
            assert unread["lag_seconds"] > 0
            assert unread["reader"] is None
            assert read[(mine + 1) % 8]["lag_seconds"] == 0
        unknown = await anyio.to_thread.run_sync(
            lambda: forebay(tmp_path, "consumers", "show", "nobody", "--nats", nats_server.url)
        )
        assert "no durables of a consumer 'nobody'" in unknown.stderr
