"""A frame: consecutive events of one epoch, lane and subject in a single message (rule I4).

Its body is a JSON array of events in the CloudEvents JSON format 1.0.2 (``application/cloudevents-batch+json``), which
zstd may have packed. What the events have in common stands in the headers; what belongs to one event is a member of
its object. The place of an event is its number in the array, counted from the frame's first sequence.

An event's body goes as bare JSON (``data``) where it is JSON and has no space around it, and as base64
(``data_base64``) where it is anything else: what is read is byte for byte what was written, as it is of an event that
went alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from forebay.clock import parse_tick
from forebay.envelope import BATCH, GATEWAY, JSON, Message, is_batch
from forebay.errors import BodyError, ForgedSourceError, HeaderError, MessageError
from forebay.frame_event import FrameEvent, FrameIdentity, read_alike
from forebay.identity import NAME, Place, parse_message_id, parse_place
from forebay.packing import ZSTD, unpack
from forebay.subjects import subject_parts

MAX_EVENTS = 10_000
"""Events of one frame, as far as readers take one."""

_SPARE_LEVELS = 200
"""Levels of nesting that a body leaves: a reader whose stack is fuller than the writer's has to get through, too."""

_DEEP = 512
"""Bytes that a body has at least which is nested more deeply than a reader could care for."""

_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")
_JSON_TYPE = re.compile(r"[^/]+/(?:[^;+]+\+)?json(?:\s*;.*)?", re.IGNORECASE)
_NOT_READ = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Unreadable(NamedTuple):
    """One event of a frame that cannot be read, while the others can.

    Attributes:
        place: where it stands.
        error: why.
        key: its ordering key as far as that could be read.
        text: its JSON, as it stands in the frame.
    """

    place: Place
    error: MessageError
    key: str | None
    text: bytes


_MEMBERS = frozenset(FrameEvent.__struct_fields__)
_events = msgspec.json.Decoder(list[FrameEvent]).decode
_event = msgspec.json.Decoder(FrameEvent).decode
_texts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_string = msgspec.json.Decoder(str | None).decode
_scalar = msgspec.json.Decoder(str | bool | int | None).decode
_base64 = msgspec.json.Decoder(bytes).decode
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_encode = msgspec.json.Encoder().encode


# --- writing


def quoted(text: str) -> str:
    """Return a text as JSON."""
    return _encode(text).decode()


def frames_take(attributes: Iterable[str]) -> bool:
    """Whether an event with these attributes can stand in a frame: each has a name that is no other member's there."""
    return all(name not in _MEMBERS and not name.startswith("forebay") for name in attributes)


def write_event(
    event_id: str,
    source: str,
    type_: str,
    time: str,
    key: str | None,
    hlc: int,
    cause: str | None,
    more: str,
    data: str,
) -> str:
    """Return one event as a JSON object.

    Args:
        event_id: as JSON.
        source: as JSON.
        type_: as JSON.
        time: as ``format_time`` writes it.
        key: the ordering key, as it is.
        hlc: a tick of the hybrid clock.
        cause: as it is.
        more: what ``write_more`` returns.
        data: what ``write_data`` returns.
    """
    # What most events of a lane share stands together, and so does what differs: zstd takes it as fewer pieces.
    key = "" if key is None else f',"partitionkey":{quoted(key)}'
    cause = "" if cause is None else f',"forebaycause":{quoted(cause)}'
    return (
        f'{{"specversion":"1.0","source":{source},"type":{type_}{more},"id":{event_id},"forebayhlc":"{hlc:016x}"'
        f',"time":"{time}"{cause}{key},{data}}}'
    )


def write_more(
    content_type: str, attributes: Mapping[str, str], traceparent: str | None, tracestate: str | None
) -> str:
    """Return the members of an event that most do not have."""
    members = {**attributes}
    if content_type != JSON:
        members["datacontenttype"] = content_type
    if traceparent is not None:
        members["traceparent"] = traceparent
    if tracestate is not None:
        members["tracestate"] = tracestate
    return "".join(f",{quoted(name)}:{quoted(value)}" for name, value in members.items())


def write_data(content_type: str, body: bytes) -> str:
    """Return the member that holds an event's body: ``data``, or ``data_base64`` where that would not keep it."""
    if content_type == JSON or _JSON_TYPE.fullmatch(content_type):
        try:
            text = body.decode()
            _skip(body)
            if len(body) > _DEEP and body.count(b"[") + body.count(b"{") > _SPARE_LEVELS:
                _skip(b"[" * _SPARE_LEVELS + body + b"]" * _SPARE_LEVELS)
            if body[0] > 0x20 and body[-1] > 0x20:
                return f'"data":{text}'
        except _NOT_READ:
            pass
    return f'"data_base64":"{base64.b64encode(body).decode()}"'


def frame_headers(message_id: str, lane: str, prev: str, *, packed: bool) -> dict[str, str]:
    """Return the headers of a frame.

    Args:
        message_id: ``<epoch>-<first>-<last>``, with the suffix of a retransmission where it is one.
        lane: of the events.
        prev: as ``forebay-prev`` says it.
        packed: whether the body went through ``pack``.
    """
    headers = {"Nats-Msg-Id": message_id, "Content-Type": BATCH}
    if packed:
        headers["Content-Encoding"] = ZSTD
    headers["forebay-lane"], headers["forebay-prev"] = lane, prev
    return headers


def join_events(events: Iterable[str]) -> bytes:
    """Return the body of a frame of events as ``write_event`` returns them."""
    return f"[{','.join(events)}]".encode()


# --- reading


def identify_frame(subject: str, headers: Mapping[str, str]) -> FrameIdentity:
    """Read who wrote a stored frame and where its events stand, from subject and headers alone.

    No relay writes a frame of one event, but what is parked of a frame is kept as one.

    Raises:
        HeaderError: subject, message id or one of the headers that place the events is missing or malformed, or the
            frame has more than ``MAX_EVENTS`` events.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    node, service, kind = subject_parts(subject)
    if not is_batch(content_type := lower.get("content-type", "")):
        raise HeaderError(f"a message id of several events, and the content-type {content_type!r} is not {BATCH}")
    text = lower.get("nats-msg-id") or ""
    message_id = parse_message_id(text)
    if message_id is None:
        raise HeaderError(f"the frame's message id {text!r} is not <epoch>-<first>-<last>")
    if message_id.last - message_id.first >= MAX_EVENTS:
        raise HeaderError(f"the frame {message_id} has more than {MAX_EVENTS} events")
    lane = lower.get("forebay-lane") or ""
    if not NAME.fullmatch(lane):
        raise HeaderError(f"the frame's forebay-lane {lane!r} is not a name")
    prev = parse_place(lower.get("forebay-prev") or "")
    if prev is not None and prev.epoch == message_id.epoch:
        raise HeaderError("forebay-prev names the message's own epoch")
    epoch, first, last = message_id
    return FrameIdentity(lower, str(message_id), node, service, kind, epoch, first, last, prev, lane)


def decode_frame(frame: FrameIdentity, body: bytes, stored_at: datetime) -> list[Message | Unreadable]:
    """Read a stored frame: its events in order, those that cannot be read among them.

    Raises:
        HeaderError: the body is packed in a way that this process cannot unpack.
        BodyError: nothing can be said of any of the events: it is not a JSON array of as many as the message id says,
            one of them says that it stands elsewhere, or it is larger than ``MAX_BYTES``.
    """
    text = unpack(frame.headers.get("content-encoding", ""), body)
    read = _Reading(frame, stored_at)
    try:
        events = _events(text)
        read.check_count(len(events))
        if alike := read.alike(events):
            return list(alike)
        return [read.event(at, event) for at, event in enumerate(events, frame.first)]
    except (*_NOT_READ, MessageError):
        pass  # each by itself, then: what is wrong may be one event's alone
    try:
        texts = _texts(text)
    except _NOT_READ as error:
        raise BodyError(f"the frame {frame.message_id} is not a JSON array: {error}") from None
    read.check_count(len(texts))
    return [read.text(at, bytes(raw)) for at, raw in enumerate(texts, frame.first)]


class _Reading:
    """The reading of one frame's events."""

    def __init__(self, frame: FrameIdentity, stored_at: datetime) -> None:
        self._frame = frame
        self._stored_at = stored_at
        self._source = "" if frame.service == GATEWAY else f"/{frame.node}/{frame.service}"

    def check_count(self, count: int) -> None:
        if count != self._frame.last - self._frame.first + 1:
            raise BodyError(f"the frame {self._frame.message_id} has {count} events")

    def alike(self, events: Sequence[FrameEvent]) -> Sequence[Message] | None:
        """Return all events where each is as most are; None where each has to be looked at."""
        return read_alike(self._frame, self._source, events, self._stored_at) if self._source else None

    def event(
        self, sequence: int, event: FrameEvent, attributes: dict[str, str] | None = None, text: bytes | None = None
    ) -> Message | Unreadable:
        """Return an event whose members have the right types; ``text`` is its JSON.

        Raises:
            MessageError: it cannot be read, and ``text`` is not given.
        """
        frame = self._frame
        place = Place(frame.epoch, sequence)
        message_id = f"{frame.epoch}-{sequence}"
        if self._source and event.id != message_id:
            raise self._elsewhere(event.id, message_id)
        try:
            if self._source and event.source != self._source:
                raise ForgedSourceError(f"source {event.source!r} is not {self._source}, as the subject says")
            if not (event.id and event.source and event.type):
                raise HeaderError("the event's id, source or type is empty")
            time = event.time if event.time.tzinfo is UTC else _in_utc(event.time)
            content_type = event.datacontenttype or JSON
            body = bytes(event.data)
            if not body:
                body = event.data_base64 or b""
                if not body:
                    raise BodyError("the body is empty")
            elif content_type != JSON and not _JSON_TYPE.fullmatch(content_type):
                body = _text_of(body)
            hlc = parse_tick(event.forebayhlc) if event.forebayhlc else 0
        except MessageError as error:
            if text is None:
                raise
            return Unreadable(place, error, event.partitionkey, text)
        return Message(
            message_id=message_id,
            node=frame.node,
            service=frame.service,
            kind=frame.kind,
            id=event.id,
            source=event.source,
            type=event.type,
            time=time,
            key=event.partitionkey,
            content_type=content_type,
            attributes=attributes or {},
            lane=frame.lane,
            place=place,
            prev=frame.prev,
            hlc=hlc,
            cause=event.forebaycause,
            traceparent=event.traceparent,
            tracestate=event.tracestate,
            stored_at=self._stored_at,
            body=body,
        )

    def text(self, sequence: int, text: bytes) -> Message | Unreadable:
        """Return an event that may have attributes of others, or members that are not as they should be."""
        try:
            return self.event(sequence, _event(text), None, text)
        except _NOT_READ:
            pass
        place, key = Place(self._frame.epoch, sequence), None
        try:
            members = _members(text)
            if self._source and "id" in members and (claimed := _string(members["id"])) != str(place):
                raise self._elsewhere(claimed, str(place))
            if "partitionkey" in members:
                key = _string(members["partitionkey"])
            others = {
                name: _attribute(members[name])
                for name in members
                if name not in _MEMBERS and _ATTRIBUTE.fullmatch(name) and not name.startswith("forebay")
            }
            attributes = {name: value for name, value in others.items() if value is not None}
            own = b",".join(_encode(name) + b":" + bytes(members[name]) for name in members if name in _MEMBERS)
            event = _event(b"{" + own + b"}")
        except _NOT_READ as error:
            return Unreadable(place, HeaderError(f"the event cannot be read: {error}"), key, text)
        return self.event(sequence, event, attributes, text)

    def _elsewhere(self, claimed: str | None, message_id: str) -> BodyError:
        """Where one says that it stands elsewhere, nothing in the frame stands for certain."""
        return BodyError(f"the frame {self._frame.message_id} has {claimed!r} in the place of {message_id}")


def _in_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise HeaderError(f"time {time.isoformat()!r} has no offset from UTC")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise HeaderError(f"time {time.isoformat()!r} is out of range in UTC") from None


def _attribute(raw: msgspec.Raw) -> str | None:
    """Return an attribute's value as text, as the binary mode has it; None for what is no value of an attribute."""
    try:
        value = _scalar(raw)
    except msgspec.ValidationError:
        return None
    return value if isinstance(value, str) or value is None else str(value).lower()


def _text_of(data: bytes) -> bytes:
    """Return the body that ``data`` stands for where the content is not JSON: the text of a string, else its JSON."""
    try:
        text = _string(data)
    except _NOT_READ:
        return data
    return data if text is None else text.encode()
