"""A node whose database is damaged: the process ends when it finds out, and comes up with what can be read."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from pathlib import Path

import anyio
import httpx
import pytest

from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from tests.services.command_line import forebay

ROOT = Path(__file__).parents[2]
PAGE = 4096
SALES = 150


def sale(number: int) -> dict[str, object]:
    lines = [{"product": product, "quantity": 1, "cents": 5} for product in range(1, 11)]
    return {"basket": str(number), "household": 1, "at": "2026-01-01T08:00:00Z", "lines": lines}


@pytest.fixture
def till(tmp_path: Path, nats_server: NatsServer) -> ServiceProcess:
    return ServiceProcess(["edge.till"], node="store-1", project=ROOT, data=tmp_path / "data", nats=nats_server.url)


async def sell(till: ServiceProcess, first: int, last: int) -> int:
    """Sell until ``last`` or until the process refuses or ends; return the last status."""
    status = 0
    async with httpx.AsyncClient(base_url=till.url, trust_env=False) as http:
        for number in range(first, last + 1):
            try:
                status = (await http.post("/till/sales", json=sale(number))).status_code
            except httpx.TransportError:
                return 0
            if status != 201:
                return status
    return status


def places(path: Path) -> tuple[set[int], set[int]]:
    """Return the places of the first epoch that are here, and those that are told to be lost."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    here = {n for (n,) in connection.execute("select sequence from forebay_outbox where epoch = 1")}
    lost = {
        n for first, last in connection.execute("select first, last from forebay_lost") for n in range(first, last + 1)
    }
    connection.close()
    return here, lost


def wipe_some_pages(path: Path) -> None:
    with path.open("r+b") as file:
        pages = path.stat().st_size // PAGE
        for page in random.Random(3).sample(range(pages // 4, pages), pages // 20):
            file.seek(page * PAGE)
            file.write(bytes(PAGE))


async def test_a_node_with_a_damaged_database_comes_up_and_accepts_within_the_time_that_it_has(
    till: ServiceProcess,
) -> None:
    """Bounds: the node comes up within 30 s, whatever was lost is told, and nothing that was damaged is deleted."""
    path = till.data / "nodes" / "store-1" / "till.db"
    try:
        till.start()
        await till.ready()
        assert await sell(till, 1, SALES) == 201
        assert till.stop() == 0
        wipe_some_pages(path)
        begun = time.monotonic()
        till.start()
        await till.ready()
        assert time.monotonic() - begun < 30
        assert await sell(till, SALES + 1, SALES + 10) == 201
        here, lost = places(path)
        assert here | lost == set(range(1, SALES + 1))
        assert lost
        assert not here & lost
        assert len(list(path.parent.glob("till.db.damaged-*"))) == 1
        assert "store.salvaged" in till.log.read_text()
        command = ["gaps", "ls", "--data", str(till.data), "--origin", "store-1", "--kind", "lost", "--json"]
        told = json.loads((await anyio.to_thread.run_sync(lambda: forebay(ROOT, *command))).stdout)
        assert {place for each in told for place in range(each["first"], each["last"] + 1)} == lost
        assert {(each["node"], each["service"], each["consumer"]) for each in told} == {("store-1", "till", "")}
    finally:
        till.kill()


async def test_a_node_that_finds_its_database_damaged_ends_and_salvages_with_the_next_start(
    till: ServiceProcess,
) -> None:
    """Whoever starts it again (systemd, a container engine, ``forebay up``) brings it back."""
    path = till.data / "nodes" / "store-1" / "till.db"
    try:
        till.start()
        await till.ready()
        assert await sell(till, 1, SALES) == 201
        wipe_some_pages(path)
        with path.open("r+b") as file:  # whatever it reads or writes next, it meets this
            file.seek(PAGE * 4)
            file.write(b"\x99" * PAGE * 20)
        async with httpx.AsyncClient(base_url=till.url, trust_env=False) as http:
            assert (await http.get("/metrics")).status_code == 503  # it counts the events
        assert till.wait(30) == 1
        assert "store.damaged" in till.log.read_text()
        till.start()
        await till.ready()
        assert len(list(path.parent.glob("till.db.damaged-*"))) >= 1
        assert await sell(till, 10_000, 10_010) == 201
    finally:
        till.kill()
