"""CloudEvents 1.0 as they come over HTTP: binary, structured and batch mode.

The rules are those of the CloudEvents HTTP binding and JSON format, version 1.0.2. The data is always JSON, because it
becomes the bare JSON body of a message; an event without data gets the body ``null``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from forebay.drafts import MAX_EVENT_BYTES
from forebay.envelope import format_time, parse_time, percent_decode, percent_encode
from forebay.errors import HeaderError
from forebay.json_body import JSON, UNREADABLE, media_type_of, unsupported
from forebay.problems import ProblemError, body_problem, invalid, phrase

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
LINES = ("application/x-ndjson", "application/ndjson")
"""One structured event a line; empty lines count for nothing."""

MAX_ATTRIBUTE_BYTES = 16 * 1024
"""Bytes of one event's attributes, percent-encoded: a message of NATS has at most 64 KiB of headers."""

MAX_DEPTH = 128
"""How deep data may be nested; decoders that are deep in a stack of their own give up at less than 1,000."""

_NAME = re.compile(r"[a-z0-9]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_JSON_TYPE = re.compile(r"(?:application|text)/json|[^/]+/[^/]+\+json")
_REQUIRED = ("specversion", "id", "source", "type")
_NON_EMPTY = (*_REQUIRED, "subject", "dataschema", "datacontenttype", "partitionkey", "time")
_NAMED = frozenset({*_REQUIRED, "time", "datacontenttype", "partitionkey"})
_RESERVED = "forebay"
_MAX_INTEGER = 2**31 - 1
_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()
_SAID = msgspec.json.Encoder(order="deterministic")

Headers = Iterable[tuple[bytes, bytes]]


class ClientEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a client, checked.

    Attributes:
        where: the event's path in the request, such as ``[3]`` in a batch; empty for a single one.
        time: when it happened, RFC 3339 in UTC; None where the client says nothing.
        key: the ordering key, its ``partitionkey``.
        attributes: the attributes and extensions beside the named ones.
        body: the data as it was sent, JSON.
        content: a digest of all that the event says beside its source and id.
    """

    where: str
    source: str
    id: str
    type: str
    time: str | None
    key: str | None
    content_type: str
    attributes: dict[str, str]
    body: bytes
    content: bytes


def content_type_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Return what a request's headers say of its body; empty where they say nothing."""
    return b", ".join(value for name, value in headers if name.lower() == b"content-type").decode("latin-1")


def events_of(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> list[msgspec.Raw] | list[bytes]:
    """Split a batch, or lines, into its events, undecoded.

    Raises:
        ProblemError: 400 or 422, the batch is no array.
    """
    if media_type_of(content_type_of(headers)) == BATCH:
        events: list[msgspec.Raw] = _decoded(_EVENTS, body)
        return events
    return [line for line in body.split(b"\n") if line.strip()]


def read_event(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> ClientEvent:
    """Read the one event of a request, in structured or in binary mode.

    Raises:
        ProblemError: 400, 413, 415 or 422; it names the field.
    """
    content_type = content_type_of(headers)
    media_type = media_type_of(content_type)
    if media_type == STRUCTURED:
        return read_structured(body, "")
    if (media_type and not _JSON_TYPE.fullmatch(media_type)) or media_type.startswith("application/cloudevents"):
        raise unsupported(content_type, f"{JSON} with ce-* headers, {STRUCTURED}, {BATCH} or {LINES[0]}")
    return _binary(headers, content_type, body)


Said = tuple[str, str | None, str | None, str, Mapping[str, str], Any]
"""All that an event says beside its source and id: type, time in UTC, partitionkey, datacontenttype, its other
attributes in the order of their names, and its data, decoded."""


def content_of(said: Said) -> bytes:
    """Return a digest of all that an event says beside its source and id: the same in every mode."""
    try:
        text = _SAID.encode(said)
    except OverflowError:  # an integer beyond 64 bits, which the standard library's encoder has
        text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return _digest(text)


def contents_of(said: list[Said]) -> list[bytes]:
    """Return what ``content_of`` does, for many events: in a list, as msgspec 0.22 never frees what ``zip`` gives it.

    Raises:
        OverflowError: there is an integer beyond 64 bits.
    """
    return list(map(_digest, _SAID.encode_lines(said).split(b"\n")[:-1]))


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()


def _binary(headers: Sequence[tuple[bytes, bytes]], content_type: str, body: bytes) -> ClientEvent:
    attributes: dict[str, str] = {}
    for raw_name, raw_value in headers:
        header = raw_name.decode("latin-1").lower()
        name = header.removeprefix("ce-")
        if name == header:
            continue
        if name in attributes:
            raise invalid("the header is there twice", header)
        if name == "datacontenttype":
            raise invalid("in binary mode the header Content-Type says it", header)
        attributes[name] = _header_value(header, raw_value)
    if not attributes:
        raise invalid(f"the event has no ce-* headers; whole events are sent as {STRUCTURED}", "ce-specversion")
    if content_type:
        attributes["datacontenttype"] = content_type
    return _checked(attributes, body or b"null", where="", prefix="ce-")


def _header_value(header: str, raw: bytes) -> str:
    """Decode a header's value: quotes first, as older versions of the binding write them, then one round of %XX."""
    try:
        text = raw.decode().strip()
        quoted = _QUOTED.fullmatch(text)
        return percent_decode(re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text)
    except (UnicodeDecodeError, HeaderError):
        raise invalid("the value does not decode to UTF-8", header) from None


def read_structured(text: bytes | msgspec.Raw, where: str) -> ClientEvent:
    """Read an event in the JSON format.

    Args:
        text: the event.
        where: its path in the request; empty where it is the whole body.

    Raises:
        ProblemError: 400, 413, 415 or 422; it names the field.
    """
    event: dict[str, msgspec.Raw] = _decoded(_EVENT, text, where)
    prefix = f"{where}." if where else ""
    if "data_base64" in event:
        raise invalid("binary data is not taken, send JSON as data", f"{prefix}data_base64")
    attributes: dict[str, str] = {}
    for name, raw in event.items():
        if name == "data":
            continue
        value = _decoded(_ANY, raw, f"{prefix}{name}")
        match value:
            case None:
                continue  # the format's way to say that it is not set
            case bool():
                attributes[name] = "true" if value else "false"
            case int() if name not in _NON_EMPTY and abs(value) <= _MAX_INTEGER:
                attributes[name] = str(value)
            case str():
                attributes[name] = value
            case _:
                raise invalid("an attribute is a string, a boolean or an integer of 32 bits", f"{prefix}{name}")
    data = event.get("data")
    return _checked(attributes, b"null" if data is None else bytes(data), where=where, prefix=prefix)


def _checked(attributes: dict[str, str], body: bytes, *, where: str, prefix: str) -> ClientEvent:
    for name, value in attributes.items():
        _check_attribute(name, value, f"{prefix}{name}")
    for name in _REQUIRED:
        if name not in attributes:
            raise invalid("the attribute is missing", f"{prefix}{name}")
    if attributes["specversion"] != "1.0":
        raise invalid(
            f"version {attributes['specversion']!r} of CloudEvents is not read here, 1.0 is", f"{prefix}specversion"
        )
    content_type = attributes.get("datacontenttype", JSON)
    content_field = "Content-Type" if prefix == "ce-" else f"{prefix}datacontenttype"
    if not _JSON_TYPE.fullmatch(media_type_of(content_type, content_field)):
        raise unsupported(content_type, f"JSON, such as {JSON}", content_field)
    if sum(len(name) + len(percent_encode(value)) for name, value in attributes.items()) > MAX_ATTRIBUTE_BYTES:
        detail = f"the attributes have more than {MAX_ATTRIBUTE_BYTES} bytes in percent-encoding"
        raise ProblemError(413, phrase(413), detail, where or None)
    data_field = f"{where}.data" if where else "data"
    if len(body) > MAX_EVENT_BYTES:
        detail = f"the event's data has {len(body)} bytes, the limit is {MAX_EVENT_BYTES}"
        raise ProblemError(413, phrase(413), detail, data_field)
    value = _decoded(_ANY, body, data_field)
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and not _is_shallow(value):
        raise invalid(f"the data is nested deeper than {MAX_DEPTH} levels", data_field)
    time = _instant(attributes["time"], f"{prefix}time") if "time" in attributes else None
    others = {name: value for name, value in sorted(attributes.items()) if name not in _NAMED}
    key = attributes.get("partitionkey")
    return ClientEvent(
        where=where,
        source=attributes["source"],
        id=attributes["id"],
        type=attributes["type"],
        time=time,
        key=key,
        content_type=content_type,
        attributes=others,
        body=body,
        content=content_of((attributes["type"], time, key, content_type, others, value)),
    )


def _check_attribute(name: str, value: str, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid("an attribute's name has 1 to 64 of a-z and 0-9", field)
    if name.startswith(_RESERVED):
        raise invalid(f"names that begin with {_RESERVED!r} are kept for the relay", field)
    if name == "data":
        raise invalid("no attribute is called data", field)
    if not value and name in _NON_EMPTY:
        raise invalid("the attribute is empty", field)
    if _CONTROL.search(value):
        raise invalid("the value has control characters", field)


def _instant(text: str, field: str) -> str:
    try:
        return format_time(parse_time(text))
    except HeaderError as error:
        raise invalid(str(error), field) from None
    except OverflowError:
        raise invalid(f"{text!r} is no time in the years 1 to 9999 of UTC", field) from None


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw, where: str = "") -> Any:
    try:
        return decoder.decode(text)
    except UNREADABLE as error:
        raise body_problem(error, where) from None


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return True
    return False


def _children(value: Any) -> Iterable[Any]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()
