"""What a request brings, decoded straight to rows: a batch or lines of events, one event a row of the outbox.

Most events of a batch are plain: they have the attributes that ``_Plain`` knows, and nothing about them is wrong. Those
are decoded in one step, to a tuple each. Every other event is read by ``cloudevents``, whose judgement counts: it takes
what is rare, and says what is wrong. Both ways give the same rows, which a test shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec

from edge.gateway.cloudevents import (
    BATCH,
    LINES,
    MAX_ATTRIBUTE_BYTES,
    MAX_DEPTH,
    ClientEvent,
    Headers,
    content_of,
    content_type_of,
    events_of,
    read_event,
    read_structured,
)
from forebay.drafts import MAX_EVENT_BYTES, Entry, Extra, encoded, entry, extra_of
from forebay.envelope import JSON as DEFAULT_TYPE
from forebay.envelope import format_time
from forebay.json_body import JSON, UNREADABLE, media_type_of
from forebay.problems import ProblemError, phrase

MAX_EVENTS = 10_000
"""Events of one request: they are one transaction, and every other unit of work waits for it."""

MAX_NAMED_ID = 64
"""Bytes of an id that stands in its name; of a longer one a digest does."""

_NOT_A_NAME = re.compile(r"[^a-z0-9]")

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A plain event; ``others`` of its attributes are those without a column."""

    specversion: Literal["1.0"]
    id: _Text
    source: _Text
    type: _Text
    data: msgspec.Raw = msgspec.Raw(b"null")
    time: _Time | None = None
    partitionkey: _Text | None = None
    datacontenttype: Literal["application/json"] | None = None
    dataschema: _Text | None = None
    subject: _Text | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    def others(self) -> dict[str, str]:
        """Return the attributes that have no column, in the order of their names."""
        if self.dataschema is self.subject is self.traceparent is self.tracestate is None:
            return {}
        found = {
            "dataschema": self.dataschema,
            "subject": self.subject,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
        }
        return {name: value for name, value in found.items() if value is not None}


_PLAIN = msgspec.json.Decoder(_Plain)
_DATA = msgspec.json.Decoder()


class Arrivals(msgspec.Struct, gc=False):
    """The events of a request, by column.

    Attributes:
        many: whether the request could bring several: then a problem names the event by its place.
        names: the events' sources and ids, by which they are known again.
        contents: digests of all that they say beside them.
        lanes: where they go.
        entries: their rows.
    """

    many: bool
    names: list[bytes] = []
    contents: list[bytes] = []
    lanes: list[str] = []
    entries: list[Entry] = []

    def source_and_id(self, at: int) -> tuple[str, str]:
        """Return what its client calls an event."""
        said = extra_of(self.entries[at])
        return said.source or "", said.id or ""


def read(headers: Headers, body: bytes, lane_of: Callable[[str], str]) -> Arrivals:
    """Read the events of a request, in whichever mode it is; a batch may be empty.

    Args:
        headers: the request's.
        body: the request's.
        lane_of: gives the lane of a client's type.

    Raises:
        ProblemError: 400, 413, 415 or 422; it names the field, and in a batch the event.
    """
    known = list(headers)
    if media_type_of(content_type_of(known)) not in (BATCH, *LINES):
        reader = _Reader(lane_of, many=False)
        reader.add(read_event(known, body))
        return reader.arrivals
    raws = events_of(known, body)
    if len(raws) > MAX_EVENTS:
        detail = f"the request has {len(raws)} events, the limit is {MAX_EVENTS}: send several requests"
        raise ProblemError(413, phrase(413), detail)
    reader = _Reader(lane_of, many=True)
    for at, raw in enumerate(raws):
        if not reader.add_plain(raw):
            reader.add(read_structured(raw, f"[{at}]"))
    return reader.arrivals


class _Reader:
    """Makes rows of one request's events; what many of them have in common is worked out once."""

    def __init__(self, lane_of: Callable[[str], str], *, many: bool) -> None:
        self.arrivals = Arrivals(many)
        self._lane_of = lane_of
        self._now = format_time(datetime.now(UTC))
        self._types: dict[str, tuple[str, str]] = {}
        self._sources: dict[str, bytes] = {}

    def add_plain(self, raw: msgspec.Raw | bytes) -> bool:
        """Add a plain event; return False for any other, and wherever there is a doubt."""
        try:
            event = _PLAIN.decode(raw)
            body = bytes(event.data)
            value = _DATA.decode(body)
        except UNREADABLE:
            return False
        if len(body) > MAX_EVENT_BYTES or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
            return False
        name, source, kind, key = event.id, event.source, event.type, event.partitionkey
        others = event.others()
        # What is printable has no control characters.
        if not f"{name}{source}{kind}{key}{''.join(others.values())}".isprintable():
            return False
        extra = encoded(Extra(id=name, source=source, attributes=others))
        if 12 * (len(extra) + len(kind) + len(key or "")) > MAX_ATTRIBUTE_BYTES:
            return False  # percent-encoded they may be too many: a character has up to four bytes, each of them three
        try:
            time = None if event.time is None else format_time(event.time)
            content = content_of(kind, time, key, JSON, others, value)
        except OverflowError:
            return False
        self._add(source, name, content, kind, time, key, extra, body)
        return True

    def add(self, event: ClientEvent) -> None:
        """Add an event that was read."""
        # What is the default is left out by identity, not by equality.
        content_type = DEFAULT_TYPE if event.content_type == DEFAULT_TYPE else event.content_type
        extra = Extra(id=event.id, source=event.source, content_type=content_type, attributes=event.attributes)
        self._add(event.source, event.id, event.content, event.type, event.time, event.key, encoded(extra), event.body)

    def _add(
        self,
        source: str,
        name: str,
        content: bytes,
        type: str,  # noqa: A002 - the attribute's name
        time: str | None,
        key: str | None,
        extra: str,
        body: bytes,
    ) -> None:
        known = self._types.get(type)
        if known is None:
            known = self._types[type] = kind_of(type), self._lane_of(type)
        prefix = self._sources.get(source)
        if prefix is None:
            prefix = self._sources[source] = blake2b(source.encode(), digest_size=16).digest()
        kind, lane = known
        arrivals = self.arrivals
        arrivals.entries.append(entry(kind, type, key, time or self._now, None, extra, body))
        arrivals.names.append(prefix + _short(name.encode()))
        arrivals.contents.append(content)
        arrivals.lanes.append(lane)


def kind_of(event_type: str) -> str:
    """Return the last token of the subject for a client's type."""
    return _NOT_A_NAME.sub("-", event_type.lower()).strip("-")[:63] or "event"


def _short(name: bytes) -> bytes:
    return name if len(name) <= MAX_NAMED_ID else b"\0" + blake2b(name, digest_size=64).digest()
