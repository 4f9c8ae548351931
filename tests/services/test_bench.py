"""What of the benchmarks needs no package from outside runs at its smallest, checks of its data included."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from bench import (
    backlog,
    bulk_writes,
    consumption,
    draining,
    growth,
    latency,
    nodes,
    on_the_link,
    scaling,
)
from bench.contest import Run
from bench.results_file import load
from bench.suite import main

RATE = "events"
SINGLE_HANDLER = partial(consumption.start_ours, "ledger")
COLUMNS: dict[str, tuple[Run, set[str]]] = {
    "consumption": (partial(consumption.measure, SINGLE_HANDLER, 300, False), {RATE, "processor"}),
    "scaling": (
        partial(scaling.measure, 2, 200),
        {RATE, "consumers", "PostgreSQL", "broker", "all three", "machine busy"},
    ),
    "relay": (partial(draining.relayed, backlog.SINGLE, 300, "2m"), {RATE}),
    "limit": (partial(draining.poured, 1_300, "2m"), {RATE}),
    "leaf that drains": (partial(draining.sourced, 300, "2m"), {RATE}),
    "executemany": (partial(bulk_writes.executemany, 0.1), {RATE}),
    "link": (partial(on_the_link.ours, backlog.SINGLE, 100), {"in all", "to the core", "back"}),
    "leaf's link": (partial(on_the_link.leaf, "s2_best", 100), {"in all", "to the core", "back"}),
    "latency": (
        partial(latency.measure, latency.ours, {100: 5}),
        {f"{name}, 100/s" for name in (*latency.SHARES, *latency.REQUEST_SHARES)},
    ),
    "nodes": (partial(nodes.measure, 50, 100, 60), {RATE, "inbox", "confirmations"}),
    "archive": (partial(growth.archived, 3_000, 200), {RATE, "archive", "database in all"}),
    "epochs": (partial(growth.in_epochs, 20, 100), {RATE, "inbox"}),
}


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_column_measures_and_its_check_holds(column: str, tmp_path: Path) -> None:
    run, measures = COLUMNS[column]
    folder = tmp_path / "column"
    folder.mkdir()
    found = await run(folder)
    assert found.keys() == measures
    assert all(value >= 0 for value in found.values())


def test_a_quick_run_prints_the_tables_and_writes_the_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "performance.json"
    assert main(["--quick", "--only", "epochs", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "| 50 epochs | " in said
    assert "| growth: flat" in said
    assert "its figures say nothing" in said
    (held,) = load(path).benchmarks
    assert [len(found["events"]) for found in held.values.values()] == [1, 1]
    assert main(["--from", str(path)]) == 0
    assert capsys.readouterr().out == said
