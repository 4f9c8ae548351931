"""One run: drive the workload, inject faults, heal, drain, stop, and judge the history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from tests.faults.checker import Violation, check, summary
from tests.faults.history import History
from tests.faults.nemeses import Nemesis
from tests.faults.nemeses.link import flap
from tests.faults.system import System
from tests.faults.workload import UNIT_SIZES, Workload

WATCH_INTERVAL = 0.15
"""Seconds between two looks at what nodes have freed."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What one run does.

    Attributes:
        name: in results and kept histories.
        nemeses: the faults, one a round, in this order.
        requests: written in each round.
        nodes: how many edge nodes there are.
        sizes: readings of a request, drawn by the dice.
        padding: bytes that each reading is made longer by.
        flaps: times that a link is cut and there again, spread over the rounds, beside the other faults.
    """

    name: str
    nemeses: Sequence[Nemesis]
    requests: int = 80
    nodes: int = 2
    sizes: tuple[int, ...] = UNIT_SIZES
    padding: int = 0
    flaps: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """A judged run."""

    history: History
    violations: list[Violation]

    @property
    def events(self) -> int:
        """Events that were acknowledged."""
        return sum(write.message_id is not None for write in self.history.writes)


async def run(scenario: Scenario, seed: int, folder: Path) -> Outcome:
    """Run a scenario; the history is kept as ``history.json`` in the folder where something is wrong.

    Raises:
        AssertionError: the system did not come up, or did not drain; the folder has all logs and databases.
    """
    print(f"scenario {scenario.name}, seed {seed}")  # also in a test: pytest shows it with a failure
    graces = [nemesis.grace for nemesis in scenario.nemeses]
    workload = Workload(seed, sizes=scenario.sizes, padding=scenario.padding)
    nodes = [f"house-{number}" for number in range(1, scenario.nodes + 1)]
    async with System(
        folder,
        seed,
        nodes=nodes,
        grace=max(graces, key=float, default="0"),
        workload=workload,
        small_disks=any(nemesis.small_disks for nemesis in scenario.nemeses),
        begins_previous=scenario.nemeses[0].begins_previous if scenario.nemeses else "",
    ) as system:
        share = scenario.flaps // max(1, len(scenario.nemeses))
        for nemesis in scenario.nemeses:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flap, system, share)
                await _round(system, nemesis, scenario.requests)
            system.sample()
        await workload.round(scenario.requests // 2)
        stuck = await _drain(system)
        system.sample()
        system.stop()
        history = system.history(scenario.name)
    outcome = judge(history, folder)
    if stuck is not None:
        raise AssertionError(f"{stuck}; judged nevertheless: {summary(outcome.violations)}") from stuck
    return outcome


async def _drain(system: System) -> AssertionError | None:
    """Drain; what is wrong with a system that does not is still of interest."""
    try:
        await system.drain()
    except AssertionError as error:
        return error
    return None


def judge(history: History, folder: Path) -> Outcome:
    """Check a history, and keep it where something is wrong."""
    outcome = Outcome(history, check(history))
    if outcome.violations:
        history.save(folder / "history.json")
        (folder / "violations.txt").write_text(summary(outcome.violations, limit=1000))
    return outcome


async def _round(system: System, nemesis: Nemesis, requests: int) -> None:
    workload = system.workload
    if nemesis.quiet:
        await workload.round(requests)
        await nemesis.inject(system)
    else:
        async with anyio.create_task_group() as watching:
            watching.start_soon(_watch, system)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(workload.round, requests)
                await anyio.lowlevel.checkpoint()  # the round is under way
                await workload.progress(system.dice.randrange(1, max(2, requests // 2)))
                await nemesis.inject(system)
            watching.cancel_scope.cancel()
    system.faults[nemesis.name] += 1


async def _watch(system: System) -> None:
    """Look for what is freed too early while the fault lasts: later it may have taken effect after all."""
    while True:
        system.sample()
        await anyio.sleep(WATCH_INTERVAL)
