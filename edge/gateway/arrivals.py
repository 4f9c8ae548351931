"""What a request brings, decoded straight to rows: a batch or lines of events, one event a row of the outbox.

Most events of a batch are plain: they have the attributes that ``_Plain`` knows, and nothing about them is wrong. Those
are decoded in one step, to a tuple each. Every other event is read by ``cloudevents``, whose judgement counts: it takes
what is rare, and says what is wrong. Both ways give the same rows, which a test shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import repeat
from typing import Annotated, Literal

import msgspec

from edge.gateway.cloudevents import (
    BATCH,
    LINES,
    MAX_ATTRIBUTE_BYTES,
    MAX_DEPTH,
    ClientEvent,
    Headers,
    content_type_of,
    contents_of,
    events_of,
    read_event,
    read_structured,
)
from forebay.drafts import MAX_EVENT_BYTES, Entry, Extra, all_encoded, encoded, entries, extra_of
from forebay.envelope import JSON as DEFAULT_TYPE
from forebay.envelope import format_time
from forebay.json_body import JSON, UNREADABLE, media_type_of
from forebay.problems import ProblemError, phrase

MAX_EVENTS = 10_000
"""Events of one request: they are one transaction, and every other unit of work waits for it."""

MAX_NAMED_ID = 64
"""Bytes of an id that stands in its name; of a longer one a digest does."""

_SHALLOW = 2 * MAX_DEPTH
"""Bytes of data that cannot be nested too deep: each level has a bracket at either end."""

_FEW_CHARACTERS = MAX_ATTRIBUTE_BYTES // 12
"""Of all attributes, percent-encoded they are not too many: one has up to four bytes, each of them three characters."""

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
    _read_part(reader, raws, 0)
    return reader.arrivals


def _read_part(reader: _Reader, raws: Sequence[msgspec.Raw | bytes], first: int) -> None:
    """Read a part of a request, which begins with its event of that number; halve it until what is not plain is alone.

    Raises:
        ProblemError: see ``read_structured``.
    """
    if not raws or reader.add_plain(raws):
        return
    if len(raws) == 1:
        reader.add(read_structured(raws[0], f"[{first}]"))
        return
    half = len(raws) // 2
    _read_part(reader, raws[:half], first)
    _read_part(reader, raws[half:], first + half)


class _Reader:
    """Makes rows of one request's events; what many of them have in common is worked out once."""

    def __init__(self, lane_of: Callable[[str], str], *, many: bool) -> None:
        self.arrivals = Arrivals(many)
        self._lane_of = lane_of
        self._now = format_time(datetime.now(UTC))
        self._kinds: dict[str, str] = {}
        self._lanes: dict[str, str] = {}
        self._sources: dict[str, bytes] = {}

    def add_plain(self, raws: Sequence[msgspec.Raw | bytes]) -> bool:
        """Add events if all are plain; return False where one is not, and wherever there is a doubt.

        Each step is done for all events before the next one: most of what is left is then the decoder's and the
        encoder's own time.
        """
        try:
            events = list(map(_PLAIN.decode, raws))
            bodies = [bytes(event.data) for event in events]
            values = list(map(_DATA.decode, bodies))
            times = [None if event.time is None else format_time(event.time) for event in events]
        except (*UNREADABLE, OverflowError):
            return False
        if any(len(body) > _SHALLOW and not _is_plain_data(body) for body in bodies):
            return False
        names, sources = [event.id for event in events], [event.source for event in events]
        types, keys = [event.type for event in events], [event.partitionkey for event in events]
        others = [event.others() for event in events]
        said = [*names, *sources, *types, *filter(None, keys)]
        said += [value for each in others if each for value in each.values()]
        if not "".join(said).isprintable():  # what is printable has no control characters
            return False
        extras = all_encoded(
            [
                Extra(id=name, source=source, attributes=each)
                for name, source, each in zip(names, sources, others, strict=True)
            ]
        )
        if max(map(len, extras)) + max(map(len, types)) + max(len(key or "") for key in keys) > _FEW_CHARACTERS:
            return False
        try:
            contents = contents_of(list(zip(types, times, keys, repeat(JSON), others, values, strict=False)))
        except OverflowError:
            return False
        self._add(sources, names, contents, types, times, keys, extras, bodies)
        return True

    def add(self, event: ClientEvent) -> None:
        """Add an event that was read."""
        # What is the default is left out by identity, not by equality.
        content_type = DEFAULT_TYPE if event.content_type == DEFAULT_TYPE else event.content_type
        extra = Extra(id=event.id, source=event.source, content_type=content_type, attributes=event.attributes)
        self._add(
            [event.source],
            [event.id],
            [event.content],
            [event.type],
            [event.time],
            [event.key],
            [encoded(extra)],
            [event.body],
        )

    def _add(
        self,
        sources: Sequence[str],
        names: Sequence[str],
        contents: Sequence[bytes],
        types: Sequence[str],
        times: Sequence[str | None],
        keys: Sequence[str | None],
        extras: Sequence[str],
        bodies: Sequence[bytes],
    ) -> None:
        for each in set(types) - self._kinds.keys():
            self._kinds[each], self._lanes[each] = kind_of(each), self._lane_of(each)
        for each in set(sources) - self._sources.keys():
            self._sources[each] = blake2b(each.encode(), digest_size=16).digest()
        arrivals, now = self.arrivals, self._now
        arrivals.names += [
            self._sources[source] + _short(name.encode()) for source, name in zip(sources, names, strict=True)
        ]
        arrivals.contents += contents
        arrivals.lanes += map(self._lanes.__getitem__, types)
        kinds = map(self._kinds.__getitem__, types)
        arrivals.entries += entries(kinds, types, keys, [time or now for time in times], extras, bodies)


def _is_plain_data(body: bytes) -> bool:
    return len(body) <= MAX_EVENT_BYTES and body.count(b"{") + body.count(b"[") <= MAX_DEPTH


def kind_of(event_type: str) -> str:
    """Return the last token of the subject for a client's type."""
    return _NOT_A_NAME.sub("-", event_type.lower()).strip("-")[:63] or "event"


def _short(name: bytes) -> bytes:
    return name if len(name) <= MAX_NAMED_ID else b"\0" + blake2b(name, digest_size=64).digest()
