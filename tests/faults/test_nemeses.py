"""Each fault by itself: nothing lost, nothing twice, nothing out of order, whatever breaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from forebay.crash_points import POINTS
from tests.faults.checker import summary
from tests.faults.nemeses import NEMESES, crash_nemesis
from tests.faults.scenario import Scenario, run

CRASHES = 3
"""Crash points of one run, drawn by the dice; the campaign takes all of them."""

READY = [
    pytest.param(name, marks=[pytest.mark.strace] if nemesis.traced else [])
    for name, nemesis in NEMESES.items()
    if not nemesis.waits_for and name != "crash-point"
]

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("name", READY)
async def test_every_write_takes_effect_once_and_in_order_under(name: str, seed: int, tmp_path: Path) -> None:
    """The promise, points 1 to 3, under one kind of fault."""
    nemesis = NEMESES[name]
    outcome = await run(Scenario(name=name, nemeses=[nemesis], requests=60, nodes=1), seed, tmp_path)
    assert not outcome.violations, f"seed {seed}: {summary(outcome.violations)}"
    assert outcome.events > 100  # of 90 requests


async def test_a_process_may_end_at_any_crash_point(seed: int, tmp_path: Path) -> None:
    """The promise, points 1 to 3, whichever statement was the last."""
    chosen = random.Random(seed).sample(sorted(POINTS), CRASHES)
    nemeses = [crash_nemesis(point) for point in chosen]
    outcome = await run(Scenario(name="crash-points", nemeses=nemeses, requests=60, nodes=1), seed, tmp_path)
    assert not outcome.violations, f"seed {seed}, {chosen}: {summary(outcome.violations)}"
