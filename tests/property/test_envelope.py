from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.envelope import (
    JSON,
    Message,
    decode_message,
    encode_headers,
    format_time,
    identify,
    parse_time,
    percent_decode,
    percent_encode,
)
from forebay.errors import MessageError
from forebay.headers import Headers
from forebay.identity import Place
from forebay.jetstream.publishing import encode_head
from forebay.plain import read_plain
from forebay.plain_event import decode_usual, plain_of
from forebay.plain_heads import PlainHeads
from forebay.subjects import event_subject

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
EPOCHS = st.integers(0, 2**128 - 1).map("{:032x}".format)
PLACES = st.builds(Place, EPOCHS, st.integers(1, 10**18 - 1))
TEXTS = st.text(min_size=1, max_size=30)
ANY_TEXT = st.text(max_size=30) | st.text("%4fF €é", max_size=12)
TOKENS = st.from_regex(r"[!-~]{1,40}", fullmatch=True)
TIMES = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMED = {"specversion", "id", "source", "type", "time", "datacontenttype", "partitionkey"}
ATTRIBUTES = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in NAMED), ANY_TEXT, max_size=4
)

HEADERS = [
    "Nats-Msg-Id",
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-time",
    "ce-partitionkey",
    "ce-x",
    "forebay-lane",
    "forebay-prev",
    "forebay-hlc",
]
VALUES = ["1.0", "/n/s", "none", "a" * 32 + "-1", "b" * 32 + "-2", "2026-03-01T12:00:00Z", "%FF", ""]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    node, service, kind = draw(NAMES), draw(NAMES), draw(NAMES)
    place = draw(PLACES)
    return Message(
        message_id=str(place),
        node=node,
        service=service,
        kind=kind,
        id=draw(TEXTS),
        source=draw(TEXTS) if service == "gateway" else f"/{node}/{service}",
        type=draw(TEXTS),
        time=draw(TIMES),
        key=draw(st.none() | ANY_TEXT),
        content_type=draw(TEXTS),
        attributes=draw(ATTRIBUTES),
        lane=draw(NAMES),
        place=place,
        prev=draw(st.none() | PLACES.filter(lambda prev: prev.epoch != place.epoch)),
        hlc=draw(st.integers(0, 2**64 - 1)),
        cause=draw(st.none() | TOKENS),
        traceparent=draw(st.none() | TOKENS),
        tracestate=draw(st.none() | TOKENS),
        body=draw(st.binary(min_size=1, max_size=50)),
    )


@given(ANY_TEXT)
def test_any_text_survives_a_header(text: str) -> None:
    written = percent_encode(text)
    assert all("!" <= c <= "~" and c != '"' for c in written)
    assert percent_decode(written) == text


@given(ANY_TEXT)
def test_a_header_decodes_or_is_refused_and_never_fails_otherwise(value: str) -> None:
    try:
        percent_decode(value)
    except MessageError:
        return


@given(TIMES)
def test_any_time_survives_a_header_as_utc(time: datetime) -> None:
    written = format_time(time)
    assert written.endswith("Z")
    assert parse_time(written) == time.astimezone(UTC)


@given(messages(), st.integers(0, 7))
def test_any_event_is_read_as_it_was_written(message: Message, partition: int) -> None:
    subject = event_subject(message.node, message.service, message.kind)
    stored = f"evt.{partition}.{subject.removeprefix('evt.')}"
    headers = encode_headers(message)
    identity = identify(stored, headers)
    assert (identity.message_id, identity.place, identity.prev) == (message.message_id, message.place, message.prev)
    stored_at = datetime(2026, 3, 1, tzinfo=UTC)
    assert decode_message(identity, message.body, stored_at) == msgspec.structs.replace(message, stored_at=stored_at)


@given(messages())
def test_every_header_is_one_line_of_printable_ascii(message: Message) -> None:
    for name, value in encode_headers(message).items():
        assert all("!" <= c <= "~" for c in name + value)


@given(
    subject=st.sampled_from(["evt.1.n.s.k", "evt.1.n.gateway.k", "evt.n.s.k"]) | ANY_TEXT,
    headers=st.dictionaries(
        st.sampled_from(HEADERS),
        st.sampled_from(VALUES) | ANY_TEXT,
    ),
    body=st.binary(max_size=2),
)
def test_no_stored_message_whatever_it_holds_fails_otherwise_than_as_one_to_park(
    subject: str, headers: dict[str, str], body: bytes
) -> None:
    try:
        decode_message(identify(subject, headers), body, datetime(2026, 3, 1, tzinfo=UTC))
    except MessageError:
        return


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(MessageError):
        parse_time("2026-03-01T12:00:00")


def wire(headers: dict[str, str]) -> Headers:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Headers(f"NATS/1.0\r\n{lines}\r\n".encode())


def outcome(subject: str, headers: Mapping[str, str], body: bytes) -> Message | str:
    try:
        return decode_message(identify(subject, headers), body, AT)
    except MessageError as error:
        return f"{type(error).__name__}: {error}"


ADDED = [
    {},
    {"Nats-Expected-Stream": "EVENTS"},
    {"Nats-Expected-Stream": "EVENTS", "Nats-Batch-Id": "0a", "Nats-Batch-Sequence": "12", "Nats-Batch-Commit": "1"},
    {"ce-id": "another"},
    {"Ce-Source": "/somebody/else"},
    {"Nats-Msg-Id": "b" * 32 + "-9"},
]


@given(messages(), st.sampled_from(ADDED), st.sampled_from(["", "~0123456789ab"]))
def test_what_is_read_in_one_go_is_what_is_read_name_by_name(
    message: Message, added: dict[str, str], suffix: str
) -> None:
    headers = {**encode_headers(message), "Nats-Msg-Id": f"{message.message_id}{suffix}", **added}
    subject = event_subject(message.node, message.service, message.kind).replace("evt.", "evt.3.", 1)
    assert outcome(subject, wire(headers), message.body) == outcome(subject, headers, message.body)


@given(messages())
def test_what_a_relay_writes_of_a_plain_event_is_read_in_one_go(message: Message) -> None:
    plain = msgspec.structs.replace(
        message, id=message.message_id, source="/node/service", type="s.k.v1", content_type=JSON, attributes={}, key="k"
    )
    published = {"Nats-Expected-Stream": "EVENTS", "Nats-Batch-Id": "0a", "Nats-Batch-Sequence": "1"}
    read = read_plain(wire({**encode_headers(plain), **published}).raw)
    assert read is not None
    assert (read.message_id, read.cause, read.tracestate) == (plain.message_id, plain.cause, plain.tracestate)


ODD_VALUES: dict[str, list[str]] = {
    "Nats-Msg-Id": ["mine", f"{'c' * 32}-7", f"{'c' * 32}-7~abc", f"{'c' * 32}-0", f"{'c' * 32}-1-2"],
    "ce-id": ["another"],
    "ce-source": ["/node/other", "/node", "/n%2Fode/service"],
    "ce-type": ["t%20x"],
    "ce-time": ["yesterday", "2026-03-01T12:00:00", "2026-03-01T13:00:00+01:00", "0001-01-01T00:00:00+05:00"],
    "ce-partitionkey": ["%C3%A9"],
    "forebay-prev": ["none", "nothing", f"{'c' * 32}-1", f"{'d' * 32}-1", f"{'d' * 32}-1~a"],
    "forebay-hlc": ["1", "0199C82CC0000001"],
    "forebay-cause": ["c/s/0"],
}


@given(messages(), st.data())
def test_an_event_as_most_are_is_read_as_it_is_step_by_step_and_any_other_is_left(
    message: Message, data: st.DataObject
) -> None:
    usual = msgspec.structs.replace(
        message, id=message.message_id, source=f"/{message.node}/{message.service}", type="s.k.v1", attributes={}
    )
    usual = msgspec.structs.replace(usual, content_type=JSON, key=data.draw(st.sampled_from([None, "k"])))
    headers = encode_headers(usual)
    subject = event_subject(message.node, message.service, message.kind).replace("evt.", "evt.3.", 1)
    odd = data.draw(st.lists(st.sampled_from(sorted(ODD_VALUES)), max_size=2))
    headers |= {name: data.draw(st.sampled_from(ODD_VALUES[name])) for name in odd}
    body = data.draw(st.just(message.body) | st.sampled_from([b""] if odd else [message.body]))
    subject = data.draw(st.sampled_from([subject, "evt.3.n", "evt.n.s.k"]) if odd else st.just(subject))

    plain = plain_of(wire(headers))
    at_once = None if plain is None else decode_usual(subject, plain, body, AT)

    if at_once is not None:
        assert at_once == outcome(subject, headers, body)
    elif not odd:
        assert message.service == "gateway"


@given(st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(VALUES) | TOKENS)))
def test_headers_in_any_mixture_are_read_alike_both_ways(pairs: list[tuple[str, str]]) -> None:
    raw = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    headers = Headers(f"NATS/1.0\r\n{raw}\r\n".encode())
    assert outcome("evt.0.n.s.k", headers, b"1") == outcome("evt.0.n.s.k", dict(headers), b"1")


@given(messages(), messages())
def test_the_headers_of_a_plain_event_are_written_in_one_go_as_name_by_name(message: Message, other: Message) -> None:
    plain = msgspec.structs.replace(
        message,
        id=message.message_id,
        source=f"/{message.node}/{message.service}",
        content_type=JSON,
        attributes={},
        traceparent=None,
        tracestate=None,
    )
    heads = PlainHeads(plain.source, JSON, plain.lane, str(plain.prev or "none"))
    time, hlc = format_time(plain.time), plain.hlc
    heads.write(other.message_id, other.id, other.type, time, other.key, hlc, other.cause)  # nothing of it stays
    for _ in range(2):
        written = heads.write(plain.message_id, plain.id, plain.type, time, plain.key, hlc, plain.cause)
        assert written == encode_head(encode_headers(plain))
