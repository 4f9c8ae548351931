"""A node, as a process of its own, on a disk that another program fills: 507, draining, and accepting again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import httpx

from forebay import Message, Service, UnitOfWork
from forebay.supervisor import PARENT
from forebay.testing.nats_server import NatsServer, free_port
from forebay.testing.waiting import until
from tests.faults.services.readings import ReadingTaken
from tests.integration.rig import NODE, NOTES, apply, connected, note, numbers, serving
from tests.integration.small_disk import ROOT, fill, on_small_disk, seen_from_outside

PADDING = "x" * 3000

FOREBAY = "from forebay import confirming; confirming.IDLE_INTERVAL = 0.2; from forebay.cli.main import main; main()"
"""``forebay``, which asks every 0.2 s when all is confirmed, not every 5 minutes: the second answer frees (O1)."""


def books() -> Service:
    service = Service("books")

    @service.on(ReadingTaken)
    def write_down(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
        note(tx, message.node, event.number)

    return service


class NodeProcess:
    """``forebay run`` with the meter on a small disk of its own."""

    def __init__(self, folder: Path, nats: str) -> None:
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.log = folder / "node.log"
        port = free_port()
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
        words = ["run", "tests.faults.services.meter", "--node", NODE, "--data", str(self.disk), "--nats", nats]
        words += ["--port", str(port), "--grace", "0", "--disk-reserve", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                on_small_disk(self.disk, "48m", [sys.executable, "-c", FOREBAY, *words]),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), PARENT: str(os.getpid())},
                stdout=log,
                stderr=log,
            )

    @property
    def others(self) -> Path:
        """A file of another program on the node's disk."""
        return seen_from_outside(self.process.pid, self.disk / "others")

    async def says(self, status: int) -> str:
        async def as_wanted() -> httpx.Response | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                answer = await self.http.get("/readyz")
            except httpx.TransportError:
                return None
            return answer if answer.status_code == status else None

        found = await until(as_wanted, limit=40, what=lambda: f"readyz says {status}: {self.log.read_text()}")
        return str(found.text) if found else ""

    async def take(self, numbers: list[int]) -> httpx.Response:
        readings = [{"number": n, "meter": "m", "lane": "ledger", "padding": PADDING} for n in numbers]
        return await self.http.post("/meter/readings", json=readings)

    async def freed(self) -> int:
        text = (await self.http.get("/metrics")).text
        found = re.search(r'^forebay_outbox_freed_total\{[^}]*lane="ledger"[^}]*\} (\S+)', text, re.MULTILINE)
        return int(float(found[1])) if found else 0


@asynccontextmanager
async def node_process(folder: Path, nats: str) -> AsyncIterator[NodeProcess]:
    node = NodeProcess(folder, nats)
    try:
        await node.says(200)
        yield node
    finally:
        await node.http.aclose()
        node.process.kill()
        node.process.wait()


async def test_a_node_on_a_full_disk_answers_507_drains_and_accepts_again_without_a_restart(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Bounds, no loss and no double effect: what was acknowledged arrives once, and nothing that was refused does."""
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(connected(nats_server.url, node="core"))
        await apply(core, "books", services=("meter",))
        node = await stack.enter_async_context(node_process(tmp_path, nats_server.url))
        acknowledged: list[int] = []
        blocks = ([*range(first, first + 100)] for first in count(1, 100))
        for _ in range(20):
            block = next(blocks)
            assert (await node.take(block)).status_code == 201
            acknowledged += block
        fill(node.others)
        while (answer := await node.take(block := next(blocks))).status_code == 201:
            acknowledged += block
        assert answer.status_code == 507, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 507
        assert "disk" in await node.says(503)
        fill(node.others)  # it takes what the ballast gave back as well

        async with serving(books(), core, tmp_path / "data", node="core", schema=NOTES) as center:

            async def drained() -> bool:
                return await node.freed() == len(acknowledged)

            await until(drained, limit=60, what="all that was acknowledged is confirmed and freed")
            assert await numbers(center.store) == acknowledged

            node.others.unlink()
            await node.says(200)
            block = next(blocks)
            assert (await node.take(block)).status_code == 201
            acknowledged += block
            await until(drained, limit=60, what="the node works as before")
            assert await numbers(center.store) == acknowledged
            assert node.process.poll() is None
