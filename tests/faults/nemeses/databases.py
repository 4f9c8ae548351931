"""Databases that go back, or are cloned."""

from __future__ import annotations

from tests.faults.databases import copy_database
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.system import CORE, System

REQUESTS = 40
"""Requests between the copy and the moment when it is put back."""


async def restore_core(system: System) -> None:
    """The core's databases go back to a copy of one moment; the nodes still have what came after it, or the stream."""
    backup = system.folder / "backup"
    system.core.kill()
    for name in system.consumers:
        copy_database(system.database(CORE, name), backup / f"{name}.db")
    system.core.start()
    await system.core.ready()
    await system.workload.round(REQUESTS)
    await system.drain()  # all of it took effect, and was emitted on: none of this may count twice
    system.core.kill()
    for name in system.consumers:
        copy_database(backup / f"{name}.db", system.database(CORE, name))
        system.followers[name].reset()
    system.restored.add(CORE)
    system.core.start()
    await system.core.ready()


async def restore_edge(system: System) -> None:
    """A node's database goes back to an older copy: what was written since and not forwarded yet is gone with it."""
    node = system.dice.choice(system.nodes)
    process, path, backup = system.edges[node], system.database(node, "meter"), system.folder / "edge.db"
    process.kill()
    copy_database(path, backup)
    process.start()
    await process.ready()
    before = {number for number, _ in system.workload.message_ids(node)}
    await system.workload.round(REQUESTS)
    process.kill()
    copy_database(backup, path)
    system.lost_with_disk |= {number for number, _ in system.workload.message_ids(node)} - before
    system.restored.add(node)
    process.start()
    await process.ready()


async def clone_edge(system: System) -> None:
    """A node's disk is cloned, and both run under its name; each takes writes of its own."""
    node = system.dice.choice(system.nodes)
    name = f"{node}-clone-{len(system.edges)}"
    process = system.edges[node]
    process.kill()
    clone = system.clone(node, name)
    copy_database(system.database(node, "meter"), clone.data / "nodes" / node / "meter.db")
    process.start()
    clone.start()
    await process.ready()
    await clone.ready()


DATABASES = (
    Nemesis("core-restored", restore_core, quiet=True, in_soak=False, grace="3600"),
    Nemesis("core-restored-after-freeing", restore_core, quiet=True, waits_for="B4, B5, C5", in_soak=False),
    Nemesis("edge-restored", restore_edge, quiet=True),
    Nemesis("edge-cloned", clone_edge, quiet=True, in_soak=False),
)
