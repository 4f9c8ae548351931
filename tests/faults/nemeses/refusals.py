"""A broker that refuses: permissions that are taken and given back, and a limit that is lowered and raised again."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio

from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import any_edge
from tests.faults.observing import WITHIN, Heard, metric
from tests.faults.system import CORE, System

REQUESTS = 24
"""Requests that are written while the broker refuses."""

LIMIT, LARGE = 16 * 1024, 24 * 1024
"""Bytes that the broker takes meanwhile, and of each reading of one meter."""

PULL = "$JS.API.CONSUMER.MSG.NEXT.EVENTS.>"


async def forbid_publishing(system: System) -> None:
    """A node may not publish its events any more: its lanes wait and say so, and nothing is withheld for it."""
    process = any_edge(system)
    heard = Heard(process)
    async with _forbidden(system, process, [f"evt.{process.node}.>"]):
        await heard.until("relay.lane_paused", "not permitted")
        assert await metric(process, "forebay_relay_paused") > 0
        assert await metric(process, "forebay_outbox_withheld") == 0
    await until(partial(_none, process, "forebay_relay_paused"), limit=WITHIN, what=f"{process.node} sends again")


async def forbid_pulling(system: System) -> None:
    """The core may not fetch any more: it says so, and goes on from where it was."""
    heard = Heard(system.core)
    async with _forbidden(system, system.core, [PULL]):
        await heard.until("connection.permission_denied", "consumer.msg.next")
        await heard.until("consumer.paused")


@asynccontextmanager
async def _forbidden(system: System, process: ServiceProcess, subjects: list[str]) -> AsyncIterator[None]:
    """Take permissions in the middle of a round; another is written while they are away, and then they are back."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(system.workload.round, REQUESTS)
        await anyio.lowlevel.checkpoint()
        await system.workload.progress(system.dice.randrange(1, REQUESTS))
        system.users.denied[process.node] = subjects
        await system.reload_broker()
    try:
        await system.workload.round(REQUESTS, None if process.node == CORE else process.node)
        yield
    finally:
        del system.users.denied[process.node]
        await system.reload_broker()


async def lower_limit(system: System) -> None:
    """The broker takes smaller messages than before: what is larger waits with its key, all other keys go on."""
    process = any_edge(system)
    large, *others = system.workload.meters(process.node)
    system.workload.padding_of[large] = LARGE
    system.waited.add(large)
    await system.workload.round(REQUESTS, process.node)  # under way, or sent already, when the limit changes
    await _limit(system, LIMIT)
    try:
        before = set(system.workload.writes)
        await system.workload.round(REQUESTS, process.node)
        await until(partial(_some, process, "forebay_outbox_withheld"), limit=WITHIN, what="large events are withheld")
        await system.workload.round(REQUESTS, process.node)
        wanted = {
            number
            for number, write in system.workload.writes.items()
            if number not in before and write.meter in others and write.node == process.node
        }
        await system.arrive(wanted)
        del system.workload.padding_of[large]
        await system.workload.round(REQUESTS // 2, process.node)  # small ones of the key that waits
    finally:
        system.workload.padding_of.pop(large, None)
        await _limit(system, None)
    command = [*process.launcher, sys.executable, "-m", "forebay", "outbox", "retry", "--data", str(process.data)]
    done = await anyio.run_process(command, cwd=system.project, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


async def _limit(system: System, size: int | None) -> None:
    """Change the broker's limit: for good with a restart, or while it runs."""
    system.users.limits.pop("max_payload", None)
    if size is not None:
        system.users.limits["max_payload"] = size
    if system.dice.random() < 0.5:
        await system.reload_broker()
    else:
        system.broker.extra = system.users.configuration()
        await system.broker.restart()


async def _none(process: ServiceProcess, name: str) -> bool:
    return await metric(process, name) == 0


async def _some(process: ServiceProcess, name: str) -> bool:
    return await metric(process, name) > 0


REFUSALS = (
    Nemesis("publishing-forbidden", forbid_publishing, quiet=True),
    Nemesis("pulling-forbidden", forbid_pulling, quiet=True),
    Nemesis("limit-lowered", lower_limit, quiet=True),
)
