"""Click and collect over real processes that are killed, with a provider that fails and repeats."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.orders import run_orders


@pytest.mark.timeout(400)
async def test_every_order_ends_and_stock_and_money_agree_while_processes_are_killed(seed: int, tmp_path: Path) -> None:
    outcome = await run_orders(tmp_path, seed, count=150, kills=6)
    assert not outcome.violations, f"seed {seed}: {outcome.violations[:5]}"
    assert outcome.kills == 6
    assert set(outcome.statuses) == {"confirmed", "cancelled"}
