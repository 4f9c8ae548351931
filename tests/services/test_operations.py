"""Parked events and gaps as people see and settle them: ``/ops``, ``forebay parked``, ``forebay gaps`` (F1, B4, S7)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from forebay import Message, Service, UnitOfWork
from forebay.application import build_application
from forebay.identity import Place
from forebay.intent_box import leave_file
from forebay.intents import Discard
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests.integration.arrivals import NEW, OLD, Stream, own
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    rows,
    serving,
    until,
)
from tests.services.command_line import forebay


class Audit:
    """A consumer whose handler fails until ``works`` is set."""

    def __init__(self) -> None:
        self.works = False
        self.service = Service("audit")

        @self.service.on(DoorOpened)
        def one(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
            if event.number == 1 and not self.works:
                raise ValueError("the shelf is full")
            note(tx, message.node, event.number)


class Core:
    """A running consumer with two parked events: 1, which fails, and 2 of the same key behind it."""

    def __init__(self, service: RunningService, http: httpx.AsyncClient, folder: Path, ids: list[str]) -> None:
        self.service = service
        self.http = http
        self.folder = folder
        self.ids = ids

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the data folder while the consumer runs."""
        return await anyio.to_thread.run_sync(partial(forebay, self.folder, *arguments, FOREBAY_DATA=str(self.folder)))

    async def parked(self) -> list[dict[str, Any]]:
        answer = await self.http.get("/ops/audit/parked")
        assert answer.status_code == 200
        found: list[dict[str, Any]] = answer.json()
        return found

    async def noted(self, expected: list[int]) -> bool:
        return await numbers(self.service.store) == expected


@pytest.fixture
def audit() -> Audit:
    return Audit()


@asynccontextmanager
async def running(server: NatsServer, folder: Path, audit: Audit) -> AsyncIterator[Core]:
    async with connected(server.url, node=NODE) as edge, connected(server.url, node="core") as core:
        await apply(core, "audit")
        async with (
            serving(door(), edge, folder / "nodes") as node,
            serving(audit.service, core, folder, node="core", schema=NOTES) as service,
        ):
            app: Any = build_application([service], lambda: True, "1")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://core") as http:
                ids = await node.store.write(
                    lambda tx: [tx.emit(DoorOpened(number=n, door="a" if n < 3 else "b")) for n in (1, 2, 3)]
                )
                consumer = service.consumer
                assert consumer is not None
                await until(lambda: consumer.totals.parked + consumer.totals.applied == 3)
                later = "update forebay_parked set retry_at = retry_at + 200000 where retry_at is not null"
                await service.store.write(lambda tx: tx.execute(later))  # it is retried when a test says so
                consumer.look_again()
                yield Core(service, http, folder, ids)


async def test_parked_events_are_listed_with_their_reason_f1(
    nats_server: NatsServer, tmp_path: Path, audit: Audit
) -> None:
    async with running(nats_server, tmp_path, audit) as core:
        first, second = await core.parked()
        assert (first["reason"], first["message_id"], first["key"]) == ("handler", core.ids[0], "a")
        assert "ValueError: the shelf is full" in first["detail"]
        assert first["retry_at"] is not None
        assert (second["reason"], second["message_id"], second["retry_at"]) == ("behind", core.ids[1], None)
        listed = await core.command("parked", "ls", "--json")
        assert [each["message_id"] for each in json.loads(listed.stdout)] == core.ids[:2]
        table = (await core.command("parked", "ls")).stdout
        assert "the shelf is full" in table
        shown = json.loads((await core.command("parked", "show", str(first["id"]))).stdout)
        assert shown["body"] == '{"number":1,"door":"a"}'
        assert shown["headers"]["forebay-lane"] == "ledger"


async def test_an_event_is_retried_when_somebody_asks_f1(nats_server: NatsServer, tmp_path: Path, audit: Audit) -> None:
    async with running(nats_server, tmp_path, audit) as core:
        first, second = await core.parked()
        answer = await core.http.post(f"/ops/audit/parked/{second['id']}/retry")
        assert f"waits behind {first['id']}" in answer.json()["outcome"]
        audit.works = True
        asked = await core.command("parked", "retry", str(first["id"]))
        assert asked.stdout == f"{first['id']} is retried now\n"
        await eventually(partial(core.noted, [3, 1, 2]))
        assert await core.parked() == []


@pytest.mark.parametrize("over", ["http", "command"])
async def test_an_event_is_discarded_with_a_reason_and_its_key_goes_on_f1(
    nats_server: NatsServer, tmp_path: Path, audit: Audit, over: str
) -> None:
    async with running(nats_server, tmp_path, audit) as core:
        first = (await core.parked())[0]["id"]
        if over == "http":
            answer = await core.http.post(f"/ops/audit/parked/{first}/discard", json={"reason": "a test sale"})
            assert answer.json() == {"outcome": f"{first} is discarded"}
        else:
            done = await core.command("parked", "discard", str(first), "--reason", "a test sale")
            assert done.stdout == f"{first} is discarded\n"
        await eventually(partial(core.noted, [3, 2]))
        kept = await rows(core.service.store, "select discarded_why from forebay_parked")
        assert kept == [("a test sale",)]
        record = await rows(core.service.store, "select kind, outcome from forebay_intent")
        assert record == [("discard", f"{first} is discarded")]


async def test_a_request_that_was_left_is_executed_once_at_the_next_start_s7(
    nats_server: NatsServer, tmp_path: Path, audit: Audit
) -> None:
    async with running(nats_server, tmp_path, audit) as core:
        database, first = core.service.path, (await core.parked())[0]["id"]
    leave_file(database, msgspec.json.encode(Discard(first, "a test sale")))
    async with (
        connected(nats_server.url, node="core") as connection,
        serving(audit.service, connection, tmp_path, node="core", schema=NOTES) as service,
    ):
        await eventually(partial(_noted, service, [3, 2]))
        assert len(await rows(service.store, "select * from forebay_intent")) == 1
        assert list(database.with_suffix(".intents").iterdir()) == []


async def test_a_request_whose_file_is_found_again_is_not_executed_again_s7(
    nats_server: NatsServer, tmp_path: Path, audit: Audit
) -> None:
    """The process died after the request was executed, and before its file was removed."""
    async with running(nats_server, tmp_path, audit) as core:
        intents, first = core.service.intents, (await core.parked())[0]["id"]
        assert intents is not None
        assert await intents.execute(Discard(first, "a test sale"), "a-file") == f"{first} is discarded"
        assert await intents.execute(Discard(first, "a test sale"), "a-file") == f"{first} is discarded"
        assert await rows(core.service.store, "select id from forebay_intent") == [("a-file",)]


async def _noted(service: RunningService, expected: list[int]) -> bool:
    return await numbers(service.store) == expected


async def test_a_hole_is_listed_and_closed_as_a_gap_with_a_reason_b4(
    nats_server: NatsServer, tmp_path: Path, audit: Audit
) -> None:
    """Events of a node whose disk is gone: an epoch that was never seen to its end, and a hole in the next."""
    audit.works = True
    async with running(nats_server, tmp_path, audit) as core:
        await _arrive(core.service, Place(OLD, 1), None)
        await _arrive(core.service, Place(NEW, 1), Place(OLD, 3))
        await _arrive(core.service, Place(NEW, 4), Place(OLD, 3))
        found = [each for each in (await core.http.get("/ops/audit/gaps")).json() if each["node"] == "store-330"]
        assert [(each["kind"], each["epoch"], each["first"], each["last"]) for each in found] == [
            ("hole", OLD, 2, 3),
            ("hole", NEW, 2, 3),
        ]
        listed = json.loads((await core.command("gaps", "ls", "--json")).stdout)
        assert [(each["epoch"], each["first"]) for each in listed] == [(OLD, 2), (NEW, 2)]
        close = ["gaps", "close", "--origin", "store-330", "--origin-service", "door", "--reason", "disk gone"]
        assert "not an open hole" in (await core.command(*close, OLD, "2", "2")).stdout
        assert "is a gap now" in (await core.command(*close, OLD, "2", "3")).stdout
        assert await numbers(core.service.store, "store-330") == [1, 1]
        hole = {"node": "store-330", "service": "door", "epoch": NEW, "first": 2, "last": 3, "reason": "disk gone"}
        assert "is a gap now" in (await core.http.post("/ops/audit/gaps", json=hole)).text
        assert await numbers(core.service.store, "store-330") == [1, 1, 4]
        kinds = [each["kind"] for each in (await core.http.get("/ops/audit/gaps")).json()]
        assert kinds == ["gap", "gap"]
        reason = (await core.http.get("/ops/audit/gaps")).json()[0]["reason"]
        assert reason == "closed by a person: disk gone"


async def _arrive(service: RunningService, place: Place, prev: Place | None) -> None:
    """Let an event arrive as the stream would deliver it."""
    from forebay.closing import take_aside

    body = b'{"number":%d}' % place.sequence
    message = own(place, body, service="door", kind="door-opened", type="door.door-opened.v1", prev=prev)
    delivery = Stream()._encoded(message, None)
    assert service.consumer is not None
    await service.consumer.settle(take_aside, service.declared.handlers, [delivery], partition=delivery.partition)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/ops/nobody/parked/1/retry", None, 404),
        ("/ops/audit/parked/1/discard", {}, 422),
        ("/ops/audit/parked/1/discard", {"reason": ""}, 422),
        ("/ops/audit/gaps", {"node": "a"}, 422),
    ],
)
async def test_bad_input_names_the_field(
    nats_server: NatsServer, tmp_path: Path, audit: Audit, path: str, body: dict[str, Any] | None, status: int
) -> None:
    async with running(nats_server, tmp_path, audit) as core:
        answer = await core.http.post(path, json=body)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("application/problem+json")


async def test_the_commands_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    for arguments in (["parked", "retry", "1"], ["gaps", "close", "a", "1", "2", "--origin", "b"]):
        done = forebay(tmp_path, *arguments, FOREBAY_DATA=str(tmp_path))
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
