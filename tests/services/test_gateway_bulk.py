"""Many events in one request to the gateway: batches and lines."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Litestar

from edge.gateway import app as gateway_app
from edge.gateway.arrivals import MAX_EVENTS
from forebay import Lane, Transaction, UnitStore
from forebay.testing.waiting import until
from tests.services.conftest import Serve, Served, application, open_store, served_over_http

BATCH = "application/cloudevents-batch+json"
LINES = "application/x-ndjson"
READING = "com.example.reading"


@pytest.fixture
async def gateway(serve: Serve) -> Served:
    return await serve(gateway_app, lanes={READING: "telemetry"})


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": f"e-{number}", "source": "/a", "type": "t", "data": {"n": number}, **more}


def encoded(media_type: str, events: list[Any]) -> bytes:
    if media_type == BATCH:
        return msgspec.json.encode(events)
    return b"\n".join(msgspec.json.encode(each) for each in events)


async def post(gateway: Served, media_type: str, body: bytes) -> httpx.Response:
    return await gateway.http.post("/gateway/events", content=body, headers={"content-type": media_type})


def known(tx: Transaction) -> int:
    return int(tx.execute("select count(*) as n from client_id")[0]["n"])


@pytest.mark.parametrize("media_type", [BATCH, LINES, "application/ndjson; charset=utf-8"])
async def test_many_events_are_one_request_and_keep_their_order(gateway: Served, media_type: str) -> None:
    events = [event(number, **({"partitionkey": "k"} if number % 3 else {})) for number in range(500)]
    answer = await post(gateway, media_type, encoded(BATCH if media_type == BATCH else LINES, events))
    assert answer.status_code == 201, answer.text
    stored = await gateway.events()
    assert [each.id for each in stored] == [f"e-{number}" for number in range(500)]
    assert answer.json() == {"accepted": 500, "duplicates": 0, "ids": [each.message_id for each in stored]}


async def test_empty_lines_count_for_nothing(gateway: Served) -> None:
    first, second = msgspec.json.encode(event(1)), msgspec.json.encode(event(2))
    answer = await post(gateway, LINES, b"\r\n" + first + b"\r\n \n\n" + second + b"\n")
    assert (answer.status_code, answer.json()["accepted"]) == (201, 2)
    assert (await post(gateway, LINES, b"\n")).json() == {"accepted": 0, "duplicates": 0, "ids": []}


@pytest.mark.parametrize("media_type", [BATCH, LINES])
async def test_ids_stand_where_their_events_stood_whatever_their_lanes(gateway: Served, media_type: str) -> None:
    events = [event(number, type=READING if number % 3 == 1 else "other") for number in range(30)]
    ids = (await post(gateway, media_type, encoded(media_type, events))).json()["ids"]
    lanes = await gateway.events("telemetry"), await gateway.events("ledger")
    found = {each.id: each.message_id for lane in lanes for each in lane}
    assert [len(lane) for lane in lanes] == [10, 20]
    assert ids == [found[f"e-{number}"] for number in range(30)]


@pytest.mark.parametrize("media_type", [BATCH, LINES])
async def test_a_repeated_request_is_answered_with_the_first_ids(gateway: Served, media_type: str) -> None:
    events = [event(number) for number in range(200)]
    first = (await post(gateway, media_type, encoded(media_type, events[:150]))).json()["ids"]
    answer = (await post(gateway, media_type, encoded(media_type, [*events, events[0]]))).json()
    assert (answer["accepted"], answer["duplicates"]) == (50, 151)
    assert answer["ids"][:150] == first
    assert answer["ids"][200] == first[0]
    assert [each.id for each in await gateway.events()] == [f"e-{number}" for number in range(200)]


@pytest.mark.parametrize(
    ("line", "status", "field"),
    [
        (b'{"specversion":"1.0"', 400, "[2]"),
        (b"[]", 422, "[2]"),
        (b'{"specversion":"1.0","id":"x","source":"/a"}', 422, "[2].type"),
        (msgspec.json.encode(event(7, data=[1])), 409, "[2]"),
        (msgspec.json.encode(event(8, datacontenttype="text/plain")), 415, "[2].datacontenttype"),
        (msgspec.json.encode(event(8, data="x" * 262_144)), 413, "[2].data"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_of_its_request_is_kept(
    gateway: Served, line: bytes, status: int, field: str
) -> None:
    await post(gateway, LINES, encoded(LINES, [event(7)]))
    body = b"\n".join([msgspec.json.encode(event(1)), b"", msgspec.json.encode(event(2)), line])
    answer = await post(gateway, LINES, body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["field"] == field
    assert [each.id for each in await gateway.events()] == ["e-7"]
    assert await gateway.store.read(known) == 1


async def test_too_many_events_are_refused_at_once(gateway: Served) -> None:
    line = msgspec.json.encode(event(1)) + b"\n"
    answer = await post(gateway, LINES, line * (MAX_EVENTS + 1))
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert str(MAX_EVENTS) in answer.json()["detail"]
    assert await gateway.events() == []


async def test_a_budget_that_is_spent_in_the_middle_leaves_nothing_of_the_request(gateway: Served) -> None:
    gateway.outbox.lanes["ledger"] = Lane("ledger", budget="64KiB")
    events = [event(number, data="x" * 200) for number in range(300)]
    events[10]["type"] = READING  # of the other lane, whose budget is not spent
    refused = await post(gateway, BATCH, encoded(BATCH, events))
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert await gateway.events() == await gateway.events("telemetry") == []
    assert await gateway.store.read(known) == 0
    assert (await post(gateway, BATCH, encoded(BATCH, events[:100]))).json()["accepted"] == 100


async def test_a_lane_that_drops_takes_a_batch_above_its_budget_as_it_takes_single_events(gateway: Served) -> None:
    gateway.outbox.lanes["telemetry"] = Lane("telemetry", budget="64KiB", when_full="drop-oldest")
    events = [event(number, type=READING, data="x" * 200) for number in range(300)]
    answer = await post(gateway, BATCH, encoded(BATCH, events))
    assert (answer.status_code, answer.json()["accepted"]) == (201, 300)
    stored = await gateway.events("telemetry")
    assert 0 < len(stored) < 300
    assert [each.id for each in stored] == [f"e-{number}" for number in range(300 - len(stored), 300)]


async def test_a_request_that_ends_within_its_body_leaves_nothing(tmp_path: Path) -> None:
    units: list[UnitStore] = []

    async def build(stack: AsyncExitStack) -> Litestar:
        store, outbox = await open_store(stack, gateway_app.gateway, gateway_app, tmp_path)
        units.append(UnitStore(store, outbox))
        return application((gateway_app.gateway, units[0], {}))

    events = [event(number) for number in range(2000)]
    body = encoded(LINES, events)
    with served_over_http(build) as url:
        host, port = url.removeprefix("http://").split(":")
        for cut in (1, len(body) // 2, len(body) - 1):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /gateway/events HTTP/1.1\r\nhost: x\r\ncontent-type: {LINES}\r\ncontent-length: {len(body)}"
            writer.write(f"{head}\r\n\r\n".encode() + body[:cut])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            assert await reader.read() == b""
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:

            async def accepted() -> bool:
                answer = await http.post("/gateway/events", content=body, headers={"content-type": LINES})
                # Each event is new: nothing of the requests that were cut is there.
                assert (answer.status_code, answer.json()["accepted"], answer.json()["duplicates"]) == (201, 2000, 0)
                return True

            await until(accepted, limit=30, what="the whole request is accepted")
