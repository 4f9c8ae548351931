"""Processes that are killed or frozen."""

from __future__ import annotations

import anyio

from forebay.testing.service_process import ServiceProcess
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.system import ACK_WAIT, System

MOMENT = 0.25
"""Seconds; the most that a fault waits for before it strikes, so that it strikes anywhere."""


async def anywhere(system: System) -> None:
    """Let a random moment pass; nothing is waited for."""
    await anyio.sleep(system.dice.uniform(0, MOMENT))


def any_edge(system: System) -> ServiceProcess:
    """Draw an edge node's process."""
    return system.edges[system.dice.choice(sorted(system.edges))]


async def kill_edge(system: System) -> None:
    process = any_edge(system)
    await anywhere(system)
    await system.restart(process)


async def kill_core(system: System) -> None:
    await anywhere(system)
    await system.restart(system.core)


async def kill_broker(system: System) -> None:
    await anywhere(system)
    system.broker.kill()
    await anywhere(system)
    await system.broker.start()


async def kill_everything(system: System) -> None:
    await anywhere(system)
    for process in system.processes():
        process.kill()
    system.broker.kill()
    await system.broker.start()
    for process in system.processes():
        process.start()
    for process in system.processes():
        await process.ready()


async def kill_at_start(system: System) -> None:
    """Kill a process again and again while it starts: recovery itself is interrupted."""
    process = system.dice.choice(system.processes())
    for _ in range(4):
        process.kill()
        process.start()
        await anyio.sleep(system.dice.uniform(0.3, 1.2))
    await system.restart(process)


async def freeze_core(system: System) -> None:
    """SIGSTOP for longer than the broker waits for an acknowledgement: a zombie comes back."""
    await anywhere(system)
    system.core.pause()
    await anyio.sleep(ACK_WAIT * system.dice.uniform(1.2, 1.6))
    system.core.resume()


async def freeze_edge(system: System) -> None:
    process = any_edge(system)
    await anywhere(system)
    process.pause()
    await anyio.sleep(system.dice.uniform(1, 4))
    process.resume()


async def freeze_broker(system: System) -> None:
    await anywhere(system)
    system.broker.pause()
    await anyio.sleep(system.dice.uniform(1, 4))
    system.broker.resume()


PROCESSES = (
    Nemesis("kill-edge", kill_edge),
    Nemesis("kill-core", kill_core),
    Nemesis("kill-broker", kill_broker),
    Nemesis("kill-everything", kill_everything),
    Nemesis("kill-at-start", kill_at_start),
    Nemesis("freeze-core", freeze_core),
    Nemesis("freeze-edge", freeze_edge),
    Nemesis("freeze-broker", freeze_broker),
)
