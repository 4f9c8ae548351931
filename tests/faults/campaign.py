"""The long campaign: every fault many times, all mixed, every system call, power cuts, large backlogs.

It is cut into items, each with a seed of its own that follows from the campaign's. What an item found is written into
a state file at once: a campaign that was stopped goes on where it was.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec

from forebay.testing.waiting import until
from tests.faults.backlog import FIRST, METER, write_backlog
from tests.faults.checker import summary
from tests.faults.fork_server import ForkServer
from tests.faults.history import Write
from tests.faults.nemeses import NEMESES, crash_nemesis
from tests.faults.nemeses.crash_points import REACHABLE
from tests.faults.orders import run_orders
from tests.faults.power import cuts, judge, record
from tests.faults.scenario import Outcome, Scenario, run
from tests.faults.scenario import judge as judge_history
from tests.faults.syscalls import SCRIPTS, Point, disturb, points, reopens_in
from tests.faults.system import System

SIZES = (5, 10, 20, 40)
"""Readings of one request, drawn by the dice."""

ROUNDS = 5
"""Faults of one kind in one run."""

RUNS = 3
"""Runs of each kind."""

SOAKS, SOAK_ROUNDS = 35, 20
"""Runs with all kinds mixed, and faults in each."""

FLAPPING, FLAPS = 5, 1000
"""Runs of this kind in which links come and go all the time as well, and how often in one."""

REQUESTS = 80
"""Requests around one fault."""

CHUNK = 100
"""System calls of one item."""

UNREACHED = 0.05
"""Share of an item's system calls that may not be reached: threads take turns, and a run makes a few more or less."""

POWER_RUNS, POWER_SIZES = 4, {"write": 20, "consume": 45}
"""Recordings of each path, and their units or events."""

BACKLOG, RESTARTS, RESTART_RUNS = 500_000, 100, 10
"""Events that wait on a node, kills and starts in one run, and runs."""

DRAINED = 1_000_000

ORDERS, ORDER_KILLS, ORDER_RUNS = 1000, 15, 10
"""Orders of one run, processes that are killed meanwhile, and runs."""

READY_LIMIT = 3.0
"""Seconds for a node with a backlog to be ready."""

FLAT = 5.0
"""MiB by which a process may grow while it drains a backlog."""


class Finding(msgspec.Struct, kw_only=True):
    """What one item found.

    Attributes:
        kind: the row of the table that it counts for.
        faults: injected, by kind.
        events: acknowledged and judged.
        violations: what must not be; empty where all is well.
        figures: measured on the way.
        seconds: that it took.
    """

    kind: str
    seed: int
    faults: dict[str, int] = {}
    events: int = 0
    violations: list[str] = []
    figures: dict[str, float] = {}
    seconds: float = 0.0


class Item(msgspec.Struct, frozen=True):
    """One part of the campaign; ``work`` gets its seed and a folder of its own."""

    name: str
    kind: str
    work: Callable[[int, Path], Awaitable[Finding]]


class State(msgspec.Struct):
    """What is known so far, as it is kept on disk."""

    seed: int
    started: str
    versions: dict[str, str]
    findings: dict[str, Finding] = {}


def items(folder: Path) -> list[Item]:
    """Return all items; those of one kind stand apart, so that a part of the campaign has something of everything."""
    ready = [nemesis for nemesis in NEMESES.values() if not nemesis.waits_for]
    groups: list[list[Item]] = [
        [Item(f"fault/{each.name}/{number}", each.name, partial(_fault, each.name)) for each in ready]
        for number in range(RUNS)
    ]
    groups.append([Item(f"crash/{point}", "crash-points", partial(_crash, point)) for point in REACHABLE])
    groups.append([Item(f"soak/{number}", "mixed", _soak) for number in range(SOAKS)])
    groups.append([Item(f"soak/flapping/{number}", "flapping", _flapping) for number in range(FLAPPING)])
    for name in SCRIPTS:
        known = points(SCRIPTS[name], _fresh(folder / "points" / name))
        chunks = range(0, len(known), CHUNK)
        groups.append(
            [
                Item(f"syscalls/{name}/{at}", f"syscalls-{name}", partial(_syscalls, name, known[at : at + CHUNK]))
                for at in chunks
            ]
        )
        powers = range(POWER_RUNS)
        groups.append([Item(f"power/{name}/{number}", f"power-{name}", partial(_power, name)) for number in powers])
    groups.append([Item(f"backlog/restarts/{number}", "backlog", _restarts) for number in range(RESTART_RUNS)])
    groups.append([Item("backlog/drain", "backlog", _drain)])
    groups.append([Item(f"orders/{number}", "orders", _orders) for number in range(ORDER_RUNS)])
    spread = [(at / len(group), item) for group in groups for at, item in enumerate(group)]
    return [item for _, item in sorted(spread, key=lambda each: each[0])]


def seed_of(campaign: int, item: Item) -> int:
    """Return an item's seed."""
    return zlib.crc32(f"{campaign}/{item.name}".encode())


async def work_off(
    state: State, wanted: Sequence[Item], folder: Path, deadline: float, keep: Callable[[State], None]
) -> None:
    """Work on what is not done, until the deadline (of ``time.monotonic``); failing items leave their folder behind."""
    for number, item in enumerate(wanted, 1):
        if item.name in state.findings:
            continue
        if time.monotonic() > deadline:
            print("the time is up; the next run goes on from here")
            return
        seed, place, began = (
            seed_of(state.seed, item),
            _fresh(folder / "runs" / item.name.replace("/", "-")),
            time.monotonic(),
        )
        try:
            finding = await item.work(seed, place)
        except Exception as error:  # noqa: BLE001 - what stops a run is a finding, and the campaign goes on
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            finding = Finding(kind=item.kind, seed=seed, violations=[f"stuck: {said}"])
        finding.seconds = time.monotonic() - began
        state.findings[item.name] = finding
        keep(state)
        verdict = "ok" if not finding.violations else f"VIOLATED, see {place}: {finding.violations[0]}"
        count = f"{sum(finding.faults.values())} faults, {finding.events} events"
        print(
            f"[{number}/{len(wanted)}] {item.name} seed {seed}: {count}, {finding.seconds:.0f} s: {verdict}", flush=True
        )
        if not finding.violations:
            shutil.rmtree(place, ignore_errors=True)


async def _fault(name: str, seed: int, folder: Path) -> Finding:
    scenario = Scenario(name=name, nemeses=[NEMESES[name]] * ROUNDS, requests=REQUESTS, sizes=SIZES)
    return _finding(name, await run(scenario, seed, folder))


async def _crash(point: str, seed: int, folder: Path) -> Finding:
    """End a process at one point several times; that it was never reached is a finding, too."""
    scenario = Scenario(name=point, nemeses=[crash_nemesis(point)] * ROUNDS, requests=REQUESTS, sizes=SIZES)
    outcome = await run(scenario, seed, folder)
    finding = _finding("crash-points", outcome)
    finding.faults = dict(outcome.history.crashed)
    if point not in finding.faults:
        finding.violations.append(f"not reached: {point}")
    return finding


async def _soak(seed: int, folder: Path) -> Finding:
    return _finding("mixed", await run(_mixed(seed), seed, folder))


async def _flapping(seed: int, folder: Path) -> Finding:
    return _finding("flapping", await run(msgspec.structs.replace(_mixed(seed), flaps=FLAPS), seed, folder))


def _mixed(seed: int) -> Scenario:
    names = [name for name, nemesis in NEMESES.items() if nemesis.in_soak and not nemesis.waits_for]
    chosen = random.Random(f"{seed}/soak").choices(names, k=SOAK_ROUNDS)
    return Scenario(name="soak", nemeses=[NEMESES[name] for name in chosen], requests=REQUESTS, nodes=3, sizes=SIZES)


def _finding(kind: str, outcome: Outcome) -> Finding:
    return Finding(
        kind=kind,
        seed=outcome.history.seed,
        faults=outcome.history.faults,
        events=outcome.events,
        violations=[f"{each.kind}: {each.detail}" for each in outcome.violations[:20]],
    )


async def _syscalls(name: str, chosen: Sequence[Point], seed: int, folder: Path) -> Finding:
    def work() -> Finding:
        script = SCRIPTS[name]
        wrong, reached = list[str](), 0
        with ForkServer(script.module) as server:
            for number, point in enumerate(chosen):
                found = disturb(script, server, point, folder / str(number))
                reached += found.reached
                wrong += [f"{point}: {each}" for each in found.wrong]
                if not found.wrong:
                    shutil.rmtree(folder / str(number))
        if reached < (1 - UNREACHED) * len(chosen):
            wrong.append(f"not reached: {len(chosen) - reached} of {len(chosen)}")
        return Finding(kind=f"syscalls-{name}", seed=seed, faults={f"syscalls-{name}": reached}, violations=wrong)

    return await anyio.to_thread.run_sync(work)


async def _power(name: str, seed: int, folder: Path) -> Finding:
    def work() -> Finding:
        script, disk = SCRIPTS[name], _fresh(folder / "disk")
        count, wrong = 0, list[str]()
        for cut in cuts(record(script, folder / "run", POWER_SIZES[name]), random.Random(seed)):
            count += 1
            found = judge(script, cut, disk)
            found = found or (reopens_in(script, disk / "x.db") if count % 10 == 0 else [])
            wrong += [f"{cut}: {each}" for each in found]
        return Finding(kind=f"power-{name}", seed=seed, faults={f"power-{name}": count}, violations=wrong)

    return await anyio.to_thread.run_sync(work)


async def _restarts(seed: int, folder: Path) -> Finding:
    """Kill and start a node again and again while a large backlog waits on it."""
    async with System(folder, seed, nodes=["house-1"]) as system:
        edge, link = system.edges["house-1"], system.links["house-1"]
        link.cut()
        edge.kill()
        await write_backlog(system.database("house-1", "meter"), "house-1", BACKLOG)
        times, memory = [], []
        for _ in range(RESTARTS):
            edge.kill()
            began = time.monotonic()
            edge.start()
            await edge.ready()
            times.append(time.monotonic() - began)
            memory.append(_resident(edge.pid))
    figures = {"ready_max_s": max(times), "ready_median_s": sorted(times)[len(times) // 2], "resident_mib": max(memory)}
    wrong = [f"ready after {max(times):.2f} s, the limit is {READY_LIMIT:g}"] if max(times) > READY_LIMIT else []
    faults = {"restart-with-backlog": RESTARTS}
    return Finding(kind="backlog", seed=seed, faults=faults, events=0, violations=wrong, figures=figures)


async def _orders(seed: int, folder: Path) -> Finding:
    """Click and collect: every order ends, and stock and money agree."""
    outcome = await run_orders(folder, seed, count=ORDERS, kills=ORDER_KILLS)
    return Finding(
        kind="orders",
        seed=seed,
        faults={"kill": outcome.kills},
        events=outcome.statuses.total(),
        violations=outcome.violations,
    )


async def _drain(seed: int, folder: Path) -> Finding:
    """A long outage: a million events wait on a node, then the link is there."""
    async with System(folder, seed, nodes=["house-1"]) as system:
        edge, link = system.edges["house-1"], system.links["house-1"]
        link.cut()
        edge.kill()
        path = system.database("house-1", "meter")
        await write_backlog(path, "house-1", DRAINED)
        with sqlite3.connect(path) as connection:
            rows = connection.execute("select number, event from reading").fetchall()
        system.workload.writes |= {
            number: Write(number, "house-1", METER, "ledger", number, event) for number, event in rows
        }
        edge.start()
        await edge.ready()
        await anyio.sleep(2)
        memory = [_resident(edge.pid)]
        link.heal()
        began = time.monotonic()
        books = system.followers["books"]

        def drained() -> bool:
            books.refresh()
            memory.append(_resident(edge.pid))
            return len(books.numbers) >= DRAINED

        await until(drained, limit=3600, every=0.5, what=lambda: f"{len(books.numbers)} of {DRAINED} took effect")
        seconds = time.monotonic() - began
        await system.drain(limit=1200)
        memory.append(_resident(edge.pid))
        system.stop()
        outcome = judge_history(system.history("drain"), folder)
    assert min(number for number, _ in rows) > FIRST
    settled = memory[len(memory) // 4 :]  # caches and buffers are filled in the first quarter
    growth = max(settled) - min(settled)
    figures = {"events_per_s": DRAINED / seconds, "resident_min_mib": min(memory), "resident_max_mib": max(memory)}
    finding = _finding("backlog", outcome)
    finding.figures = {**figures, "resident_growth_mib": growth}
    finding.faults = {"outage-with-backlog": 1}
    if growth > 2 * FLAT:
        finding.violations.append(f"memory went from {min(settled):.1f} to {max(settled):.1f} MiB")
    if finding.violations:
        print(summary(outcome.violations), file=sys.stderr)
    return finding


def _resident(pid: int | None) -> float:
    """Return a process's resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} is gone")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
