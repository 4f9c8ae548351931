"""What breaks things. Each fault is a function that injects it, heals it, and returns when the system could go on."""

from tests.faults.nemeses.broker import BROKER
from tests.faults.nemeses.clocks import CLOCKS
from tests.faults.nemeses.crash_points import CRASH_POINTS, crash_nemesis
from tests.faults.nemeses.databases import DATABASES
from tests.faults.nemeses.disks import DISKS
from tests.faults.nemeses.link import LINK
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.power import POWER
from tests.faults.nemeses.processes import PROCESSES
from tests.faults.nemeses.refusals import REFUSALS
from tests.faults.nemeses.releases import RELEASES

NEMESES: dict[str, Nemesis] = {
    nemesis.name: nemesis
    for nemesis in (
        *PROCESSES,
        *CRASH_POINTS,
        *BROKER,
        *REFUSALS,
        *LINK,
        *CLOCKS,
        *POWER,
        *DISKS,
        *RELEASES,
        *DATABASES,
    )
}
"""Every fault by name; ``waits_for`` tells what the engine does not promise anything under."""

TOGETHER: dict[str, tuple[Nemesis, ...]] = {
    "refusals": REFUSALS,
    "clocks": CLOCKS,
    "power": POWER,
    "disks": DISKS,
}
"""Faults that one test takes one after the other, to be quick; the campaign takes each by itself."""

__all__ = ["NEMESES", "TOGETHER", "Nemesis", "crash_nemesis"]
