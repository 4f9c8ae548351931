"""Each fault by itself: nothing lost, nothing twice, nothing out of order, whatever breaks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.checker import summary
from tests.faults.nemeses import NEMESES, TOGETHER, Nemesis, crash_nemesis
from tests.faults.nemeses.crash_points import AFTER_LOSS, REACHABLE
from tests.faults.scenario import Scenario, run

CRASHES = 3
"""Crash points of one run, drawn by the dice; the campaign takes all of them."""

ALONE = [
    pytest.param(name, marks=[pytest.mark.strace] if nemesis.traced else [])
    for name, nemesis in NEMESES.items()
    if not nemesis.waits_for and name != "crash-point" and not any(nemesis in group for group in TOGETHER.values())
]

GROUPS = [
    pytest.param(name, marks=[pytest.mark.strace] if any(nemesis.traced for nemesis in group) else [])
    for name, group in TOGETHER.items()
]

pytestmark = pytest.mark.timeout(400)


async def _break(name: str, nemeses: Sequence[Nemesis], seed: int, folder: Path, *, requests: int = 60) -> int:
    outcome = await run(Scenario(name=name, nemeses=nemeses, requests=requests, nodes=1), seed, folder)
    assert not outcome.violations, f"seed {seed}: {summary(outcome.violations)}"
    return outcome.events


@pytest.mark.parametrize("name", ALONE)
async def test_every_write_takes_effect_once_and_in_order_under(name: str, seed: int, tmp_path: Path) -> None:
    """The promise, points 1 to 3, under one kind of fault."""
    assert await _break(name, [NEMESES[name]], seed, tmp_path) > 100  # of 90 requests


@pytest.mark.parametrize("name", GROUPS)
async def test_every_write_takes_effect_once_and_in_order_under_each_of(name: str, seed: int, tmp_path: Path) -> None:
    """The same under faults that are near each other, one after the other; the campaign takes each by itself."""
    requests = 20 * len(TOGETHER[name]) + 10  # in each round, and at the end; each is at least an event, often more
    assert await _break(name, TOGETHER[name], seed, tmp_path, requests=20) >= requests


async def test_a_process_may_end_at_any_crash_point(seed: int, tmp_path: Path) -> None:
    """The promise, points 1 to 3, whichever statement was the last."""
    chosen = random.Random(seed).sample(sorted(REACHABLE), CRASHES)
    await _break(f"crash at {chosen}", [crash_nemesis(point) for point in chosen], seed, tmp_path)


async def test_a_process_ends_where_it_repairs_and_where_it_holds(seed: int, tmp_path: Path) -> None:
    """The same where the broker has to lose something first; that they are reached is not left to the dice."""
    nemeses = [crash_nemesis(point) for point in AFTER_LOSS]
    outcome = await run(Scenario(name="crash after a loss", nemeses=nemeses, requests=20, nodes=1), seed, tmp_path)
    assert not outcome.violations, f"seed {seed}: {summary(outcome.violations)}"
    assert set(outcome.history.crashed) == set(AFTER_LOSS)
