"""``forebay outbox status`` and the backup commands, over data folders that real processes have made."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from forebay.cli.status import _drains_in, _Live
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from tests.services.command_line import called

ROOT = Path(__file__).parents[2]
SALES = [
    {
        "basket": str(number),
        "household": 1,
        "at": "2026-01-01T08:00:00Z",
        "lines": [{"product": 1, "quantity": 1, "cents": 5}],
    }
    for number in range(1, 51)
]


def listed(data: Path, *options: str) -> list[dict[str, Any]]:
    done = called(ROOT, "outbox", "status", "--data", str(data), "--json", *options)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def ledger(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["lane"] == "ledger")


@pytest.fixture
def till(tmp_path: Path, nats_server: NatsServer) -> ServiceProcess:
    return ServiceProcess(["edge.till"], node="store-1", project=ROOT, data=tmp_path / "data", nats=nats_server.url)


async def sold(till: ServiceProcess) -> None:
    till.start()
    await till.ready()
    async with httpx.AsyncClient(base_url=till.url, trust_env=False) as http:
        for sale in SALES:
            assert (await http.post("/till/sales", json=sale)).status_code == 201


async def test_the_status_tells_backlog_budget_and_how_long_it_lasts(till: ServiceProcess) -> None:
    try:
        await sold(till)
        running = ledger(listed(till.data, "--measure", "0.1"))
        assert (running["pending"], running["on_disk"], running["lost"]) == (50, 50, 0)
        assert running["budget"] > running["bytes"] > 0
        assert running["drains_in_seconds"] is None  # nobody confirms
        assert till.stop() == 0
    finally:
        till.kill()
    database = sqlite3.connect(till.data / "nodes" / "store-1" / "till.db")
    # As if written over ten days: a twentieth of them is there already for each day that has passed.
    database.execute("update forebay_outbox set written_at = written_at - (50 - sequence) * 17632653")
    database.commit()
    database.close()
    stopped = ledger(listed(till.data))
    assert stopped["pending"] == 50
    assert stopped["budget"] == running["budget"]
    per_day = stopped["bytes"] / 10
    assert stopped["days_left"] == pytest.approx((stopped["budget"] - stopped["bytes"]) / per_day, rel=0.01)
    table = called(ROOT, "outbox", "status", "--data", str(till.data)).stdout
    assert table.split("\n")[0].split() == [
        *("node", "service", "lane", "destination", "pending", "on_disk", "bytes", "budget"),
        *("used", "oldest", "drains_in", "days_left", "lost"),
    ]


def test_the_time_to_drain_follows_the_slowest_consumer() -> None:
    before = _Live({"sales": 100, "archive": 100}, {"sales": 0, "archive": 0}, 1, at=10.0)
    after = _Live({"sales": 60, "archive": 90}, {"sales": 40, "archive": 10}, 1, at=12.0)
    assert _drains_in(90, before, after) == 18.0
    assert _drains_in(0, before, after) == 0.0
    assert _drains_in(90, after, after) is None
    assert _drains_in(90, None, after) is None


async def test_a_running_node_is_backed_up_and_restored_once_it_has_stopped(
    till: ServiceProcess, tmp_path: Path
) -> None:
    archive = str(tmp_path / "backup.tar")
    data = str(till.data)
    try:
        await sold(till)
        done = called(ROOT, "backup", "--data", data, "--to", archive, "--json")
        assert (done.returncode, json.loads(done.stdout)[0]["service"]) == (0, "till")
        refused = called(ROOT, "restore", "--data", data, "--from", archive)
        assert refused.returncode == 78
        assert "is in use by process" in refused.stderr
        assert till.stop() == 0
        assert called(ROOT, "restore", "--data", data, "--from", archive).returncode == 0
        till.start()
        await till.ready()
        assert ledger(listed(till.data, "--measure", "0"))["on_disk"] == 50
    finally:
        till.kill()
