"""Software that is changed under a backlog: rolled back to the previous release, and brought up again."""

from __future__ import annotations

from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.system import CORE, System

REQUESTS = 20
"""Requests that each release writes."""


async def roll_back_and_forward(system: System) -> None:
    """The previous release runs on the newer schema; then this one again, on what that has left."""
    node = system.dice.choice(system.nodes)
    if system.runs_previous(node):
        await _change(system, node, previous=False)
    await _change(system, node, previous=True)
    await system.workload.round(REQUESTS, node)  # with its link: it sends, asks and frees as well
    await _change(system, node, previous=False)


async def _change(system: System, node: str, *, previous: bool) -> None:
    """Change a node's release while what it wrote last waits in its database; it is stopped in order, or killed."""
    process, link = system.edges[node], system.links[node]
    link.cut()
    await system.workload.round(REQUESTS, node)
    if system.dice.random() < 0.5:
        process.stop()
    process.kill()
    system.use_release(node, previous=previous)
    process.start()
    await process.ready()
    await system.workload.round(REQUESTS, node)
    link.heal()


async def roll_the_core_back_and_forward(system: System) -> None:
    """The same with the core, whose services read, hold, set timers and emit: nodes write meanwhile."""
    if system.runs_previous(CORE):
        await _change_core(system, previous=False)
    await _change_core(system, previous=True)
    await system.workload.round(REQUESTS)
    await _change_core(system, previous=False)


async def _change_core(system: System, *, previous: bool) -> None:
    """Change the core's release while events wait for it in the stream; it is stopped in order, or killed."""
    if system.dice.random() < 0.5:
        system.core.stop()
    system.core.kill()
    await system.workload.round(REQUESTS)
    system.use_release(CORE, previous=previous)
    system.core.start()
    await system.core.ready()


RELEASES = (
    Nemesis("release-changed", roll_back_and_forward, quiet=True, begins_previous="nodes"),
    Nemesis("core-release-changed", roll_the_core_back_and_forward, quiet=True, in_soak=False, begins_previous="core"),
)
