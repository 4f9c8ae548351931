"""The gateway over HTTP: CloudEvents in all three modes, on a store of its own."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from edge.gateway import app as gateway_app
from edge.gateway.app import GatewaySettings, forget
from edge.gateway.arrivals import kind_of
from forebay import Transaction
from forebay.errors import ConfigurationError
from tests.services.conftest import Serve, Served

PROBLEM = "application/problem+json"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "https://example.com/böiler room",
    "type": "Com.Example.Reading",
    "subject": "123",
    "time": "2018-04-05T17:31:00+02:00",
    "datacontenttype": "application/json",
    "dataschema": "https://example.com/schema",
    "partitionkey": "boiler 1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "comexampleextension1": 'a "quoted" 100% value €',
    "count": 5,
    "hot": True,
    "unset": None,
    "data": {"celsius": 71.5},
}


@pytest.fixture
async def gateway(serve: Serve) -> Served:
    return await serve(gateway_app, lanes={"com.example.reading": "telemetry"})


async def post(gateway: Served, body: Any, media_type: str = STRUCTURED) -> httpx.Response:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await gateway.http.post("/gateway/events", content=content, headers={"content-type": media_type})


async def binary(gateway: Served, body: bytes = b"{}", **headers: str) -> httpx.Response:
    sent = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/a", "ce-type": "t"}
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    return await gateway.http.post(
        "/gateway/events", content=body, headers={name: value for name, value in sent.items() if value != "-"}
    )


async def post_message(gateway: Served, message: HTTPMessage) -> httpx.Response:
    return await gateway.http.post("/gateway/events", content=message.body, headers=message.headers)


def event(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(EVENT), **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in EVENT.items() if key != name}


async def test_a_structured_event_keeps_every_attribute_and_its_data_as_it_was_sent(gateway: Served) -> None:
    answer = await post(gateway, EVENT)
    assert answer.status_code == 201
    (stored,) = await gateway.events()
    assert answer.json() == {"accepted": 1, "duplicates": 0, "ids": [stored.message_id]}
    assert (stored.id, stored.source, stored.type) == (EVENT["id"], EVENT["source"], EVENT["type"])
    assert (stored.kind, stored.key, stored.content_type) == ("com-example-reading", "boiler 1", "application/json")
    assert stored.time == datetime(2018, 4, 5, 15, 31, tzinfo=UTC)
    assert stored.attributes == {
        "subject": "123",
        "dataschema": "https://example.com/schema",
        "traceparent": EVENT["traceparent"],
        "comexampleextension1": EVENT["comexampleextension1"],
        "count": "5",
        "hot": "true",
    }
    assert stored.body == b'{"celsius":71.5}'


@pytest.mark.parametrize("encode", [to_binary_event, to_structured_event])
@pytest.mark.parametrize("content_type", [None, "application/json", "application/vnd.example+json; charset=utf-8"])
async def test_the_official_sdk_is_understood(gateway: Served, encode: Any, content_type: str | None) -> None:
    attributes = {
        name: value for name, value in EVENT.items() if name not in ("data", "unset", "hot", "datacontenttype")
    }
    attributes["time"] = datetime(2018, 4, 5, 17, 31, tzinfo=UTC)
    if content_type:
        attributes["datacontenttype"] = content_type
    answer = await post_message(gateway, encode(CloudEvent(attributes, {"name": "Müller"})))
    assert answer.status_code == 201, answer.text
    (stored,) = await gateway.events()
    assert (stored.id, stored.source, stored.type) == (EVENT["id"], EVENT["source"], EVENT["type"])
    assert stored.attributes["comexampleextension1"] == EVENT["comexampleextension1"]
    assert stored.time == attributes["time"]
    assert stored.content_type == (content_type or "application/json")
    assert msgspec.json.decode(stored.body) == {"name": "Müller"}


async def test_the_same_event_in_another_mode_is_a_duplicate(gateway: Served) -> None:
    attributes = {name: EVENT[name] for name in ("specversion", "id", "source", "type")}
    first = await post_message(gateway, to_structured_event(CloudEvent(attributes, {"b": 1, "a": 2})))
    again = await post_message(gateway, to_binary_event(CloudEvent(attributes, {"a": 2, "b": 1})))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == {"accepted": 0, "duplicates": 1, "ids": first.json()["ids"]}
    assert len(await gateway.events()) == 1


@pytest.mark.parametrize(
    "changes",
    [{"data": {"celsius": 71}}, {"type": "other"}, {"hot": False}, {"time": "2018-04-05T17:31:01Z"}, {"subject": "4"}],
)
async def test_the_same_id_with_other_contents_is_a_conflict_that_names_the_event(
    gateway: Served, changes: dict[str, Any]
) -> None:
    await post(gateway, EVENT)
    answer = await post(gateway, event(**changes))
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (409, PROBLEM)
    assert (problem["source"], problem["id"]) == (EVENT["source"], EVENT["id"])
    assert EVENT["id"] in problem["detail"]
    assert len(await gateway.events()) == 1


async def test_the_same_id_of_another_source_is_another_event(gateway: Served) -> None:
    assert (await post(gateway, EVENT)).json()["accepted"] == 1
    assert (await post(gateway, event(source="/other"))).json()["accepted"] == 1


async def test_an_event_without_a_time_gets_the_time_of_acceptance_and_repeats_are_duplicates(gateway: Served) -> None:
    before = datetime.now(UTC)
    await post(gateway, without("time"))
    assert (await post(gateway, without("time"))).json()["duplicates"] == 1
    (stored,) = await gateway.events()
    assert before <= stored.time <= datetime.now(UTC)


async def test_a_batch_keeps_its_order_and_counts_its_duplicates(gateway: Served) -> None:
    first = (await post(gateway, event(id="2"))).json()["ids"][0]
    answer = await post(gateway, [event(id="1"), event(id="2"), event(id="3"), event(id="1")], BATCH)
    assert answer.status_code == 201
    ids = answer.json()["ids"]
    assert answer.json() == {"accepted": 2, "duplicates": 2, "ids": [ids[0], first, ids[2], ids[0]]}
    assert [stored.id for stored in await gateway.events()] == ["2", "1", "3"]


async def test_an_empty_batch_is_accepted(gateway: Served) -> None:
    answer = await post(gateway, [], BATCH)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 0, "duplicates": 0, "ids": []})


@pytest.mark.parametrize(
    ("bad", "status", "field"),
    [
        (without("source"), 422, "[1].source"),
        (event(specversion="0.3"), 422, "[1].specversion"),
        (event(id="1", data=1), 409, "[1]"),
        (event(datacontenttype="text/plain"), 415, "[1].datacontenttype"),
        (event(data="x" * 262_144), 413, "[1].data"),
        (5, 422, "[1]"),
    ],
)
async def test_a_batch_with_one_bad_event_is_refused_whole_and_names_it(
    gateway: Served, bad: Any, status: int, field: str
) -> None:
    answer = await post(gateway, [event(id="1"), bad, event(id="3")], BATCH)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert answer.json()["field"] == field
    assert await gateway.events() == []
    assert (await post(gateway, event(id="1"))).json()["accepted"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (without("specversion"), "specversion"),
        (without("id"), "id"),
        (without("source"), "source"),
        (without("type"), "type"),
        (event(specversion="0.3"), "specversion"),
        (event(specversion=1.0), "specversion"),
        (event(id=""), "id"),
        (event(id=5), "id"),
        (event(source=""), "source"),
        (event(source="a\u0000b"), "source"),
        (event(type=None), "type"),
        (event(time="yesterday"), "time"),
        (event(time="2018-04-05T17:31:00"), "time"),
        (event(time="0001-01-01T00:00:00+23:00"), "time"),
        (event(forebaylane="ledger"), "forebaylane"),
        (event(forebay="x"), "forebay"),
        (event(Upper="x"), "Upper"),
        (event(**{"with-hyphen": "x"}), "with-hyphen"),
        (event(**{"x" * 65: "x"}), "x" * 65),
        (event(list=[1]), "list"),
        (event(float=1.5), "float"),
        (event(int=2**31), "int"),
        (event(data_base64="AAAA"), "data_base64"),
        (event(data=msgspec.Raw(b"[" * 200 + b"]" * 200)), "data"),
        (event(data=msgspec.Raw(b"1e400")), "data"),
        (event(data=msgspec.Raw(b"9" * 5000)), "data"),
    ],
)
async def test_what_is_readable_but_wrong_is_refused_by_name(gateway: Served, body: Any, field: str) -> None:
    answer = await post(gateway, body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json()["field"] == field
    assert await gateway.events() == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"id":"\xff"}', b'{"id":"\\ud800"}', b'{"data":' + b"[" * 5000])
@pytest.mark.parametrize("media_type", [STRUCTURED, BATCH])
async def test_what_is_not_json_is_unreadable(gateway: Served, body: bytes, media_type: str) -> None:
    answer = await post(gateway, body if media_type == STRUCTURED else b"[" + body, media_type)
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)


@pytest.mark.parametrize("body", [[], 5, None])
async def test_a_structured_event_is_an_object(gateway: Served, body: Any) -> None:
    assert (await post(gateway, body)).status_code == 422


async def test_a_batch_is_an_array(gateway: Served) -> None:
    assert (await post(gateway, EVENT, BATCH)).status_code == 422


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"ce_specversion": "-"}, "ce-specversion"),
        ({"ce_id": "-"}, "ce-id"),
        ({"ce_id": ""}, "ce-id"),
        ({"ce_specversion": "0.3"}, "ce-specversion"),
        ({"ce_forebaylane": "x"}, "ce-forebaylane"),
        ({"ce_two_words": "x"}, "ce-two-words"),
        ({"ce_foo": "%FF"}, "ce-foo"),
        ({"ce_foo": "a%0Ab"}, "ce-foo"),
        ({"ce_data": "x"}, "ce-data"),
        ({"ce_datacontenttype": "application/json"}, "ce-datacontenttype"),
        ({"ce_time": "noon"}, "ce-time"),
    ],
)
async def test_a_wrong_header_is_refused_by_name(gateway: Served, headers: dict[str, str], field: str) -> None:
    answer = await binary(gateway, b"{}", **headers)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (422, PROBLEM, field)
    assert await gateway.events() == []


async def test_a_header_that_is_there_twice_is_refused_by_name(gateway: Served) -> None:
    headers = [("ce-specversion", "1.0"), ("ce-id", "1"), ("CE-ID", "2"), ("ce-source", "/a"), ("ce-type", "t")]
    answer = await gateway.http.post("/gateway/events", content=b"1", headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "ce-id")


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ('"a \\"quoted\\" value"', 'a "quoted" value'),
        ("100%25", "100%"),
        ("100%", "100%"),
        ("%2525", "%25"),
        ("plain, with comma", "plain, with comma"),
    ],
)
async def test_header_values_are_decoded_once_as_the_binding_says(gateway: Served, sent: str, meant: str) -> None:
    assert (await binary(gateway, ce_subject=sent)).status_code == 201
    (stored,) = await gateway.events()
    assert stored.attributes["subject"] == meant


async def test_no_content_type_in_binary_mode_means_json(gateway: Served) -> None:
    assert (await binary(gateway, b"[1, 2]")).status_code == 201
    (stored,) = await gateway.events()
    assert (stored.body, stored.content_type) == (b"[1, 2]", "application/json")


@pytest.mark.parametrize("body", [b"{", b"\xff"])
async def test_binary_data_that_is_not_json_is_unreadable(gateway: Served, body: bytes) -> None:
    assert (await binary(gateway, body)).status_code == 400


async def test_an_event_without_data_gets_the_body_null(gateway: Served) -> None:
    assert (await binary(gateway, b"")).status_code == 201
    assert (await post(gateway, without("data"))).status_code == 201
    assert (await post(gateway, event(id="2", data=None))).status_code == 201
    assert [stored.body for stored in await gateway.events()] == [b"null"] * 3


@pytest.mark.parametrize("data", [0, "text", [], False, {"a": {}}, 2**70, 1.5])
async def test_data_is_any_json(gateway: Served, data: Any) -> None:
    encoded = b"%d" % data if type(data) is int else msgspec.json.encode(data)
    assert (await binary(gateway, encoded)).status_code == 201
    assert [stored.body for stored in await gateway.events()] == [encoded]


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/xml", "application/cloudevents+xml", "application/json; charset=utf-16"]
)
async def test_another_media_type_is_refused(gateway: Served, media_type: str) -> None:
    answer = await binary(gateway, content_type=media_type)
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)
    refused = await post(gateway, EVENT, media_type)
    assert refused.status_code == 415


async def test_sizes_have_limits(gateway: Served) -> None:
    assert (await binary(gateway, b'"' + b"x" * 262_142 + b'"')).status_code == 201
    assert (await binary(gateway, b'"' + b"x" * 262_143 + b'"')).status_code == 413
    assert (await post(gateway, event(subject="€" * 2000))).status_code == 413
    answer = await post(gateway, b" " * (8 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)


async def test_the_lane_of_a_type_comes_from_the_settings(gateway: Served) -> None:
    await post(gateway, event(type="com.example.reading"))
    assert [stored.type for stored in await gateway.events("telemetry")] == ["com.example.reading"]
    assert await gateway.events("ledger") == []


async def test_settings_that_are_wrong_are_refused_when_the_service_starts(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match=r"\[gateway\] in forebay.toml: .*'fast'"):
        await serve(gateway_app, lanes={"a": "fast"})


@pytest.mark.parametrize(
    ("event_type", "kind"),
    [
        ("com.example.Reading", "com-example-reading"),
        ("--A B--", "a-b"),
        ("€", "event"),
        ("x" * 70, "x" * 63),
        ("a" * 62 + ".b", "a" * 62 + "-"),
    ],
)
def test_the_kind_is_made_from_the_type(event_type: str, kind: str) -> None:
    assert kind_of(event_type) == kind


async def test_ids_are_forgotten_after_their_time_in_small_steps(gateway: Served) -> None:
    await post(gateway, [event(id=str(number)) for number in range(5)], BATCH)

    def count(tx: Transaction) -> int:
        return int(tx.execute("select count(*) as n from client_id")[0]["n"])

    now = datetime.now(UTC)
    await gateway.units.write(forget, now - timedelta(days=7), 3)
    assert await gateway.store.read(count) == 5
    await gateway.units.write(forget, now + timedelta(seconds=2), 3)
    assert await gateway.store.read(count) == 2


def test_settings_default_to_the_ledger() -> None:
    assert GatewaySettings().lanes == {}
