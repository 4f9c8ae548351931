"""A node's wall clock that is set: to 1970, ten years off, or by a step; while it runs, and while it is away."""

from __future__ import annotations

import time

from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import any_edge, anywhere
from tests.faults.observing import WITHIN, metric
from tests.faults.system import System

YEARS = 10 * 365.25 * 86_400
STEPS = (0.5, -0.5, 90.0, -90.0, 3600.0, -3600.0)
"""Seconds by which it jumps, as a time server or a person does it."""

MOVES = 3
"""Times that it is set in one fault."""

EXACT = 30.0
"""Seconds by which what the node says of its clock may be wrong, on a machine that has other work to do."""


async def set_while_it_runs(system: System) -> None:
    process = any_edge(system)
    try:
        for _ in range(MOVES):
            _set(system, process)
            await anywhere(system)
        await _shown(system, process)
    finally:
        system.move_clock(process, 0.0)


async def set_while_it_is_away(system: System) -> None:
    process = any_edge(system)
    try:
        for _ in range(2):
            await anywhere(system)
            process.kill()
            _set(system, process)
            process.start()
            await process.ready()
        await _shown(system, process)
        process.kill()
    finally:
        system.move_clock(process, 0.0)
    process.start()
    await process.ready()


def _set(system: System, process: ServiceProcess) -> None:
    in_1970 = 60.0 - time.time()
    system.move_clock(process, system.dice.choice((in_1970, YEARS, -YEARS, system.dice.choice(STEPS))))


async def _shown(system: System, process: ServiceProcess) -> None:
    """Wait until the node says how far the core's clock is from its own."""
    offset = next(system.clocks[name] for name, each in system.edges.items() if each is process)
    shown = 0.0

    async def shows() -> bool:
        nonlocal shown
        shown = await metric(process, "forebay_clock_offset_seconds")
        return abs(shown + offset) < EXACT

    what = f"{process.node}, whose clock is {offset} s ahead, shows it"
    await until(shows, limit=WITHIN, every=0.2, what=lambda: f"{what}, and not {shown}")


CLOCKS = (
    Nemesis("clock-set", set_while_it_runs),
    Nemesis("clock-set-between-runs", set_while_it_is_away),
)
