"""``forebay nodes``: registering, listing and removing, against a real broker and a real core."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import httpx
import pytest

from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.services.command_line import called, forebay
from tests.services.command_project import NODE, write_command_project


async def test_a_node_is_registered_listed_and_removed_with_a_reason(
    tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_command_project(tmp_path / "project")
    data = folder / "data"

    monkeypatch.setenv("FOREBAY_NATS", nats_server.url)
    monkeypatch.setenv("FOREBAY_DATA", str(data))

    async def run(*arguments: str) -> str:
        """Run a command; one that loads the project's services has a process of its own."""
        if arguments[0] in ("apply", "plan") or arguments[:2] == ("nodes", "add"):
            settings = {"FOREBAY_NATS": nats_server.url}
            done = await anyio.to_thread.run_sync(lambda: forebay(folder, *arguments, **settings))
        else:
            done = await anyio.to_thread.run_sync(called, folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    await run("apply")
    core = ServiceProcess(["core.orders"], node="core", project=folder, data=data, nats=nats_server.url)
    core.start()
    try:
        await core.ready()
        async with httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
            placed = await http.post("/orders/orders/1")
            assert placed.status_code == 201
            (row,) = json.loads(await run("nodes", "ls", "--json"))
            assert (row["node"], row["service"], row["state"], row["unconfirmed"]) == (
                NODE,
                "stock",
                "not registered",
                1,
            )
            assert await run("nodes", "add", NODE) == f"{NODE}/stock is registered\n"
            assert await run("nodes", "add", NODE) == f"{NODE}/stock was registered already\n"
            planned = await run("plan")  # exit code 0: no drift, and no note about the durable
            assert "Nothing to do." in planned
            assert "durable store" not in planned

            async def waits() -> bool:
                (now,) = json.loads(await run("nodes", "ls", "--json"))
                return (now["state"], now["waiting"], now["unconfirmed"]) == ("registered", 1, 1)

            await until(waits, limit=30, what="the command is in the stream", every=0.2)
            found = (await http.get(f"/outbox/{placed.text}")).json()
            assert (found["destination"], found["state"]) == (f"{NODE}/stock", "forwarded")
            assert f"{NODE}/stock" in await run("outbox", "ls")
            said = await run("nodes", "rm", NODE, "--reason", "closed for good")
            assert f"{NODE} is removed: 0 events are gaps now, 1 commands are dropped" in said
            found = (await http.get(f"/outbox/{placed.text}")).json()
            assert found["state"] == "dropped"
            (row,) = json.loads(await run("nodes", "ls", "--json"))
            assert (row["node"], row["state"], row["reason"]) == (NODE, "removed", "closed for good")
            metrics = (await http.get("/metrics")).text
            assert 'forebay_destinations{service="orders",state="away"}' in metrics
    finally:
        core.kill()
