"""Power cuts of processes that run: what they had written and not synced is gone with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec

from forebay.testing.link import Link
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.faults.databases import forget_memory
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import any_edge
from tests.faults.observing import WITHIN
from tests.faults.power_cut import Cut, PowerCut, RecordingError
from tests.faults.system import CORE, System

REQUESTS = 30
"""Requests that are written while the system calls are recorded."""

ATTEMPTS = 3
"""Recordings that may turn out not to explain what a process left: then it was only killed, which says nothing."""

STANDS = 0.5
"""Seconds without a link after which a process has written what it still had to."""

LAZY = "2m"
"""nats-server's own ``sync_interval``, with which a message that it has acknowledged is not on its disk."""


class Machine(msgspec.Struct, frozen=True):
    """What loses its power: a process, the folder that it keeps, and the links over which it is given work.

    ``known_as`` is what the process calls the folder, where that is something else; ``stored`` tells how much it has
    stored, where it loses nothing unless it was given something.
    """

    folder: Path
    pid: Callable[[], int | None]
    kill: Callable[[], None]
    start: Callable[[], Awaitable[None]]
    links: Collection[Link]
    known_as: Path | None = None
    stored: Callable[[], Awaitable[int]] | None = None


async def cut_broker(system: System) -> None:
    """The broker syncs as lazily as it does by default: messages that it has acknowledged are gone."""
    broker = system.broker

    async def start() -> None:
        await broker.start()
        await system.apply()  # the stream itself may be among what is gone

    async def stored() -> int:
        return int(json.loads(await system.api("STREAM.INFO.EVENTS"))["state"]["last_seq"])

    lasting, broker.sync_interval = broker.sync_interval, LAZY
    await broker.restart()
    links = system.links.values()
    machine = Machine(system.broker_store, lambda: broker.pid, broker.kill, start, links, stored=stored)
    try:
        cut = await _cut(system, machine)
    finally:
        broker.sync_interval = lasting
    await broker.restart()
    assert cut.dropped_bytes, "a broker that syncs every two minutes had synced everything"


async def cut_core(system: System) -> None:
    """The core: nobody was told of what its databases had not synced."""
    await _cut(system, _machine(system, system.core, CORE, system.database(CORE, "books").parent))


async def cut_edge(system: System) -> None:
    """A node: what it had answered is on its disk."""
    process = any_edge(system)
    name = next(name for name, each in system.edges.items() if each is process)
    folder = process.data / "nodes" / process.node
    await _cut(system, _machine(system, process, name, system.seen(name, folder), known_as=folder))


def _machine(system: System, process: ServiceProcess, name: str, folder: Path, known_as: Path | None = None) -> Machine:
    async def start() -> None:
        forget_memory(folder)
        process.start()
        await process.ready()

    return Machine(folder, lambda: process.pid, process.kill, start, [system.links[name]], known_as)


async def _cut(system: System, machine: Machine) -> Cut:
    """Record a process while requests are written, kill it in their middle and take what it had not synced.

    Raises:
        RecordingError: the calls never explained what it left.
    """
    for attempt in range(ATTEMPTS):
        scratch = system.folder / "power"
        power = PowerCut(machine.folder, scratch, known_as=machine.known_as)
        async with _without_work(machine):
            pid = machine.pid()
            assert pid is not None, "it does not run"
            await power.attach(pid)
            before = await machine.stored() if machine.stored else 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.workload.round, REQUESTS)
            await anyio.lowlevel.checkpoint()
            await system.workload.progress(system.dice.randrange(REQUESTS // 2, REQUESTS))
            if machine.stored:
                await until(partial(_more, machine.stored, before), limit=WITHIN, what="something is stored")
            machine.kill()
            try:
                cut = await anyio.to_thread.run_sync(power.cut)
            except RecordingError:
                cut = None
                if attempt + 1 == ATTEMPTS:
                    raise
            finally:
                await machine.start()
        shutil.rmtree(scratch)
        if cut is not None:
            return cut
    raise AssertionError("not reached")


async def _more(stored: Callable[[], Awaitable[int]], before: int) -> bool:
    return await stored() > before


@asynccontextmanager
async def _without_work(machine: Machine) -> AsyncIterator[None]:
    for link in machine.links:
        link.cut()
    await anyio.sleep(STANDS)
    yield
    for link in machine.links:
        link.heal()


POWER = (
    Nemesis("broker-power-cut", cut_broker, quiet=True, traced=True),
    Nemesis("core-power-cut", cut_core, quiet=True, traced=True),
    Nemesis("edge-power-cut", cut_edge, quiet=True, traced=True),
)
