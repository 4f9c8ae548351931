from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.envelope import (
    Message,
    decode_message,
    encode_headers,
    event_subject,
    format_time,
    identify,
    parse_time,
    percent_decode,
    percent_encode,
)
from forebay.errors import MessageError
from forebay.identity import Place

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
