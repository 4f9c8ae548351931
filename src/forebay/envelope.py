"""The envelope of one event on the wire: CloudEvents 1.0 in NATS binary mode, with forebay's own headers.

CloudEvents core and NATS protocol binding, version 1.0.2; ``ce-*`` values are percent-encoded as the binding's section
3.1.3.2 says. ``forebay-*`` headers are our own (docs/guarantee.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from forebay.clock import format_tick, parse_tick
from forebay.errors import BodyError, ForgedSourceError, FrameFoundError, HeaderError
from forebay.headers import Headers
from forebay.identity import NAME, Place, parse_event_id, parse_place
from forebay.plain import Plain, read_plain
from forebay.subjects import KEPT_SUBJECTS, command_parts, subject_parts

JSON = "application/json"
BATCH = "application/cloudevents-batch+json"
GATEWAY = "gateway"
"""The service whose clients bring sources and ids of their own."""

_TO_ENCODE = re.compile(r"[^\x21\x23\x24\x26-\x7e]")
_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")
KEPT_SHAPES = 1_024
"""Sets of header names that are read once while they come again and again."""

_KEPT_NAMES, _KEPT_CHARACTERS = 32, 1_024
"""Of the names in a set that is kept: whoever made up others all the time would fill hundreds of megabytes else."""

_REQUIRED = ("ce-specversion", "ce-source", "ce-type", "ce-id", "ce-time")
_KNOWN = {"specversion", "id", "source", "type", "time", "datacontenttype", "partitionkey"}


class Message(msgspec.Struct, frozen=True, gc=False):
    """One event as it was published or received.

    ``node``, ``service`` and ``kind`` come from the subject, which the server has checked; of a command ``node`` and
    ``service`` are the sender's, and ``destination`` is ``<node>/<service>``. ``place`` is None for the message of a
    foreign producer. ``attributes`` are the CloudEvents attributes and extensions beside the named ones. ``stored_at``
    is when the broker stored it, by the broker's clock; None for what was not received from one.

    A handler that has a third parameter gets it beside the event:

    Example:
        >>> from forebay import Event, Service, UnitOfWork
        >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
        ...     door: str
        >>> audit = Service("audit")
        >>> @audit.on(DoorOpened)
        ... def note(tx: UnitOfWork, opened: DoorOpened, message: Message) -> None:
        ...     at = int(message.time.timestamp() * 1000)  # milliseconds since 1970; when it happened, not when it came
        ...     tx.execute("insert into opened (node, at) values (:node, :at)", node=message.node, at=at)
    """

    message_id: str
    node: str
    service: str
    kind: str
    id: str
    source: str
    type: str
    time: datetime
    key: str | None = None
    content_type: str = JSON
    attributes: dict[str, str] = {}
    lane: str = ""
    place: Place | None = None
    prev: Place | None = None
    hlc: int = 0
    cause: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    stored_at: datetime | None = None
    body: bytes = b""
    destination: str = ""


class Identity(NamedTuple):
    """Who wrote a stored event and where it stands; ``place`` is None for a foreign producer's (I7).

    ``headers`` are the message's, their names in lower case; ``attributes`` are the names of those of its CloudEvents
    attributes that have no field of their own in ``Message``. ``plain`` is what was read of it already, if anything.
    """

    headers: Mapping[str, str]
    message_id: str
    node: str
    service: str
    kind: str
    place: Place | None = None
    prev: Place | None = None
    lane: str = ""
    destination: str = ""
    attributes: tuple[str, ...] = ()
    plain: Plain | None = None

    @property
    def caused(self) -> bool:
        """Whether the event names a cause (B5)."""
        return self.plain.cause is not None if self.plain else "forebay-cause" in self.headers


def is_batch(content_type: str) -> bool:
    """Whether a ``Content-Type`` says that a message is a frame, of one or more events."""
    return content_type.partition(";")[0].strip().lower() == BATCH


def percent_encode(value: str) -> str:
    """Encode a header value: everything but printable ASCII without space, ``"`` and ``%``, as UTF-8 bytes."""
    if _TO_ENCODE.search(value) is None:
        return value
    return _TO_ENCODE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


def percent_decode(value: str) -> str:
    """Decode a header value.

    Raises:
        HeaderError: the encoded bytes are not UTF-8.
    """

    def decoded(found: re.Match[str]) -> str:
        return bytes.fromhex(found[0].replace("%", "")).decode()

    try:
        return _ENCODED.sub(decoded, value) if "%" in value else value
    except UnicodeDecodeError:
        raise HeaderError(f"header value {value!r} does not decode to UTF-8") from None


def format_time(time: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC, with as many digits as it has."""
    return f"{(time if time.tzinfo is UTC else time.astimezone(UTC)).isoformat()[:-6]}Z"


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time with an offset, and return it in UTC.

    Raises:
        HeaderError: it is not one, or in UTC it is outside the years 1 to 9999.
    """
    try:
        time = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise HeaderError(f"time {text!r} is not RFC 3339") from None
    if time.tzinfo is None:
        raise HeaderError(f"time {text!r} has no offset from UTC")
    if time.tzinfo is UTC:
        return time
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise HeaderError(f"time {text!r} is out of range in UTC") from None


def encode_headers(message: Message) -> dict[str, str]:
    """Return the NATS headers of a message, ``Nats-Msg-Id`` included."""
    headers = write_headers(
        message.message_id,
        message.id,
        message.source,
        message.type,
        format_time(message.time),
        message.key,
        message.content_type,
        message.attributes,
    )
    if message.place is not None:
        headers["forebay-lane"] = message.lane
        headers["forebay-prev"] = str(message.prev or "none")
        headers["forebay-hlc"] = format_tick(message.hlc)
    add_optional(headers, message.cause, message.traceparent, message.tracestate)
    return headers


def write_headers(
    message_id: str,
    event_id: str,
    source: str,
    type_: str,
    time: str,
    key: str | None,
    content_type: str,
    attributes: Mapping[str, str],
) -> dict[str, str]:
    """Return the headers of an event that CloudEvents asks for; ``time`` is as ``format_time`` writes it."""
    headers = {f"ce-{name}": percent_encode(value) for name, value in attributes.items()} if attributes else {}
    headers["Nats-Msg-Id"] = message_id
    headers["ce-specversion"] = "1.0"
    headers["ce-id"] = percent_encode(event_id)
    headers["ce-source"] = percent_encode(source)
    headers["ce-type"] = percent_encode(type_)
    headers["ce-time"] = time
    headers["ce-datacontenttype"] = percent_encode(content_type)
    if key is not None:
        headers["ce-partitionkey"] = percent_encode(key)
    return headers


def add_optional(headers: dict[str, str], cause: str | None, traceparent: str | None, tracestate: str | None) -> None:
    """Add to the headers what only some events have."""
    if cause is not None:
        headers["forebay-cause"] = cause
    if traceparent is not None:
        headers["traceparent"] = traceparent
    if tracestate is not None:
        headers["tracestate"] = tracestate


def identify(subject: str, headers: Mapping[str, str], plain: Plain | None = None) -> Identity:
    """Read who wrote a stored event and where it stands, from subject and headers alone.

    Args:
        subject: as the stream has it.
        headers: as they came.
        plain: what ``plain_event.plain_of`` returned of them, where that was asked already.

    Raises:
        HeaderError: subject, message id or one of the headers that place the event is missing or malformed.
        FrameFoundError: it is a frame, of which only its own events say more.
    """
    if isinstance(headers, Headers):
        plain = plain or read_plain(headers.raw)
        if plain is not None and not subject.startswith("cmd."):
            return _placed(subject, headers, plain)
        headers = headers.fields
    names, attributes = _shape(tuple(headers))
    lower = dict(zip(names, headers.values(), strict=True))
    if subject.startswith("cmd."):
        destination, kind = command_parts(subject)
        node, service = _sender(lower)
    else:
        destination = ""
        node, service, kind = subject_parts(subject)
    text = _required(lower, "nats-msg-id")
    place = parse_event_id(text)
    if is_batch(lower.get("content-type", "")):
        raise FrameFoundError(f"the message {text!r} is a frame")
    if place is None and destination:
        raise HeaderError(f"the command {text!r} has no place: only an outbox sends commands")
    if place is None:
        return Identity(lower, text, node, service, kind, attributes=attributes)
    lane = _lane(_required(lower, "forebay-lane"))
    prev = prev_of(_required(lower, "forebay-prev"))
    if prev is not None and prev.epoch == place.epoch:
        raise HeaderError("forebay-prev names the message's own epoch")
    message_id = text if "~" not in text else str(place)
    return Identity(lower, message_id, node, service, kind, place, prev, lane, destination, attributes)


def _placed(subject: str, headers: Headers, plain: Plain) -> Identity:
    node, service, kind = subject_parts(subject)
    place, prev = Place(plain.epoch, int(plain.sequence)), prev_of(plain.prev)
    if prev is not None and prev.epoch == plain.epoch:
        raise HeaderError("forebay-prev names the message's own epoch")
    return tuple.__new__(
        Identity, (headers, plain.message_id, node, service, kind, place, prev, plain.lane, "", (), plain)
    )


def decode_message(identity: Identity, body: bytes, stored_at: datetime) -> Message:
    """Read the rest of a stored event. ``stored_at`` stands in for a foreign producer's missing time.

    Raises:
        HeaderError: an attribute is missing or malformed.
        ForgedSourceError: ``ce-source`` is not the subject's node and service.
        BodyError: the body is empty.
    """
    if identity.plain is not None:
        return _decode_plain(identity, identity.plain, body, stored_at)
    headers = identity.headers
    get = headers.get
    version, source, type_, id_, time = map(get, _REQUIRED)
    if not (version and source and type_ and id_ and (time or (identity.place is None and time is None))):
        missing = next(name for name in _REQUIRED if not headers.get(name))
        raise HeaderError(f"header {missing} is missing")
    if version != "1.0":
        raise HeaderError(f"ce-specversion {version!r} is not 1.0")
    source = percent_decode(source)
    _check(identity, source, body)
    key, tick = get("ce-partitionkey"), get("forebay-hlc")
    return Message(
        message_id=identity.message_id,
        node=identity.node,
        service=identity.service,
        kind=identity.kind,
        id=percent_decode(id_),
        source=source,
        type=percent_decode(type_),
        time=parse_time(percent_decode(time)) if time else stored_at,
        key=None if key is None else percent_decode(key),
        content_type=percent_decode(get("ce-datacontenttype", JSON)),
        attributes={name: percent_decode(headers[f"ce-{name}"]) for name in identity.attributes},
        lane=identity.lane,
        place=identity.place,
        prev=identity.prev,
        hlc=parse_tick(tick) if tick else 0,
        cause=get("forebay-cause"),
        traceparent=get("traceparent"),
        tracestate=get("tracestate"),
        stored_at=stored_at,
        body=body,
        destination=identity.destination,
    )


def _decode_plain(identity: Identity, plain: Plain, body: bytes, stored_at: datetime) -> Message:
    _check(identity, plain.source, body)
    return Message(
        plain.message_id,
        identity.node,
        identity.service,
        identity.kind,
        plain.id,
        plain.source,
        plain.type,
        parse_time(plain.time),
        plain.key,
        plain.content_type,
        {},
        plain.lane,
        identity.place,
        identity.prev,
        int(plain.hlc, 16),
        plain.cause,
        plain.traceparent,
        plain.tracestate,
        stored_at,
        body,
    )


def _check(identity: Identity, source: str, body: bytes) -> None:
    if source != f"/{identity.node}/{identity.service}" and identity.service != GATEWAY:
        raise ForgedSourceError(f"ce-source {source!r} is not /{identity.node}/{identity.service}, as the subject says")
    if not body:
        raise BodyError("the body is empty")


def _sender(headers: Mapping[str, str]) -> tuple[str, str]:
    source = percent_decode(_required(headers, "ce-source"))
    tokens = source.split("/")
    if len(tokens) != 3 or tokens[0] or not all(NAME.fullmatch(token) for token in tokens[1:]):
        raise HeaderError(f"ce-source {source!r} is not /<node>/<service>")
    return tokens[1], tokens[2]


def _shape(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a message's header names in lower case, and the attributes among them that ``Message`` has no field for.

    A release writes the same names in the same order each time.
    """
    usual = len(names) <= _KEPT_NAMES and sum(map(len, names)) <= _KEPT_CHARACTERS
    return _kept_shape(names) if usual else _read_shape(names)


def _read_shape(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lower = tuple(name.lower() for name in names)
    attributes = dict.fromkeys(name[3:] for name in lower if name.startswith("ce-"))
    return lower, tuple(name for name in attributes if name not in _KNOWN and _ATTRIBUTE.fullmatch(name))


_kept_shape = lru_cache(KEPT_SHAPES)(_read_shape)


@lru_cache(KEPT_SHAPES)
def _lane(text: str) -> str:
    if not NAME.fullmatch(text):
        raise HeaderError(f"forebay-lane {text!r} is not a name")
    return text


prev_of = lru_cache(KEPT_SUBJECTS)(parse_place)
"""Reads a ``forebay-prev``, as ``parse_place`` does; the same for all events of an epoch."""


def _required(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise HeaderError(f"header {name} is missing")
    return value
