from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta, timezone

import pytest

from forebay.envelope import (
    Identity,
    Message,
    decode_message,
    encode_headers,
    format_time,
    identify,
    parse_time,
    percent_decode,
    percent_encode,
)
from forebay.errors import BodyError, ForgedSourceError, HeaderError, MessageError
from forebay.identity import Place
from forebay.subjects import event_subject

EPOCH = "0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"
OTHER = "0190a1b2c3d47e5f8a9b0c1d2e3f4a5c"
SUBJECT = "evt.5.store-330.till.sale-recorded"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEADERS = {
    "Nats-Msg-Id": f"{EPOCH}-7",
    "ce-specversion": "1.0",
    "ce-id": f"{EPOCH}-7",
    "ce-source": "/store-330/till",
    "ce-type": "till.sale-recorded.v1",
    "ce-time": "2026-03-01T12:00:00Z",
    "ce-datacontenttype": "application/json",
    "forebay-lane": "ledger",
    "forebay-prev": "none",
    "forebay-hlc": "0199c82cc0000001",
}


def read(headers: dict[str, str], subject: str = SUBJECT, body: bytes = b"{}") -> Message:
    return decode_message(identify(subject, headers), body, NOW)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in HEADERS.items() if key != name}


def test_values_are_encoded_as_the_cloudevents_binding_says() -> None:
    # The example of the CloudEvents NATS binding, section 3.1.3.2: "Euro € 😀".
    assert percent_encode("Euro € 😀") == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert percent_decode("Euro%20%e2%82%ac%20%F0%9F%98%80") == "Euro € 😀"
    assert percent_encode('a"b%c\r\n') == "a%22b%25c%0D%0A"


def test_a_value_that_does_not_decode_to_text_is_refused() -> None:
    with pytest.raises(HeaderError, match="UTF-8"):
        percent_decode("a%FF")


def test_a_lone_percent_sign_is_kept() -> None:
    assert percent_decode("100% %4") == "100% %4"


def test_times_are_written_in_utc() -> None:
    assert format_time(datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1)))) == "2026-03-01T12:00:00Z"
    assert format_time(datetime(2026, 3, 1, 12, 0, 0, 1500, tzinfo=UTC)) == "2026-03-01T12:00:00.001500Z"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-03-01", "2026-03-01T12:00:00", "2026-13-01T12:00:00Z"])
def test_a_time_without_an_offset_is_not_read(text: str) -> None:
    with pytest.raises(HeaderError):
        parse_time(text)


def test_an_event_is_published_without_its_partition_and_read_with_it() -> None:
    assert event_subject("store-330", "till", "sale-recorded") == "evt.store-330.till.sale-recorded"
    identity = identify(SUBJECT, HEADERS)
    assert (identity.node, identity.service, identity.kind) == ("store-330", "till", "sale-recorded")


@pytest.mark.parametrize(
    "subject",
    [
        "evt.store-330.till.sale-recorded",
        "cmd.5.store-330.till.x",
        "evt.5.store-330.till.x.y",
        "evt.5.A.till.x",
        "evt.5..till.x",
    ],
)
def test_a_subject_of_another_form_is_refused(subject: str) -> None:
    with pytest.raises(HeaderError, match="subject"):
        identify(subject, HEADERS)


def test_header_names_are_read_in_any_case() -> None:
    assert read({name.upper(): value for name, value in HEADERS.items()}) == read(HEADERS)


def test_unknown_headers_are_ignored() -> None:
    assert read({**HEADERS, "forebay-new": "x", "Nats-Stream": "EVENTS", "ce-": "x", "ce-a_b": "x"}) == read(HEADERS)


@pytest.mark.parametrize("length", [3, 1000])
def test_made_up_header_names_are_not_kept(length: int) -> None:
    def meet(number: int) -> None:
        many = {f"x{number}-{at}".ljust(length, "x"): "1" for at in range(3000 // length)}
        identify(SUBJECT, {**HEADERS, **many})

    meet(0)
    tracemalloc.start()
    try:
        for number in range(1, 401):
            meet(number)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000


def test_the_suffix_of_a_retransmission_does_not_change_the_event_i4() -> None:
    assert read({**HEADERS, "Nats-Msg-Id": f"{EPOCH}-7~8qk2"}) == read(HEADERS)


@pytest.mark.parametrize("name", ["Nats-Msg-Id", "forebay-lane", "forebay-prev"])
def test_an_id_of_ours_without_what_places_it_is_refused(name: str) -> None:
    with pytest.raises(HeaderError, match=f"header {name.lower()} is missing"):
        identify(SUBJECT, without(name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"Nats-Msg-Id": f"{EPOCH}-7-9"},
        {"Nats-Msg-Id": f"{EPOCH}-0"},
        {"forebay-lane": "Ledger"},
        {"forebay-prev": f"{EPOCH}-6"},
        {"forebay-prev": f"{OTHER}-0"},
        {"forebay-prev": "nothing"},
    ],
)
def test_an_event_that_cannot_be_placed_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(HeaderError):
        identify(SUBJECT, {**HEADERS, **wrong})


@pytest.mark.parametrize("name", ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time"])
def test_an_event_without_a_required_attribute_is_refused(name: str) -> None:
    with pytest.raises(HeaderError, match=name):
        read(without(name))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"ce-specversion": "0.3"}, HeaderError),
        ({"ce-time": "soon"}, HeaderError),
        ({"forebay-hlc": "12"}, HeaderError),
        ({"ce-partitionkey": "%FF"}, HeaderError),
        ({"ce-source": "/store-331/till"}, ForgedSourceError),
        ({"ce-source": "/store-330/price"}, ForgedSourceError),
        ({"ce-source": "store-330/till"}, ForgedSourceError),
    ],
)
def test_a_wrong_attribute_is_refused(wrong: dict[str, str], error: type[MessageError]) -> None:
    with pytest.raises(error):
        read({**HEADERS, **wrong})


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(BodyError, match="empty"):
        read(HEADERS, body=b"")


def test_only_the_gateways_clients_bring_sources_and_ids_of_their_own() -> None:
    headers = {**HEADERS, "ce-source": "urn:door:7", "ce-id": "order 1", "ce-type": "com.acme.Door"}
    message = read(headers, "evt.5.store-330.gateway.com-acme-door")
    assert (message.source, message.id, message.type) == ("urn:door:7", "order 1", "com.acme.Door")
    assert message.place == Place(EPOCH, 7)


def test_a_foreign_producers_message_has_no_place_and_may_have_no_time_i7() -> None:
    headers = {
        "Nats-Msg-Id": "order-1",
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/store-330/shop",
        "ce-type": "sold",
    }
    assert identify("evt.5.store-330.shop.sold", headers) == Identity(
        {name.lower(): value for name, value in headers.items()}, "order-1", "store-330", "shop", "sold"
    )
    message = read(headers, "evt.5.store-330.shop.sold")
    assert (message.place, message.time, message.content_type, message.hlc) == (None, NOW, "application/json", 0)
    assert encode_headers(message).keys() & {"forebay-lane", "forebay-prev", "forebay-hlc"} == set()
