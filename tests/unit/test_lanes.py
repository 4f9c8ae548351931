from __future__ import annotations

from typing import Any

import pytest

from forebay.errors import ConfigurationError
from forebay.lanes import DEFAULT_BUDGET, Lane, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("7", 7), ("7 B", 7), ("64MiB", 64 << 20), ("1 KiB", 1024), (" 2GiB ", 2 << 30)]
)
def test_a_size_is_bytes_or_a_number_with_its_unit(text: str | int, size: int) -> None:
    assert parse_size(text, "budget") == size


@pytest.mark.parametrize("text", ["", "MiB", "1.5MiB", "-1", "64MB", "64mib", "٣"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"budget: .* is not a size"):
        parse_size(text, "budget")


def test_a_lane_blocks_at_its_budget() -> None:
    lane = Lane("ledger")
    assert (lane.budget_bytes, lane.when_full) == (DEFAULT_BUDGET, "block")
    assert Lane("ledger", budget="8MiB").budget_bytes == 8 << 20


@pytest.mark.parametrize(
    "wrong", [{"name": "Ledger"}, {"budget": 0}, {"budget": -5}, {"budget": "much"}, {"when_full": "drop-newest"}]
)
def test_a_wrong_lane_is_refused_when_it_is_declared(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Lane(**{"name": "ledger", **wrong})
