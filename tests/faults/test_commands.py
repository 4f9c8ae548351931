"""Core, node and broker are killed again and again while commands flow: each has one effect, and so has each reply."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest

from forebay.command import Destination
from forebay.jetstream.requesting import requests
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.jetstream.topology.nodes import durable_of
from forebay.jetstream.topology.registering import register
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.services.command_project import NODE, write_command_project

pytestmark = pytest.mark.timeout(240)

KILLS = 5
STOCK = Destination(NODE, "stock")


class Shop:
    """The core and one node of a project, and the orders that were answered."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.server = server
        data = folder / "data"
        self.core = ServiceProcess(["core.orders"], node="core", project=folder, data=data, nats=server.url)
        self.node = ServiceProcess(["edge.stock"], node=NODE, project=folder, data=data, nats=server.url)
        self.placed: list[int] = []
        self.stopping = False

    async def prepare(self) -> None:
        async with requests(self.server.url) as request:
            await apply_topology(request, desired(None, derived=[consumer_spec("orders", ["stock"])]))
            await register(request, STOCK)

    async def place_orders(self) -> None:
        """Place orders one after the other, each again until it is answered."""
        number = 0
        async with httpx.AsyncClient(base_url=self.core.url, timeout=10, trust_env=False) as http:
            while not self.stopping:
                number += 1
                await until(partial(self._placed, http, number), limit=60, what=f"order {number} is answered")
                self.placed.append(number)

    async def _placed(self, http: httpx.AsyncClient, number: int) -> bool:
        try:
            return (await http.post(f"/orders/orders/{number}")).status_code == 201
        except httpx.HTTPError:
            return False

    async def seen(self, process: ServiceProcess, path: str) -> list[int]:
        async with httpx.AsyncClient(base_url=process.url, timeout=10, trust_env=False) as http:
            try:
                return list((await http.get(path)).json())
            except httpx.HTTPError:
                return []

    async def kill(self, what: str) -> None:
        """Kill one of the three, at once or while it starts, and start it again."""
        if what == "broker":
            self.server.kill()
            await self.server.start()
            return
        process = self.core if what == "core" else self.node
        process.kill()
        process.start()


async def test_kills_of_core_node_and_broker_lose_double_and_reorder_no_command(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    shop, chance = Shop(write_command_project(tmp_path / "project"), nats_server), random.Random(11)
    await shop.prepare()
    assert durable_of(STOCK) == "store-330-stock"
    shop.core.start()
    shop.node.start()
    try:
        await shop.core.ready()
        await shop.node.ready()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shop.place_orders)
            for what in ["core", "node", "broker", *chance.choices(["core", "node", "broker"], k=KILLS - 3)]:
                wanted = len(shop.placed) + chance.randint(3, 25)
                await until(lambda: len(shop.placed) >= wanted, limit=60, what="orders are placed")  # noqa: B023
                await shop.kill(what)
            wanted = len(shop.placed) + 5
            await until(lambda: len(shop.placed) >= wanted, limit=60, what="orders are placed")
            shop.stopping = True

        async def done() -> bool:
            return len(await shop.seen(shop.core, "/orders/replies")) >= len(shop.placed)

        await until(done, limit=90, what="each order has a reply")
        assert await shop.seen(shop.node, "/stock/reservations") == shop.placed, "once each, in order"
        assert await shop.seen(shop.core, "/orders/replies") == shop.placed, "their replies too"
    finally:
        shop.core.kill()
        shop.node.kill()
