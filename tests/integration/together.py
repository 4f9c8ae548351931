"""Services of one node that run together, as one process runs them; there is no link unless a test gives one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from forebay import Service
from forebay.following import Follower
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.running import RunningService
from tests.integration.rig import GRACE, NODE, until

Running = Mapping[str, RunningService]


def no_link() -> Connection:
    """A connection that nobody runs: it never comes up."""
    return Connection(ConnectionConfig(servers=["nats://127.0.0.1:1"], name=NODE, inbox_prefix=f"_INBOX_{NODE}"))


@asynccontextmanager
async def together(
    folder: Path,
    *declared: Service,
    connection: Connection | None = None,
    schemas: Mapping[str, str] | None = None,
    grace: float = GRACE,
) -> AsyncIterator[Running]:
    """Run services of one node; ``schemas`` are the tables of those that have any."""
    link = connection or no_link()
    running: dict[str, RunningService] = {}
    async with AsyncExitStack() as stack:
        for each in declared:
            migrations = None
            if schema := (schemas or {}).get(each.name):
                migrations = folder / f"{each.name}-migrations"
                migrations.mkdir(parents=True, exist_ok=True)
                (migrations / f"0001_{each.name}.sqlite.sql").write_text(schema)
            service = RunningService(each, NODE, folder / f"{each.name}.db", link, {})
            stack.push_async_callback(service.close)
            await service.open(migrations, grace=grace)
            running[each.name] = service
        for service in running.values():
            await service.follow(running)
        async with anyio.create_task_group() as tasks:
            for service in running.values():
                await service.start(tasks)
            try:
                yield running
            finally:
                tasks.cancel_scope.cancel()


def follower_of(service: RunningService) -> Follower:
    assert service.follower is not None
    return service.follower


async def followed_all(service: RunningService, events: int) -> None:
    """Wait until so many events took effect since the start."""
    await until(lambda: follower_of(service).totals.applied >= events, 30)
