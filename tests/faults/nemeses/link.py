"""Links that are slow, broken, half-open, or come and go."""

from __future__ import annotations

import anyio

from forebay.testing.link import Link
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import anywhere
from tests.faults.system import System

FLAP_INTERVAL = 0.05
"""Seconds between two flaps beside another fault, on average."""

FLAPS = 25
"""Resets in a row that count as one fault."""


def any_link(system: System) -> Link:
    return system.links[system.dice.choice(sorted(system.links))]


async def slow_link(system: System) -> None:
    """A long way and little bandwidth, then a good link again."""
    link = any_link(system)
    link.rate = system.dice.choice((4_000.0, 20_000.0, 100_000.0))
    link.delay = system.dice.uniform(0.05, 0.4)
    await system.workload.progress(40)
    await anyio.sleep(system.dice.uniform(0.5, 2))
    link.heal()


async def resets(system: System) -> None:
    link = any_link(system)
    for _ in range(5):
        await anywhere(system)
        link.reset()


async def flaps(system: System) -> None:
    link = any_link(system)
    for _ in range(FLAPS):
        link.cut()
        await anyio.sleep(system.dice.uniform(0, 0.03))
        link.heal()
        await anyio.sleep(system.dice.uniform(0, 0.2))


async def flap(system: System, times: int) -> None:
    """Let links come and go beside another fault; one that is cut or frozen by that is left to it."""
    for _ in range(times):
        await anyio.sleep(system.dice.uniform(0, 2 * FLAP_INTERVAL))
        any_link(system).reset()
        system.faults["flap"] += 1


async def cut_link(system: System) -> None:
    link = any_link(system)
    await anywhere(system)
    link.cut()
    await system.workload.progress(30)
    link.heal()


async def half_open(system: System) -> None:
    """Nothing passes and nothing closes; then it goes on, or breaks."""
    link = any_link(system)
    await anywhere(system)
    link.freeze()
    await system.workload.progress(30)
    await anyio.sleep(system.dice.uniform(0.5, 3))
    if system.dice.random() < 0.5:
        link.reset()
    link.heal()


LINK = (
    Nemesis("slow-link", slow_link),
    Nemesis("resets", resets),
    Nemesis("flaps", flaps),
    Nemesis("cut-link", cut_link),
    Nemesis("half-open", half_open),
)
