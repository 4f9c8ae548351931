"""A node whose process is killed again and again: its read model has every event once and in order, with no link."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from forebay.testing.crash_points import CrashPoints
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.services.following_project import write_following_project
from tests.services.own_project import NODE

pytestmark = pytest.mark.timeout(240)

POINTS = ["consume.applied", "consume.positioned", "consume.committed"]
KILLS = 3
AWAY = "nats://127.0.0.1:1"


class House:
    """A node without a link, and what it answered that it has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[str] = []
        self._tried = 0

    def process(self, environment: dict[str, str] | None = None) -> ServiceProcess:
        services = ["edge.door", "edge.days"]
        return ServiceProcess(
            services, node=NODE, project=self.folder, data=self.folder / "data", nats=AWAY, environment=environment
        )

    @asynccontextmanager
    async def started(self, environment: dict[str, str] | None = None) -> AsyncIterator[ServiceProcess]:
        process = self.process(environment)
        process.start()
        try:
            yield process
        finally:
            process.kill()

    async def open_doors(self, process: ServiceProcess, count: int) -> None:
        """Open doors one after the other, until the process is gone; an answer says that it is written."""
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
            for _ in range(count):
                self._tried += 1
                door = f"door-{self._tried}"
                try:
                    answer = await http.post("/door/openings", json={"door": door})
                except httpx.TransportError:
                    return
                if answer.status_code == 201:
                    self.written.append(door)

    async def open_doors_once_it_answers(self, process: ServiceProcess, count: int) -> None:
        """Open doors; what the life before left undone may end this one before it answers."""
        with suppress(AssertionError):
            await process.ready()
        await self.open_doors(process, count)

    async def has_written(self, count: int) -> None:
        """Wait until so many doors were answered."""
        await until(lambda: len(self.written) >= count, limit=60, what=lambda: f"{count} of {len(self.written)}")

    async def has_everything(self, process: ServiceProcess) -> None:
        """Wait until the read model has all that was answered; each once, in order."""
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:

            async def seen() -> list[str]:
                return list((await http.get("/days/doors")).json())

            async def everything() -> bool:
                return set(self.written) <= set(await seen())

            await until(everything, limit=60, what="the read model has what was answered")
            doors = await seen()
        assert len(doors) == len(set(doors)), "no event has two effects"
        assert doors == sorted(doors, key=lambda door: int(door.removeprefix("door-"))), "in the order of writing"


async def ended(process: ServiceProcess, point: str) -> None:
    """Wait until a crash point has ended a process."""
    await until(lambda: not process.running, limit=60, what=f"{point} is reached")


async def test_a_process_that_is_killed_around_each_commit_follows_exactly_once(tmp_path: Path) -> None:
    house = House(write_following_project(tmp_path / "project"))
    for point in POINTS:
        async with house.started(CrashPoints().environment(point)) as process:
            await house.open_doors_once_it_answers(process, 5)
            await ended(process, point)
    async with house.started() as process:
        await process.ready()
        await house.open_doors(process, 1)
        await house.has_everything(process)


async def test_kills_at_any_moment_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    house, chance = House(write_following_project(tmp_path / "project")), random.Random(7)
    for _ in range(KILLS):
        async with house.started() as process:
            await process.ready()
            wanted = len(house.written) + chance.randint(5, 60)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(house.open_doors, process, 1000)
                await house.has_written(wanted)
                process.kill()
    async with house.started() as process:
        await process.ready()
        await house.open_doors(process, 1)
        await house.has_everything(process)
