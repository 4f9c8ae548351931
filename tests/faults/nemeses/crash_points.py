"""Processes that end at a crash point: a named place between two statements of the paths that carry an event."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import anyio

from forebay.crash_points import POINTS, VARIABLE
from tests.faults.databases import change
from tests.faults.nemeses.broker import lose_unseen
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import any_edge
from tests.faults.system import System

PATIENCE = 8.0
"""Seconds of work until a point counts as not reached; some need what happens only now and then."""

TIMES = (1, 1, 2, 3, 7)
"""The how manieth time a process ends there, drawn by the dice."""

OF_CORE = ("consume", "answer", "timer")
"""The paths that only the core takes; it takes the others as well, for what it emits."""

OF_REBUILD = "rebuild"
"""The path that nobody takes here: the harness has no read model with versions. What runs a project through a rebuild
(``tests/services/test_rebuild.py``) ends it at each of these points."""

REACHABLE = tuple(point for point in POINTS if point.partition(".")[0] != OF_REBUILD)

AFTER_LOSS = ("relay.repairing", "consume.held")
"""Points that are reached when the broker has lost something that the core had not seen."""

FIRST_HEARD = "confirm.learned"
"""Reached when a node hears of the consumers, or of other ones than it knew."""


async def crash_at(point: str, system: System) -> None:
    """End a process at a crash point, if it gets there, and start it again."""
    process = system.core if point.partition(".")[0] in OF_CORE else any_edge(system)
    process.kill()
    if point == FIRST_HEARD:
        change(system.database(process.node, "meter"), "update forebay_store set confirmed_by = null")
    times = 1 if point == FIRST_HEARD else system.dice.choice(TIMES)
    process.environment[VARIABLE] = f"{point}:{times}"
    try:
        process.start()
        with suppress(AssertionError):  # it may end at the point before it is ready
            await process.ready()
        with anyio.move_on_after(PATIENCE):
            while process.running:  # noqa: ASYNC110 - a child process sets no event
                await anyio.sleep(0.02)
    finally:
        del process.environment[VARIABLE]
    if not process.running and process.wait() == -9:
        system.crashed[point] += 1
    await system.restart(process)


async def crash_after_loss(point: str, system: System) -> None:
    """The same at a point that is reached once the broker has lost something; it may get there before that, too."""
    process = system.core if point.partition(".")[0] in OF_CORE else any_edge(system)
    revived = anyio.Event()

    async def revive() -> None:
        while process.running:  # noqa: ASYNC110 - a child process sets no event
            await anyio.sleep(0.02)
        system.crashed[point] += process.wait() == -9
        del process.environment[VARIABLE]
        await system.restart(process)
        revived.set()

    process.kill()
    process.environment[VARIABLE] = f"{point}:1"
    process.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(revive)
            await lose_unseen(system)
            with anyio.move_on_after(PATIENCE):
                await revived.wait()
            tasks.cancel_scope.cancel()
    finally:
        process.environment.pop(VARIABLE, None)
    if not revived.is_set():
        await system.restart(process)


async def crash_anywhere(system: System) -> None:
    await crash_at(system.dice.choice(sorted(set(REACHABLE) - set(AFTER_LOSS))), system)


def crash_nemesis(point: str) -> Nemesis:
    """Return the fault that a process ends at one point."""
    crash = crash_after_loss if point in AFTER_LOSS else crash_at
    return Nemesis(f"crash-at-{point}", partial(crash, point), quiet=point in AFTER_LOSS)


CRASH_POINTS = (Nemesis("crash-point", crash_anywhere),)
