from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay import frame as framing
from forebay import packing
from forebay.envelope import BATCH, Message
from forebay.errors import BodyError, ForgedSourceError, HeaderError, MessageError
from forebay.frame import (
    MAX_EVENTS,
    Unreadable,
    decode_frame,
    frame_headers,
    frames_take,
    identify_frame,
)
from forebay.frame_event import FrameIdentity
from forebay.identity import Place
from forebay.packing import MAX_BYTES, pack, unpack
from tests.framed import encode_frame, is_frame
from tests.property.test_envelope import ANY_TEXT, ATTRIBUTES, EPOCHS, NAMES, PLACES, TEXTS, TIMES, TOKENS

STORED_AT = datetime(2026, 3, 1, tzinfo=UTC)
EPOCH = "a" * 32
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
JSON_BODIES = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(),
    JSON_VALUES,
    st.booleans(),
    st.none() | st.just(1),
)
NEARLY_JSON = st.sampled_from(
    [
        b' {"a":1}',
        b'{"a":1}\n',
        b'1},{"b":2',
        b"01",
        b"NaN",
        b'"\\ud800"',
        b'"\xff"',
        b"[" * 900 + b"]" * 900,
        b"\xef\xbb\xbf1",
    ]
)
BODIES = JSON_BODIES | NEARLY_JSON | st.binary(min_size=1, max_size=40)
CONTENT_TYPES = (
    st.sampled_from(
        ["application/json", "application/vnd.x+json", "Application/JSON; charset=utf-8", "text/plain", "text/json"]
    )
    | TEXTS
)


@st.composite
def frames(draw: st.DrawFn) -> list[Message]:
    """The events of a frame, as an outbox can hold them."""
    node, kind, lane = draw(NAMES), draw(NAMES), draw(NAMES)
    service = draw(NAMES | st.just("gateway"))
    epoch, first = draw(EPOCHS), draw(st.integers(1, 10**17))
    prev = draw(st.none() | PLACES.filter(lambda place: place.epoch != epoch))
    found = []
    for sequence in range(first, first + draw(st.integers(2, 5))):
        place = Place(epoch, sequence)
        message = Message(
            message_id=str(place),
            node=node,
            service=service,
            kind=kind,
            id=draw(TEXTS | st.just(str(place))) if service == "gateway" else str(place),
            source=draw(TEXTS) if service == "gateway" else f"/{node}/{service}",
            type=draw(TEXTS),
            time=draw(TIMES).astimezone(UTC),
            key=draw(st.none() | ANY_TEXT),
            content_type=draw(CONTENT_TYPES | st.just("application/json")),
            attributes=draw(st.just({}) | ATTRIBUTES.filter(frames_take)),
            lane=lane,
            place=place,
            prev=prev,
            hlc=draw(st.integers(0, 2**64 - 1)),
            cause=draw(st.none() | TOKENS),
            traceparent=draw(st.none() | TOKENS),
            tracestate=draw(st.none() | TOKENS),
            body=draw(BODIES),
        )
        found.append(message)
    return found


def stored_subject(message: Message) -> str:
    return f"evt.1.{message.node}.{message.service}.{message.kind}"


@given(frames(), st.booleans())
def test_the_events_of_a_frame_are_read_as_they_were_written(messages: list[Message], packed: bool) -> None:
    headers, body = encode_frame(messages, packed=packed)
    assert is_frame(headers)
    frame = identify_frame(stored_subject(messages[0]), headers)
    assert (frame.epoch, frame.first, frame.last) == (
        messages[0].message_id.partition("-")[0],
        int(messages[0].message_id.partition("-")[2]),
        int(messages[-1].message_id.partition("-")[2]),
    )
    assert (frame.prev, frame.lane) == (messages[0].prev, messages[0].lane)
    read = decode_frame(frame, body, STORED_AT)
    assert read == [msgspec.structs.replace(each, stored_at=STORED_AT) for each in messages]


@given(frames())
def test_a_frame_is_a_batch_of_cloudevents_in_json(messages: list[Message]) -> None:
    """CloudEvents JSON format 1.0.2: every event stands for itself."""
    events = json.loads(encode_frame(messages)[1])
    for message, event in zip(messages, events, strict=True):
        assert event["specversion"] == "1.0"
        assert (event["id"], event["source"], event["type"]) == (message.id, message.source, message.type)
        assert event.get("partitionkey") == message.key
        assert event.get("datacontenttype", "application/json") == message.content_type
        assert ("data" in event) != ("data_base64" in event)
        assert {name: event[name] for name in message.attributes} == message.attributes


def event(sequence: int, **members: Any) -> dict[str, Any]:
    whole = {
        "specversion": "1.0",
        "id": f"{EPOCH}-{sequence}",
        "source": "/n/s",
        "type": "s.k.v1",
        "time": "2026-03-01T12:00:00Z",
        "partitionkey": f"key {sequence}",
        "forebayhlc": "0199c82cc0000001",
        "data": {"number": sequence},
        **members,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def frame_of(first: int, last: int, **more: str) -> FrameIdentity:
    headers = {**frame_headers(f"{EPOCH}-{first}-{last}", "telemetry", "none", packed=False), **more}
    return identify_frame("evt.1.n.s.k", headers)


def read(events: Sequence[Any], first: int = 1) -> list[Message | Unreadable]:
    return decode_frame(frame_of(first, first + len(events) - 1), msgspec.json.encode(events), STORED_AT)


BROKEN: list[tuple[Any, type[MessageError], str | None]] = [
    ("no object", HeaderError, None),
    (event(2, id=...), HeaderError, "key 2"),
    (event(2, id=7), HeaderError, None),
    (event(2, specversion="0.3"), HeaderError, "key 2"),
    (event(2, specversion=...), HeaderError, "key 2"),
    (event(2, source="/n/other"), ForgedSourceError, "key 2"),
    (event(2, source=["/n/s"]), HeaderError, "key 2"),
    (event(2, type=""), HeaderError, "key 2"),
    (event(2, time="yesterday"), HeaderError, "key 2"),
    (event(2, time="2026-03-01T12:00:00"), HeaderError, "key 2"),
    (event(2, time="0001-01-01T00:00:00+05:00"), HeaderError, "key 2"),
    (event(2, time=...), HeaderError, "key 2"),
    (event(2, forebayhlc="1"), HeaderError, "key 2"),
    (event(2, forebayhlc="0199C82CC0000001"), HeaderError, "key 2"),
    (event(2, forebayhlc="01 99c82cc000001"), HeaderError, "key 2"),
    (event(2, partitionkey=7), HeaderError, None),
    (event(2, data=...), BodyError, "key 2"),
    (event(2, data=..., data_base64="%"), HeaderError, "key 2"),
]


@pytest.mark.parametrize(("broken", "error", "key"), BROKEN, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("more", [{}, {"color": "red"}], ids=["plain", "with an attribute"])
def test_one_bad_event_leaves_the_others_of_its_frame_readable_f1(
    broken: Any, error: type[MessageError], key: str | None, more: dict[str, str]
) -> None:
    if isinstance(broken, dict):
        broken = {**broken, **more}
    first, second, third = read([event(1), broken, event(3)])
    assert isinstance(first, Message)
    assert isinstance(third, Message)
    assert (first.body, third.body) == (b'{"number":1}', b'{"number":3}')
    assert isinstance(second, Unreadable)
    assert type(second.error) is error
    assert (second.place, second.key) == (Place(EPOCH, 2), key)
    assert json.loads(second.text) is not None


@pytest.mark.parametrize(
    "events",
    [
        [event(1), event(3), event(2)],
        [event(1), event(2), event(2)],
        [event(1), event(2, id="b" * 32 + "-2"), event(3)],
        [event(1), event(2, id="mine"), event(3)],
        [event(1), event(2, id="mine", color="red"), event(3)],
    ],
)
def test_a_frame_in_which_an_event_says_another_place_is_not_read_at_all(events: list[Any]) -> None:
    with pytest.raises(BodyError, match="in the place of"):
        read(events)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_frame_with_another_number_of_events_is_not_read_at_all(count: int) -> None:
    body = msgspec.json.encode([event(sequence) for sequence in range(1, count + 1)])
    with pytest.raises(BodyError, match=f"has {count} events"):
        decode_frame(frame_of(1, 3), body, STORED_AT)


def test_attributes_of_others_and_members_of_a_later_release() -> None:
    found = read(
        [event(1, count=7, flag=True, none=None, deep={"a": 1}, forebaycolor="red", **{"odd-name": "x"}), event(2)]
    )
    assert [each.attributes for each in found if isinstance(each, Message)] == [{"count": "7", "flag": "true"}, {}]


def test_data_of_a_content_that_is_not_json_is_the_text_of_its_string() -> None:
    """CloudEvents JSON format 1.0.2, section 3.1.1."""
    found = read([event(1, datacontenttype="text/plain", data="Grüße"), event(2, datacontenttype="text/plain", data=5)])
    assert [each.body for each in found if isinstance(each, Message)] == ["Grüße".encode(), b"5"]


def test_times_with_an_offset_are_read_in_utc() -> None:
    found = read([event(1, time="2026-03-01T13:00:00+01:00"), event(2)])
    assert [each.time for each in found if isinstance(each, Message)] == [datetime(2026, 3, 1, 12, tzinfo=UTC)] * 2


@pytest.mark.parametrize(
    ("subject", "headers", "reason"),
    [
        ("cmd.n.s.k", {}, "is not evt"),
        ("evt.1.n.s.k", {"Nats-Msg-Id": ""}, "message id"),
        ("evt.1.n.s.k", {"Nats-Msg-Id": "mine"}, "message id"),
        ("evt.1.n.s.k", {"Nats-Msg-Id": f"{EPOCH}-2-1"}, "ends before it begins"),
        ("evt.1.n.s.k", {"Nats-Msg-Id": f"{EPOCH}-1-{MAX_EVENTS + 1}"}, "more than"),
        ("evt.1.n.s.k", {"forebay-lane": ""}, "forebay-lane"),
        ("evt.1.n.s.k", {"forebay-prev": ""}, "forebay-prev"),
        ("evt.1.n.s.k", {"forebay-prev": f"{EPOCH}-1"}, "own epoch"),
    ],
)
def test_a_frame_that_does_not_say_where_it_stands_is_refused(
    subject: str, headers: dict[str, str], reason: str
) -> None:
    with pytest.raises(HeaderError, match=reason):
        identify_frame(subject, {**frame_headers(f"{EPOCH}-1-2", "telemetry", "none", packed=False), **headers})


def test_the_suffix_of_a_retransmission_is_no_part_of_the_id_i4() -> None:
    assert frame_of(1, 2, **{"Nats-Msg-Id": f"{EPOCH}-1-2~abc"}).message_id == f"{EPOCH}-1-2"


def test_only_consecutive_events_of_one_lane_and_subject_make_a_frame() -> None:
    found = [each for each in read([event(1), event(2), event(3)]) if isinstance(each, Message)]
    replace = msgspec.structs.replace
    for wrong in (
        found[:1],
        [found[0], found[2]],
        [found[1], found[0]],
        [found[0], replace(found[1], kind="other")],
        [found[0], replace(found[1], lane="other")],
        [found[0], replace(found[1], place=Place("b" * 32, 2))],
        [found[0], replace(found[1], attributes={"traceparent": "x"})],
        [found[0], replace(found[1], place=None)],
    ):
        with pytest.raises(ValueError, match="frame"):
            encode_frame(wrong)


@given(
    st.sampled_from(["", "zstd", "gzip"]),
    st.binary(max_size=60) | JSON_BODIES | st.lists(JSON_VALUES, max_size=3).map(msgspec.json.encode),
    st.booleans(),
)
@example("", b"[" * 100_000, False)
@example("", b"[1,\xff]", False)
def test_no_body_whatever_it_holds_fails_otherwise_than_as_one_to_park(
    encoding: str, body: bytes, packed: bool
) -> None:
    try:
        found = decode_frame(
            frame_of(1, 2, **{"content-encoding": encoding}), pack(body) if packed else body, STORED_AT
        )
    except (HeaderError, BodyError):
        return
    assert len(found) == 2


@given(st.data())
def test_no_bytes_that_changed_on_the_way_fail_otherwise(data: st.DataObject) -> None:
    messages = data.draw(frames())
    headers, body = encode_frame(messages, packed=data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    frame = identify_frame(stored_subject(messages[0]), headers)
    try:
        found = decode_frame(frame, changed, STORED_AT)
    except (HeaderError, BodyError):
        return
    assert [each.place for each in found] == [each.place for each in messages]


ODD_TICKS = st.sampled_from(
    [
        "",
        "0199C82CC0000001",
        "0199c82cc000001",
        "0199c82cc00000010",
        " 199c82cc0000001",
        "01 99c82cc000001",
        "0199c82cc000000g",
        "\u0660199c82cc000000",
        "0x99c82cc0000001",
        "-199c82cc0000001",
    ]
) | st.text("0123456789abcdefABCDEF +_", min_size=14, max_size=18)
ODD_MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["mine", f"{EPOCH}-2", ..., 7]),
    "source": st.sampled_from(["/n/other", "/n/s/", "", ...]),
    "type": st.sampled_from(["", "s.k.v2", "Grüße", ...]),
    "time": st.sampled_from(
        ["2026-03-01T13:00:00+01:00", "2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00", "0001-01-01T00:00:00+05:00"]
    ),
    "forebayhlc": ODD_TICKS | st.just(...),
    "partitionkey": st.sampled_from([None, "", "other", 7, ...]),
    "datacontenttype": st.sampled_from([None, "", "application/json", "text/plain", "text/x+json"]),
    "forebaycause": st.sampled_from([None, "", "cause/s/0"]),
    "traceparent": st.sampled_from([None, "00-1-2-3"]),
    "data": st.sampled_from([None, "text", [], 5, ...]),
    "data_base64": st.sampled_from([None, "", "eA==", "%"]),
    "specversion": st.sampled_from(["0.3", ...]),
    "color": st.sampled_from(["red", 7, None]),
}


def read_otherwise(frame: FrameIdentity, body: bytes) -> Any:
    """What a frame says, each event that cannot be read by its error; or the error that it is as a whole."""
    try:
        found = decode_frame(frame, body, STORED_AT)
    except MessageError as error:
        return type(error), str(error)
    return [
        each if isinstance(each, Message) else (each.place, type(each.error), str(each.error), each.key, each.text)
        for each in found
    ]


@given(st.data())
def test_what_is_read_at_once_is_what_is_read_event_by_event(data: st.DataObject) -> None:
    """One odd event, or two that could make up for each other, among others that are as most are."""
    count = data.draw(st.integers(2, 5))
    events = [event(sequence) for sequence in range(1, count + 1)]
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(ODD_MEMBERS)))
        at = data.draw(st.integers(0, count - 1))
        events[at] = event(at + 1, **{**events[at], name: data.draw(ODD_MEMBERS[name])})
    body = msgspec.json.encode(events)
    frame = frame_of(1, count)
    at_once = read_otherwise(frame, body)
    with pytest.MonkeyPatch.context() as one_by_one:
        one_by_one.setattr(framing._Reading, "alike", lambda *_: None)
        assert read_otherwise(frame, body) == at_once


@given(frames())
def test_what_a_relay_wrote_is_read_the_same_at_once_and_event_by_event(messages: list[Message]) -> None:
    headers, body = encode_frame(messages)
    frame = identify_frame(stored_subject(messages[0]), headers)
    at_once = read_otherwise(frame, body)
    with pytest.MonkeyPatch.context() as one_by_one:
        one_by_one.setattr(framing._Reading, "alike", lambda *_: None)
        assert read_otherwise(frame, body) == at_once


def test_most_frames_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing._Reading, "event", lambda *_: pytest.fail("an event was read by itself"))
    assert len(read([event(1), event(2, partitionkey=...), event(3, forebaycause="c/s/0")])) == 3


def test_a_few_bytes_that_unpack_to_very_many_are_refused() -> None:
    bomb = pack(b" " * (MAX_BYTES + 1))
    assert len(bomb) < 4096
    with pytest.raises(BodyError, match="the limit"):
        unpack("zstd", bomb)
    assert len(unpack("zstd", pack(b" " * MAX_BYTES))) == MAX_BYTES
    with pytest.raises(BodyError, match="the limit"):
        unpack("", b" " * (MAX_BYTES + 1))


def test_what_is_too_large_is_not_unpacked_to_its_end() -> None:
    zstd: Any = packing._zstd()
    packer = zstd.ZstdCompressor()
    bomb = b"".join(packer.compress(bytes(MAX_BYTES)) for _ in range(16)) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(BodyError, match="more than"):
            unpack("zstd", bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_packed_bytes_that_ask_for_more_memory_than_a_reader_gives_are_refused() -> None:
    zstd: Any = packing._zstd()
    wide = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    packed = wide.compress(b" " * 1024) + wide.flush()
    with pytest.raises(BodyError, match="unpacked"):
        unpack("zstd", packed)


def test_packed_bytes_that_are_cut_off_or_followed_by_others_are_refused() -> None:
    whole = pack(b"[1,2]")
    for wrong in (whole[:-1], whole + b"x", whole + whole, b""):
        with pytest.raises(BodyError, match="cannot be unpacked"):
            unpack("zstd", wrong)


def test_a_reader_without_zstd_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_zstd", lambda: None)
    assert not packing.can_pack()
    with pytest.raises(HeaderError, match=r"install forebay\[zstd\]"):
        unpack("zstd", b"anything")


def test_a_message_is_a_frame_by_its_content_type() -> None:
    assert is_frame({"Content-Type": BATCH})
    assert is_frame({"content-type": f"{BATCH.upper()}; charset=utf-8"})
    assert not is_frame({"Content-Type": "application/json"})
    assert not is_frame({})
