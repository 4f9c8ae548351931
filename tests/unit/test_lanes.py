from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forebay.errors import ConfigurationError
from forebay.lanes import DEFAULT_BUDGET, Lane, parse_size
from forebay.project import Project, load_services


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
    "wrong",
    [
        {"name": "Ledger"},
        {"budget": 0},
        {"budget": -5},
        {"budget": "much"},
        {"when_full": "drop-newest"},
        {"drop_from": 0},
        {"drop_from": 1.1},
    ],
)
def test_a_wrong_lane_is_refused_when_it_is_declared(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Lane(**{"name": "ledger", **wrong})


@pytest.mark.parametrize(("when_full", "drops_from"), [("block", 1000), ("drop-oldest", 800), ("keep-latest", 800)])
def test_a_lane_that_drops_does_so_from_80_percent(when_full: Any, drops_from: int) -> None:
    lane = Lane("telemetry", budget=1000, when_full=when_full)
    assert (lane.drops, lane.drop_from_bytes) == (when_full != "block", drops_from)
    assert Lane("telemetry", budget=1000, when_full="drop-oldest", drop_from=0.5).drop_from_bytes == 500


def test_a_service_of_the_core_never_drops_o3(tmp_path: Path) -> None:
    (tmp_path / "ring_core.py").write_text(
        "from forebay import Lane, Service\nring = Service('ring', lanes=[Lane('rings', when_full='drop-oldest')])\n"
    )
    with pytest.raises(ConfigurationError, match="'ring' of the core has lane 'rings' that drops"):
        load_services(Project(folder=tmp_path, core=("ring_core",)), ["ring_core"])
    assert load_services(Project(folder=tmp_path, edge=("ring_core",)), ["ring_core"])
