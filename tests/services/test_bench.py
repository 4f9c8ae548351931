"""What of the benchmarks needs no package from outside runs at its smallest, checks of its data included."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from bench import consumption, draining, growth, latency
from bench.contest import Run
from bench.results_file import load
from bench.suite import main

COLUMNS: dict[str, tuple[Run, set[str]]] = {
    "consumption": (partial(consumption.measure, partial(consumption.start_ours, "ledger"), 300, False), {"events"}),
    "relay": (partial(draining.relayed, 300, "2m"), {"events"}),
    "limit": (partial(draining.poured, 1_300, "2m"), {"events"}),
    "latency": (
        partial(latency.measure, latency.ours, {100: 5}),
        {f"{name}, 100/s" for name in (*latency.SHARES, *latency.REQUEST_SHARES)},
    ),
    "nodes": (partial(growth.nodes, 50), {"events", "inbox", "database in all"}),
}


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_column_measures_and_its_check_holds(column: str, tmp_path: Path) -> None:
    run, measures = COLUMNS[column]
    found = await run(tmp_path)
    assert found.keys() == measures
    assert all(value >= 0 for value in found.values())


def test_a_quick_run_prints_the_table_and_writes_the_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "performance.json"
    assert main(["--quick", "--only", "draining", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "| forebay, always | " in said
    assert "its figures say nothing" in said
    (held,) = load(path).benchmarks
    assert [len(found["events"]) for found in held.values.values()] == [1, 1, 1, 1]
    assert main(["--from", str(path)]) == 0
    assert capsys.readouterr().out == said
