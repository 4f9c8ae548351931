"""The promise over real processes: every sale is in the core's books once, whatever is killed on the way."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import anyio
import pytest

from bench.journey import compare, expected_totals, load_sales, ring_up
from tests.faults.fleet import Fleet, until

KILLS = 21


@pytest.mark.timeout(400)
async def test_sales_are_equal_to_the_cent_while_every_process_is_killed_in_turn(tmp_path: Path) -> None:
    """Edge, core and broker are killed with SIGKILL 21 times in all while five stores ring up a week of sales."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    sales = load_sales(5, 7)
    dice.shuffle(sales)
    nodes = sorted({sale.node for sale in sales})
    victims = [*nodes, "core", "broker"] * (KILLS // (len(nodes) + 2))
    dice.shuffle(victims)
    assert len(victims) >= 20
    with Fleet(tmp_path / "data", nodes) as fleet:
        await fleet.ready(limit=90)
        size = -(-len(sales) // len(victims))
        for at, victim in enumerate(victims):
            part = sales[at * size : (at + 1) * size]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_ring, part, fleet.tills, seed + at)
                await anyio.sleep(dice.uniform(0, 0.3))  # the kill falls anywhere into the part; nothing waits for it
                await until(partial(fleet.kill, victim), limit=30, what=f"{victim} runs")
        expected = expected_totals(sales)
        comparison = await compare(fleet.core, expected, limit=90)
        assert comparison.equal, f"seed {seed}: {comparison.differences}"
        assert not comparison.others
        deaths = fleet.log.read_text().count(" died (") + fleet.log.read_text().count("nats-server died")
        assert deaths >= 20, fleet.log.read_text()


async def _ring(part: list, urls: dict[str, str], seed: int) -> None:  # type: ignore[type-arg]
    await ring_up(part, urls, concurrency=8, seed=seed, stop_after=120)
