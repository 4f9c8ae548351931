import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from core.archive import queries
from forebay import Transaction
from forebay.identity import Place
from forebay.protocol.archive import ArchiveQuestion
from tests.integration.arrivals import NEW, NOON, OLD, SALE, Core, Stream
from tests.services.core_app import ARCHIVE, application, client_of, open_core


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path, ARCHIVE) as core:
        yield core


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application({ARCHIVE: core})) as client:
        yield client


async def listed(client: httpx.AsyncClient, **query: str | int) -> list[str]:
    answer = await client.get("/archive/events", params=query)
    assert answer.status_code == 200, answer.text
    return [event["message_id"] for event in answer.json()["events"]]


async def test_an_event_is_kept_with_its_envelope_its_headers_and_its_body(
    core: Core, client: httpx.AsyncClient
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    event = Stream().event(
        1,
        prev=None,
        key="31198570044",
        cause=f"{NEW}-7/sales/0",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate="a=b",
    )
    await core.take([event])

    answer = (await client.get(f"/archive/events/{OLD}-1")).json()

    archived_at = datetime.fromisoformat(answer.pop("archived_at"))
    assert before <= archived_at <= datetime.now(UTC)
    assert answer == {
        "message_id": f"{OLD}-1",
        "node": "store-330",
        "service": "till",
        "lane": "ledger",
        "time": "2017-01-01T12:00:00Z",
        "envelope": {
            "specversion": "1.0",
            "id": f"{OLD}-1",
            "source": "/store-330/till",
            "type": "till.sale-recorded.v1",
            "time": "2017-01-01T12:00:00Z",
            "datacontenttype": "application/json",
            "partitionkey": "31198570044",
        },
        "headers": {
            "forebay-lane": "ledger",
            "forebay-prev": "none",
            "forebay-hlc": event.headers["forebay-hlc"],
            "forebay-cause": f"{NEW}-7/sales/0",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "a=b",
        },
        "data": {
            "basket": "31198570044",
            "household": 900,
            "lines": [{"product": 1095275, "quantity": 1, "cents": 50}],
            "cents": 50,
        },
    }


async def test_a_gateways_client_keeps_its_id_source_type_time_and_extensions(
    core: Core, client: httpx.AsyncClient
) -> None:
    extensions = {"subject": "caf\u00e9 \u2615", "dataschema": "https://example.com/s", "tenant": 'a "b" %'}
    event = Stream().event(
        1,
        service="gateway",
        kind="com-example-note",
        id="n/1 \u00e9",
        source="https://example.com/notes",
        type="com.example.Note",
        time=datetime(2020, 2, 29, 1, 2, 3, 456789, UTC),
        content_type="application/vnd.note+json; charset=utf-8",
        attributes=extensions,
        prev=Place(NEW, 1),
    )
    await core.take([event, Stream().event(1, epoch=NEW, service="gateway")])

    answer = (await client.get(f"/archive/events/{OLD}-1")).json()

    assert answer["envelope"] == {
        "specversion": "1.0",
        "id": "n/1 \u00e9",
        "source": "https://example.com/notes",
        "type": "com.example.Note",
        "time": "2020-02-29T01:02:03.456789Z",
        "datacontenttype": "application/vnd.note+json; charset=utf-8",
        **extensions,
    }
    assert answer["headers"]["forebay-prev"] == f"{NEW}-1"


@pytest.mark.parametrize(
    "body", [b" null ", b'{ "n" : 1.50e3, "big": 123456789012345678901234567890 }', b'"\\u00e9"', b"0"]
)
async def test_a_json_body_is_passed_through_byte_for_byte(core: Core, client: httpx.AsyncClient, body: bytes) -> None:
    await core.take([Stream().event(1, body)])

    assert b'"data":' + body + b"}" in (await client.get(f"/archive/events/{OLD}-1")).content


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b'{"a":"\xff"}', "application/json"),
        (b"1 2", "application/json"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json"),
        (b'"\\ud800"', "application/json"),
        (b"7", "text/plain"),
        (b"\x00\x01", "application/octet-stream"),
    ],
)
async def test_a_body_that_is_not_json_is_given_as_base64(
    core: Core, client: httpx.AsyncClient, body: bytes, content_type: str
) -> None:
    await core.take([Stream().event(1, body, content_type=content_type)])

    answer = (await client.get("/archive/events")).json()["events"][0]

    assert "data" not in answer
    assert base64.b64decode(answer["data_base64"]) == body


async def test_the_largest_numbers_of_an_envelope_are_kept(core: Core, client: httpx.AsyncClient) -> None:
    last = 10**18 - 1
    await core.take([Stream().event(1, hlc=2**64 - 1), Stream().foreign("f", hlc=0)])
    held = await core.take([Stream().event(last, epoch=NEW, prev=Place(OLD, last))])

    assert held.held == 1
    answer = (await client.get(f"/archive/events/{OLD}-1")).json()
    assert answer["headers"]["forebay-hlc"] == "ffffffffffffffff"


async def test_a_redelivery_is_not_archived_twice(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take([stream.event(1), stream.event(1), stream.foreign("f")])
    await core.take([stream.event(1), stream.foreign("f")])

    assert await listed(client) == [f"{OLD}-1", "f"]


async def test_an_event_under_the_suffix_of_a_retransmission_is_found_with_it_and_without(
    core: Core, client: httpx.AsyncClient
) -> None:
    await core.take([Stream().event(1, headers={"Nats-Msg-Id": f"{OLD}-1~abc"})])

    for text in (f"{OLD}-1", f"{OLD}-1~abc", f"{OLD}-1~xyz"):
        assert (await client.get(f"/archive/events/{text}")).json()["message_id"] == f"{OLD}-1"


async def test_a_foreign_event_has_no_lane_and_the_time_of_the_broker_where_it_brings_none(
    core: Core, client: httpx.AsyncClient
) -> None:
    stream = Stream()
    delivery = stream.foreign("f-1")
    headers = {name: value for name, value in delivery.headers.items() if name != "ce-time"}
    await core.take([delivery._replace(headers=headers, stored_at=1_483_272_000_500_000_000)])

    answer = (await client.get("/archive/events/f-1")).json()

    assert (answer["lane"], answer["headers"]) == (None, {})
    assert answer["time"] == answer["envelope"]["time"] == "2017-01-01T12:00:00.500000Z"


async def test_the_listing_goes_on_after_its_cursor_to_the_end(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take([stream.event(n) for n in range(1, 8)])
    found: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    for count in (3, 3, 1):
        page = (await client.get("/archive/events", params=query)).json()
        assert len(page["events"]) == count
        found += [event["message_id"] for event in page["events"]]
        query["after"] = page["next"]

    assert found == [f"{OLD}-{n}" for n in range(1, 8)]
    assert query["after"] is None
    exact = (await client.get("/archive/events?limit=7")).json()
    assert (len(exact["events"]), exact["next"]) == (7, None)


async def test_a_page_of_large_events_is_cut_and_goes_on(
    core: Core, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE_BYTES", 2 * len(SALE))
    stream = Stream()
    large = b'"%s"' % (b"x" * 3 * len(SALE))
    await core.take([stream.event(1), stream.event(2), stream.event(3), stream.event(4, large), stream.event(5)])

    sizes, after = [], ""
    while after is not None:
        page = (await client.get("/archive/events", params={"after": after} if after else {})).json()
        sizes.append(len(page["events"]))
        after = page["next"]

    assert sizes == [2, 1, 1, 1]


async def test_the_listing_is_narrowed_by_node_service_and_type(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take(
        [
            stream.foreign("1"),
            stream.foreign("2", node="store-1"),
            stream.foreign("3", service="gateway", kind="note", type="com.example/Note"),
            stream.foreign("4", kind="till-opened"),
        ]
    )

    assert await listed(client, node="store-330") == ["1", "3", "4"]
    assert await listed(client, service="till") == ["1", "2", "4"]
    assert await listed(client, type="till.sale-recorded.v1") == ["1", "2"]
    assert await listed(client, type="com.example/Note") == ["3"]
    assert await listed(client, node="store-330", service="till") == ["1", "4"]
    assert await listed(client, node="store-330", service="till", type="till.sale-recorded.v1") == ["1"]
    assert await listed(client, service="till", type="com.example/Note") == []
    assert await listed(client, node="store-2") == []
    assert await listed(client, type="") == []


async def test_an_id_of_several_producers_is_a_conflict_that_names_them(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take([stream.foreign("f"), stream.foreign("f", node="store-1"), stream.foreign("f", service="door")])

    answer = await client.get("/archive/events/f")
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["candidates"] == [
        {"node": "store-330", "service": "till"},
        {"node": "store-1", "service": "till"},
        {"node": "store-330", "service": "door"},
    ]

    assert (await client.get("/archive/events/f?node=store-330")).status_code == 409
    chosen = await client.get("/archive/events/f?node=store-330&service=door")
    assert chosen.json()["envelope"]["source"] == "/store-330/door"
    assert (await client.get("/archive/events/f?node=store-1")).json()["node"] == "store-1"
    assert (await client.get("/archive/events/f?node=store-9")).status_code == 404


async def test_an_epoch_that_another_node_occupied_is_a_conflict_too(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take([stream.event(1), stream.event(1, node="store-1")])

    assert (await client.get(f"/archive/events/{OLD}-1")).status_code == 409
    assert (await client.get(f"/archive/events/{OLD}-1?node=store-1")).json()["node"] == "store-1"


async def test_a_foreign_id_that_its_producer_used_again_after_it_was_forgotten_is_kept_twice(
    core: Core, client: httpx.AsyncClient
) -> None:
    stream = Stream()
    await core.take([stream.foreign("f", b"1")])
    await core.store.write(lambda tx: tx.execute("delete from forebay_foreign"))
    await core.take([stream.foreign("f", b"2")])

    assert (await client.get("/archive/events/f")).json()["data"] == 1
    assert await listed(client, message_id="f") == ["f", "f"]


@pytest.mark.parametrize("text", ["a/b", "a b", "50%", "caf\u00e9", "a?b#c", "..", "a/../b", "null", "a\u0000b"])
async def test_a_foreign_id_can_be_any_text_in_the_path(core: Core, client: httpx.AsyncClient, text: str) -> None:
    delivery = Stream().foreign("x")
    await core.take([delivery._replace(headers={**delivery.headers, "Nats-Msg-Id": text})])

    path = quote(text, safe="").replace(".", "%2E")
    assert (await client.get(f"/archive/events/{path}")).json()["message_id"] == text


@pytest.mark.parametrize("text", ["/", "/a", "a//b", "a/"])
async def test_a_foreign_id_that_no_path_can_carry_is_found_by_the_listing(
    core: Core, client: httpx.AsyncClient, text: str
) -> None:
    delivery = Stream().foreign("x")
    await core.take([delivery._replace(headers={**delivery.headers, "Nats-Msg-Id": text})])

    assert await listed(client, message_id=text) == [text]


@pytest.mark.parametrize(
    "text", [f"{OLD}-2", f"{NEW}-1", f"{OLD}-0", f"{OLD}-x", "unknown", f"{OLD}-999999999999999999"]
)
async def test_an_event_that_is_not_there_is_not_found(core: Core, client: httpx.AsyncClient, text: str) -> None:
    await core.take([Stream().event(1)])

    answer = await client.get(f"/archive/events/{text}")

    assert answer.status_code == 404
    assert answer.json()["field"] == "message_id"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("node=Store", "node"),
        ("service=", "service"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("after=-1", "after"),
        ("after=", "after"),
        ("after=9999999999999999999", "after"),
        ("after=\u0663", "after"),
    ],
)
async def test_a_wrong_parameter_is_a_problem_that_names_it(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.get(f"/archive/events?{query}")

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field


async def test_a_cursor_beyond_the_end_gives_an_empty_page(core: Core, client: httpx.AsyncClient) -> None:
    await core.take([Stream().event(1, time=NOON)])

    assert (await client.get("/archive/events?after=7")).json() == {"events": [], "next": None}


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"node": "n"}, "archived_node"),
        ({"node": "n", "service": "s"}, "archived_node"),
        ({"node": "n", "type": "t"}, "archived_node"),
        ({"node": "n", "service": "s", "type": "t"}, "archived_node"),
        ({"service": "s"}, "archived_service"),
        ({"type": "t"}, "archived_type"),
        ({"service": "s", "type": "t"}, "archived_type"),
        ({"message_id": f"{OLD}-1"}, "archived_place"),
        ({"message_id": f"{OLD}-1", "node": "n"}, "archived_place"),
        ({"message_id": "f"}, "archived_foreign"),
        ({"message_id": "f", "node": "n", "service": "s", "type": "t"}, "archived_foreign"),
    ],
)
async def test_every_filter_has_an_index(core: Core, wanted: dict[str, str], index: str) -> None:
    condition, params = queries.condition_of(queries.Filter(**wanted))

    def plan(tx: Transaction) -> str:
        sql = f"explain query plan {queries.ids_where(condition)}"
        return " ".join(row["detail"] for row in tx.execute(sql, after=0, upto=2**62, limit=10, **params))

    found = await core.store.read(plan)
    assert found.startswith("SEARCH archived USING")
    assert index in found
    if "message_id" not in wanted:
        assert "COVERING" in found
        assert "TEMP B-TREE" not in found


async def test_another_body_under_a_known_id_is_kept_aside_and_reported(
    core: Core, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream()
    await core.take([stream.event(1), stream.event(2)])
    await core.take(
        [stream.event(1), stream.event(2, b'{"basket":"another"}'), stream.event(2, b'{"basket":"another"}')]
    )

    (conflict,) = (await client.get("/archive/conflicts")).json()
    assert (conflict["message_id"], conflict["bytes"]) == (f"{OLD}-2", 20)
    assert caplog.messages.count("archive.conflict_found") == 1
    assert (await client.get(f"/archive/events/{OLD}-2")).json()["data"]["basket"] == "31198570044"


async def test_what_is_archived_is_handed_out_as_the_stream_delivered_it_c5(core: Core) -> None:
    stream = Stream()
    given = [
        stream.event(
            1,
            key="31198570044",
            cause=f"{NEW}-7/sales/0",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        stream.event(2, b"\x00\x01", content_type="application/octet-stream", attributes={"plan": "böse"}),
        stream.event(3, epoch=NEW, prev=Place(OLD, 2)),
    ]
    await core.take(given)

    for epoch, expected in ((OLD, given[:2]), (NEW, [])):
        question = ArchiveQuestion(node="store-330", service="till", epoch=epoch, first=1, last=2)
        found = await core.store.read(queries.between, question)
        assert [sequence for sequence, _ in found] == [each for each, _ in enumerate(expected, 1)]
        assert [(each.subject, dict(each.headers), each.body) for _, each in found] == [
            (each.subject, dict(each.headers), each.body) for each in expected
        ]
