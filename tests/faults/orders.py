"""Click and collect under faults: orders over real processes, which are killed; stores and provider fail and repeat.

Every order has to end confirmed or cancelled, and then stock and money have to agree with what the customers are told:
nothing is kept for an order that was cancelled, nobody pays for one, and nobody pays twice.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import msgspec

from tests.faults.fleet import ROOT, Fleet, until

PRODUCTS = 12
"""Products of each store; of the last there is too little for everybody."""

CLIENTS = 12
"""Customers that order at the same time."""

ENDS = ("confirmed", "cancelled")

SETTINGS = """
[services]
edge = ["edge.till", "edge.stock"]
core = ["core.orders"]

[orders]
answer_within = "{answer_within}"
pay_within = "{answer_within}"
keep_for = "48h"
provider_timeout = "2s"

[orders.stand_in]
accounts = "{accounts}"
declines = 0.1
fails = 0.2
slow = 0.03
slow_for = 0.5
twice = 0.2
"""


class OrdersOutcome(NamedTuple):
    """What a run found.

    Attributes:
        statuses: how many orders ended how.
        kills: processes that were killed.
        violations: what must not be; empty where all is well.
    """

    statuses: Counter[str]
    kills: int
    violations: list[str]


class Placed(msgspec.Struct, frozen=True):
    """An order as it was placed."""

    order: str
    store: str
    lines: list[dict[str, int]]
    cents: int


def make_project(folder: Path, answer_within: str) -> Path:
    """Make a project of till, stock and orders, with a provider that is told to fail; return its folder."""
    project = folder / "project"
    project.mkdir(parents=True)
    for part in ("edge", "core", "contracts"):
        (project / part).symlink_to(ROOT / part)
    accounts = folder / "accounts.db"
    (project / "forebay.toml").write_text(SETTINGS.format(accounts=accounts, answer_within=answer_within))
    return project


def make_orders(count: int, stores: list[str], dice: random.Random) -> list[Placed]:
    """Return orders of one to three products."""
    return [
        Placed(
            order=f"o-{number}",
            store=dice.choice(stores),
            lines=[
                {"product": product, "quantity": dice.randint(1, 3)}
                for product in dice.sample(range(1, PRODUCTS + 1), dice.randint(1, 3))
            ],
            cents=dice.randint(1, 10_000),
        )
        for number in range(count)
    ]


async def run_orders(
    folder: Path, seed: int, *, count: int, kills: int, stores: int = 2, answer_within: str = "20s", limit: float = 300
) -> OrdersOutcome:
    """Place orders while processes are killed, wait until all have ended, and compare.

    Args:
        folder: of the run.
        seed: of orders and faults.
        count: orders.
        kills: of core, stores and broker at random, while the orders are placed.
        stores: nodes.
        answer_within: how long a store may take to answer.
        limit: seconds after the last order for all to end.
    """
    dice = random.Random(seed)
    nodes = [f"store-{number}" for number in range(1, stores + 1)]
    orders = make_orders(count, nodes, dice)
    project = make_project(folder, answer_within)
    with Fleet(folder / "data", nodes, folder=project) as fleet:
        await fleet.ready(limit=120)
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            for node in nodes:
                await _receive(client, fleet.tills[node], count)
            done = await _place_and_kill(client, fleet, orders, [*nodes, "core", "broker"], kills, dice)
            statuses = await _ended(client, fleet, orders, limit)
            violations = await _judge(client, fleet, orders, statuses, folder / "accounts.db")
    return OrdersOutcome(Counter(statuses.values()), done, violations)


async def _place_and_kill(
    client: httpx.AsyncClient, fleet: Fleet, orders: list[Placed], victims: list[str], kills: int, dice: random.Random
) -> int:
    """Place all orders, killing a process after each part of them; return how many were killed."""
    parts = [orders[at :: kills + 1] for at in range(kills + 1)]
    killed = 0
    for part in parts:
        async with anyio.create_task_group() as tasks:
            for at in range(CLIENTS):
                tasks.start_soon(_place, client, fleet.core, part[at::CLIENTS])
            if killed < kills:
                victim = dice.choice(victims)
                await anyio.sleep(dice.uniform(0, 0.3))  # the kill falls anywhere into the part; nothing waits for it
                await until(partial(fleet.kill, victim), limit=60, what=f"{victim} runs")
                killed += 1
    return killed


async def _place(client: httpx.AsyncClient, core: str, orders: list[Placed]) -> None:
    for order in orders:

        async def placed(order: Placed = order) -> bool:
            try:
                answer = await client.post(f"{core}/orders", json=msgspec.to_builtins(order))
            except httpx.HTTPError:
                return False
            assert answer.status_code in (200, 201, 503), answer.text
            return answer.status_code != 503

        await until(placed, limit=120, every=0.05, what=f"{order.order} is placed")


async def _receive(client: httpx.AsyncClient, stock: str, count: int) -> None:
    lines = [
        {"product": product, "quantity": 10 * count if product < PRODUCTS else max(1, count // 20)}
        for product in range(1, PRODUCTS + 1)
    ]
    answer = await client.post(
        f"{stock}/stock/receipts", json={"request": "first", "at": "2026-03-01T08:00:00Z", "lines": lines}
    )
    assert answer.status_code in (200, 201), answer.text


async def _ended(client: httpx.AsyncClient, fleet: Fleet, orders: list[Placed], limit: float) -> dict[str, str]:
    """Wait until every order has ended; return how each did, or how it stands when the time is up."""
    statuses: dict[str, str] = {}

    async def look(order: str) -> None:
        try:
            answer = await client.get(f"{fleet.core}/orders/{order}")
            statuses[order] = answer.json()["status"]
        except (httpx.HTTPError, KeyError):
            pass

    async def all_ended() -> bool:
        open_still = [each.order for each in orders if statuses.get(each.order) not in ENDS]
        for at in range(0, len(open_still), 50):
            async with anyio.create_task_group() as tasks:
                for order in open_still[at : at + 50]:
                    tasks.start_soon(look, order)
        return all(statuses.get(each.order) in ENDS for each in orders)

    with contextlib.suppress(AssertionError):  # who has not ended is told with the rest
        await until(all_ended, limit=limit, every=0.5)
    return statuses


async def _judge(
    client: httpx.AsyncClient, fleet: Fleet, orders: list[Placed], statuses: dict[str, str], accounts: Path
) -> list[str]:
    found = [
        f"{each.order} stands at {statuses.get(each.order)}" for each in orders if statuses.get(each.order) not in ENDS
    ]
    charged = _accounts(accounts)
    kept: Counter[tuple[str, int]] = Counter()
    for each in orders:
        if statuses.get(each.order) not in ENDS:
            continue
        confirmed = statuses[each.order] == "confirmed"
        cents, charges, returns = charged.get(each.order, (0, 0, 0))
        if charges - returns != confirmed or charges > 1:
            found.append(f"{each.order} is {statuses[each.order]}, charged {charges} and returned {returns} times")
        if confirmed and cents != each.cents:
            found.append(f"{each.order} costs {each.cents} cents and {cents} were taken")
        answer = await client.get(f"{fleet.tills[each.store]}/stock/orders/{each.order}")
        there = _lines(answer.json()["lines"]) if answer.status_code == 200 else Counter()
        wanted = _lines(each.lines) if confirmed else Counter()
        if there != wanted:
            found.append(f"{each.order} is {statuses[each.order]} and {dict(there)} is kept for it at {each.store}")
        for product, quantity in wanted.items():
            kept[each.store, product] += quantity
    for node, url in fleet.tills.items():
        for product in range(1, PRODUCTS + 1):
            level = (await client.get(f"{url}/stock/products/{product}")).json()
            if level["reserved"] != kept[node, product]:
                found.append(f"{node} keeps {level['reserved']} of {product}, the orders {kept[node, product]}")
    return found


def _lines(lines: list[dict[str, Any]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for line in lines:
        found[line["product"]] += line["quantity"]
    return found


def _accounts(path: Path) -> dict[str, tuple[int, int, int]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("select key, cents, charges, returns from charge").fetchall()
    connection.close()
    return {key: (cents, charges, returns) for key, cents, charges, returns in rows}
