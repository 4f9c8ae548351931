"""Four core processes on one PostgreSQL share the partitions and are killed in turn, while stores ring up real sales.

The totals must be right to the cent, and the guarantee's checker judges what was archived: that nothing is lost or
doubled, and that the sales of each till took effect in the order in which it wrote them.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from bench.journey import Comparison, Sale, compare, expected_totals, load_sales, ring_up
from forebay.testing.nats_server import NatsServer
from forebay.testing.postgres_server import PostgresServer
from forebay.testing.service_process import ServiceProcess
from tests.faults.checker import check, summary
from tests.faults.databases import outbox_state
from tests.faults.fleet import ROOT
from tests.faults.history import ConsumerState, Effect, History, Write
from tests.integration.rig import eventually
from tests.services.command_line import forebay

MEMBERS = 4
PART = 20
"""Sales that are rung up together."""

PACE = 0.5
"""Seconds between the beginnings of two parts, at least: the sales have to last."""

SILENCE = 40.0
"""Seconds for the others to go on; five are promised, on a machine that is not busy with other tests."""

ARCHIVED = """
    select epoch || '-' || sequence as message_id, node, service, lane,
      convert_from(body, 'UTF8')::json ->> 'basket' as basket from archive.archived order by id"""


class Chain:
    """The stores' tills, the core's processes, and what was rung up."""

    def __init__(self, tills: dict[str, ServiceProcess], members: list[ServiceProcess], database: str) -> None:
        self.tills = tills
        self.members = members
        self.rung: list[Sale] = []
        self.stopped = False
        self._database = database

    async def ring(self, sales: list[Sale], seed: int) -> None:
        """Ring up sales until told to stop; a till that is away is waited for."""
        urls = {name: till.url for name, till in self.tills.items()}
        for at in range(0, len(sales), PART):
            begun, part = time.monotonic(), sales[at : at + PART]
            await ring_up(part, urls, concurrency=8, seed=seed + at, stop_after=120)
            self.rung += part
            if self.stopped:
                return
            await anyio.sleep(max(0.0, begun + PACE - time.monotonic()))
        raise AssertionError("every sale was rung up before the last process was killed")

    def rows(self, query: str) -> list[dict[str, Any]]:
        with psycopg.connect(self._database, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query.encode()).fetchall()

    async def goes_on(self) -> float:
        """Wait until sales of each store that are rung up after now took effect everywhere; return the seconds."""
        begun, wanted = time.monotonic(), Counter(sale.node for sale in self.rung)

        async def behind() -> bool:
            total = {row["node"]: row["sales"] for row in self.rows("select node, sales from sales.store_total")}
            kept = {
                row["node"]: row["events"]
                for row in self.rows("select node, count(*) as events from archive.archived group by node")
            }
            return all(min(total.get(name, 0), kept.get(name, 0)) > wanted[name] + PART for name in self.tills)

        await eventually(behind, SILENCE, every=0.1)
        return time.monotonic() - begun

    async def complete(self) -> bool:
        """Whether everything is archived; of the totals ``compare`` tells that."""
        return bool(self.rows("select count(*) as n from archive.archived")[0]["n"] >= len(self.rung))

    def history(self, seed: int) -> History:
        """What the tills wrote and the archive has."""
        outboxes = [
            outbox_state(till.data / f"nodes/{name}/till.db", name, "till") for name, till in self.tills.items()
        ]
        events = {(outbox.node, number): event for outbox in outboxes for number, event in outbox.domain}
        writes = [
            Write(
                int(sale.basket),
                sale.node,
                sale.basket,
                "ledger",
                int(sale.basket),
                events[sale.node, int(sale.basket)],
            )
            for sale in self.rung
        ]
        effects = [
            Effect(row["message_id"], row["node"], row["service"], row["lane"], row["basket"], int(row["basket"]))
            for row in self.rows(ARCHIVED)
        ]
        totals = {f"{each.node}/till/{each.meter}": (1, each.number) for each in effects}
        parked = [
            str(row) for name in ("sales", "archive") for row in self.rows(f"select * from {name}.forebay_parked")
        ]
        archive = ConsumerState("archive", effects, totals, parked)
        return History(seed=seed, scenario="group", writes=writes, outboxes=outboxes, consumers=[archive])


@asynccontextmanager
async def chain(
    server: NatsServer, database: PostgresServer, folder: Path, stores: Iterable[str]
) -> AsyncIterator[Chain]:
    applied = await anyio.to_thread.run_sync(partial(forebay, ROOT, "apply", "--nats", server.url))
    assert applied.returncode == 0, applied.stderr
    url = database.create_database()
    async with AsyncExitStack() as stack:

        def started(*services: str, node: str, data: Path, **environment: str) -> ServiceProcess:
            process = ServiceProcess(
                services, node=node, project=ROOT, data=data, nats=server.url, environment=environment
            )
            stack.callback(process.kill)
            process.start()
            return process

        tills = {name: started("edge.till", node=name, data=folder / name) for name in stores}
        members = [
            started("core.archive", "core.sales", node="core", data=folder / f"member-{at}", FOREBAY_STORE=url)
            for at in range(MEMBERS)
        ]
        for process in [*tills.values(), *members]:
            await process.ready()
        yield Chain(tills, members, url)


async def killed_in_turn(found: Chain, sales: list[Sale], seed: int, kills: int) -> tuple[list[float], Comparison]:
    """Kill one process after the other under load; return how long the others took, and what the totals say then."""
    dice, took = random.Random(seed), []
    dice.shuffle(sales)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.ring, sales, seed)
        await found.goes_on()
        for number in range(kills):
            victim = found.members[number % MEMBERS]
            victim.kill()
            took.append(await found.goes_on())
            victim.start()
            await victim.ready()
        found.stopped = True
    await eventually(found.complete, 90)
    return took, await compare(found.members[0].url, expected_totals(found.rung), limit=90)


def judge(found: Chain, seed: int, comparison: Comparison) -> None:
    assert comparison.equal, f"seed {seed}: {comparison.differences}"
    assert not comparison.others
    violations = check(found.history(seed))
    assert not violations, f"seed {seed}: {summary(violations)}"


async def test_sales_are_equal_to_the_cent_while_the_processes_of_a_group_are_killed_s7(
    nats_server: NatsServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    sales = load_sales(2, 365)
    async with chain(nats_server, postgres_server, tmp_path, sorted({sale.node for sale in sales})) as found:
        _, comparison = await killed_in_turn(found, sales, seed, 2)
        judge(found, seed, comparison)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
async def test_each_of_four_processes_is_killed_ten_times_under_the_sales_of_five_stores_s7(
    nats_server: NatsServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    sales = load_sales(5, 365)
    async with chain(nats_server, postgres_server, tmp_path, sorted({sale.node for sale in sales})) as found:
        took, comparison = await killed_in_turn(found, sales, seed, 10 * MEMBERS)
        judge(found, seed, comparison)
    cents = sum(actual.cents for _, actual in comparison.stores.values())
    print(
        f"{len(took)} kills; {len(found.rung)} sales of {len(found.tills)} stores, {cents / 100:.2f} in all;"
        f" others went on within {max(took):.1f} s, in the middle {sorted(took)[len(took) // 2]:.1f} s"
    )
