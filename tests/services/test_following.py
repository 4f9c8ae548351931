"""A read model on the node, as a process of its own serves it, without any broker; and who follows whom, on request."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.faults.fleet import until
from tests.services.command_line import Running, called, forebay, running
from tests.services.following_project import write_following_project

AWAY = "nats://127.0.0.1:1"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_following_project(tmp_path / "project")


async def open_doors(process: Running, *doors: str) -> list[str]:
    async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        answers = [await http.post("/door/openings", json={"door": door}) for door in doors]
    return [answer.json()["event"] for answer in answers]


async def test_a_read_model_follows_a_service_on_the_node_and_is_kept_for_until_it_is_removed(project: Path) -> None:
    data = project / "data"
    with running(project, ["edge.door", "edge.days"], node="house-1", data=data, nats=AWAY) as process:
        await process.answers("/readyz", 200)
        ids = await open_doors(process, "front", "back", "front")
        today = datetime.now(UTC).date().isoformat()

        async def counted() -> bool:
            answer = await process.answers(f"/days/totals?day={today}", 200)
            return bool(answer.json()["openings"] == 3)

        async def confirmed() -> bool:
            consumers = (await process.answers(f"/outbox/{ids[-1]}", 200)).json().get("consumers", {})
            return bool(consumers.get("days@node", {}).get("confirmed"))

        await until(counted, limit=30, what="the read model has the openings")
        await until(confirmed, limit=30, what="the follower is listed as a consumer that confirmed")
        assert (await process.answers("/ops/days/parked", 200)).json() == []
        assert process.stop() == 0
    assert "days@node" in called(project, "outbox", "ls", "--data", str(data)).stdout
    with running(project, ["edge.door"], node="house-1", data=data, nats=AWAY) as process:
        told = (await process.answers("/readyz", 200)).json()
        why = "door: keeps its events for days, which follows it and does not run in this process"
        assert (told["ready"], told["problems"]) == (True, [why]), "writes are accepted"
        listed = msgspec.json.decode(called(project, "followers", "ls", "--data", str(data), "--json").stdout)
        assert [(row["node"], row["followed"], row["follower"], row["removed_at"]) for row in listed] == [
            ("house-1", "door", "days", None)
        ]
        removed = called(project, "followers", "rm", "door", "days", "--data", str(data), "--reason", "nobody counts")
        assert removed.stdout == "days is removed: door keeps nothing for it any more\n"
        assert (await process.answers("/readyz", 200)).json()["problems"] == []
    (row,) = msgspec.json.decode(called(project, "followers", "ls", "--data", str(data), "--json").stdout)
    assert (row["reason"], row["removed_at"] is None) == ("nobody counts", False)
    again = called(project, "followers", "rm", "door", "days", "--data", str(data), "--reason", "nobody counts")
    assert again.returncode == 78
    assert "days follows no door" in again.stderr


def test_a_process_without_the_followed_service_does_not_start(project: Path) -> None:
    result = forebay(project, "run", "edge.days", "--node", "house-1", "--port", "0")
    assert result.returncode == 78
    assert "service 'days' follows 'door', which does not run in this process" in result.stderr
    assert not (project / "data" / "nodes").exists(), "nothing was opened"
