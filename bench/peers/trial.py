"""One trial: a workload, one fault in its middle, more of the workload after the heal, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio

from bench.peers.judging import Acknowledged, Effect, Outcome, judge
from bench.peers.pair import Event, Pair
from forebay.testing.waiting import until
from tests.faults.power_cut import PowerCut

KEYS = 4
"""Writers, each with a key of its own; a writer sends its next event when the last one was acknowledged."""
NUMBERS = 10_000_000
"""Numbers of one key."""
PACE = 0.004
"""Seconds that a writer rests after an acknowledgement."""
RETRY_AFTER = 0.05
"""Seconds until what was not acknowledged is sent again."""
DOWN = 1.0
"""Seconds for which a killed process stays away."""
LIMIT = 90.0
"""Seconds to wait for what must happen before a fault, and for what may still arrive after it."""
QUIET = 12.0
"""Seconds for which a column has to say, without any effect meanwhile, that nothing is on its way."""
WATCH_INTERVAL = 0.02
"""Seconds between two looks at the consumer's database; the times to the next event are this exact."""
IDLE = 1.0
"""Seconds for a program that has nothing to do to write what it still has in memory."""


class TrialError(Exception):
    """The trial itself did not work; it says nothing about the column."""


class Trial:
    """Drives one pair; the faults call its methods.

    Args:
        pair: not started yet.
        folder: for copies and recordings.
        events: of each of the three parts of the workload.
    """

    def __init__(self, pair: Pair, folder: Path, events: int) -> None:
        self.pair = pair
        self.folder = folder
        self._share = max(1, events // KEYS)
        self._next = {f"key-{index}": index * NUMBERS for index in range(KEYS)}
        self._acknowledged: list[Acknowledged] = []
        self._effects: list[Effect] = []
        self._healed = 0.0

    async def run(self, fault: Fault) -> Outcome:
        """Run the whole and judge it.

        Raises:
            TrialError: a step of the trial failed, so that it says nothing about the column.
        """
        try:
            await self.pair.start()
            async with self._watching():
                await self.write_all()
                await self.all_arrived()
                await fault(self)
                await self.write_all()
                await self._settle()
            self._look()
        except AssertionError as error:
            raise TrialError(str(error)) from error
        finally:
            await self.pair.close()
        return judge(self._acknowledged, self._effects, self._healed)

    async def write_all(self) -> None:
        """Write one part of the workload, each event until it is acknowledged."""
        async with asyncio.TaskGroup() as tasks:
            for key in self._next:
                tasks.create_task(self._write(key))

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write one part in the background; the body begins when half of it is acknowledged."""
        goal = len(self._acknowledged) + self._share * KEYS // 2
        task = asyncio.create_task(self.write_all())
        try:
            await until(lambda: len(self._acknowledged) >= goal, limit=LIMIT, what="half of a part is acknowledged")
            yield
            await task
        finally:
            task.cancel()

    def heal(self) -> None:
        """Note that the fault is over: everything that was away accepts connections again."""
        self._healed = time.monotonic()

    async def all_arrived(self) -> None:
        """Wait until everything that was acknowledged took effect."""
        await until(lambda: not self._missing(), limit=LIMIT, what=lambda: f"{self._missing()} events arrive")

    async def stored_at_hub(self) -> None:
        """Wait until the hub has everything that was acknowledged."""

        async def stored() -> bool:
            return await self.pair.stored_at_hub() >= len(self._acknowledged)

        await until(stored, limit=LIMIT, every=0.1, what="the hub has everything")

    def copy(self, store: Path) -> Path:
        """Copy a store whose program is away."""
        to = self.folder / "copy"
        shutil.copytree(store, to)
        return to

    async def record_edge(self) -> PowerCut:
        """Begin to record the edge for a power cut."""
        await anyio.sleep(IDLE)
        power = PowerCut(self.pair.edge_store, self.folder / "power")
        pid = self.pair.edge_pid
        if pid is None:
            raise TrialError("the edge is not there")
        await power.attach(pid)
        return power

    async def _write(self, key: str) -> None:
        for _ in range(self._share):
            self._next[key] += 1
            event = Event(key, self._next[key])
            with anyio.fail_after(LIMIT):
                while not await self.pair.write(event):  # noqa: ASYNC110 - only another try can tell
                    await anyio.sleep(RETRY_AFTER)
            self._acknowledged.append(Acknowledged(event.key, event.number, time.monotonic()))
            await anyio.sleep(PACE)

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                self._look()
                await anyio.sleep(WATCH_INTERVAL)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    def _look(self) -> None:
        try:
            address = f"{self.pair.effects.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=5)) as database:
                rows = database.execute(f"{self.pair.effects_query} limit -1 offset {len(self._effects)}").fetchall()
        except sqlite3.OperationalError:
            return
        now = time.monotonic()
        self._effects += [Effect(key, number, now) for key, number in rows]

    def _missing(self) -> int:
        there = {(each.key, each.number) for each in self._effects}
        return sum((each.key, each.number) not in there for each in self._acknowledged)

    async def _settle(self) -> None:
        """Wait for what is still on its way: all of it, or as long as the column does not say that it is done."""
        deadline = time.monotonic() + LIMIT
        quiet_since, seen = time.monotonic(), -1
        while self._missing() and time.monotonic() < deadline:
            if len(self._effects) != seen or not await self.pair.says_done():
                quiet_since, seen = time.monotonic(), len(self._effects)
            if time.monotonic() - quiet_since > QUIET:
                return
            await anyio.sleep(0.1)


Fault = Callable[[Trial], Awaitable[None]]


async def kill_edge(trial: Trial) -> None:
    """SIGKILL of the edge while it is written to."""
    async with trial.writing():
        trial.pair.kill_edge()
        await anyio.sleep(DOWN)
        await trial.pair.start_edge()
        trial.heal()


async def cut_power_at_edge(trial: Trial) -> None:
    """A power cut of the edge while it is written to and the hub is there."""
    power = await trial.record_edge()
    async with trial.writing():
        trial.pair.kill_edge()
        await asyncio.to_thread(power.cut)
        await trial.pair.start_edge()
        trial.heal()


async def cut_power_at_edge_alone(trial: Trial) -> None:
    """A power cut of the edge that was written to while the hub was away."""
    power = await trial.record_edge()
    trial.pair.kill_hub()
    await trial.write_all()
    trial.pair.kill_edge()
    await asyncio.to_thread(power.cut)
    await trial.pair.start_hub()
    await trial.pair.start_edge()
    trial.heal()


async def roll_back_edge(trial: Trial) -> None:
    """The edge's store goes back to an older copy; everything written since has taken effect in the core."""
    await trial.pair.stop_edge()
    copy = trial.copy(trial.pair.edge_store)
    await trial.pair.start_edge()
    await trial.write_all()
    await trial.all_arrived()
    trial.pair.kill_edge()
    replace(trial.pair.edge_store, copy)
    await trial.pair.start_edge()
    trial.heal()


async def kill_hub(trial: Trial) -> None:
    """SIGKILL of the hub while the edge is written to."""
    async with trial.writing():
        trial.pair.kill_hub()
        await anyio.sleep(DOWN)
        await trial.pair.start_hub()
        trial.heal()


async def roll_back_hub(trial: Trial) -> None:
    """The hub's store goes back to an older copy; it had acknowledged what no consumer had read yet."""
    await trial.pair.stop_hub()
    copy = trial.copy(trial.pair.hub_store)
    await trial.pair.start_hub()
    await _replace_hub(trial, copy)


async def wipe_hub(trial: Trial) -> None:
    """The hub's store is empty, and its streams are made anew; no consumer had read the last events yet."""
    await _replace_hub(trial, None)


async def _replace_hub(trial: Trial, copy: Path | None) -> None:
    await trial.pair.stop_consumer()
    await trial.write_all()
    await trial.stored_at_hub()
    trial.pair.kill_hub()
    replace(trial.pair.hub_store, copy)
    await trial.pair.start_hub()
    await trial.pair.start_consumer()
    trial.heal()


def replace(folder: Path, copy: Path | None) -> None:
    """Put a copy of a folder in its place, or an empty one."""
    shutil.rmtree(folder, ignore_errors=True)
    if copy is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(copy, folder)


FAULTS: dict[str, Fault] = {
    "edge killed": kill_edge,
    "power cut at the edge": cut_power_at_edge,
    "power cut at the edge, hub away": cut_power_at_edge_alone,
    "edge store rolled back": roll_back_edge,
    "hub killed": kill_hub,
    "hub store rolled back": roll_back_hub,
    "hub store wiped": wipe_hub,
}
