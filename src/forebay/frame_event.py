"""One event of a frame as it stands there, and many of them that are alike, read at once.

Most frames hold what a relay wrote: each event at its place, of the frame's own source, with a tick, a time in UTC and
JSON for its data. Whether a frame is one of those shows in a few looks at all of its events together, for half of
what it costs to look at each. Any other is read event by event, with the same result.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from forebay.envelope import JSON, Message
from forebay.identity import Place

_TICK_DIGITS = 16
_USUAL_TYPES = frozenset({None, JSON})


class FrameIdentity(NamedTuple):
    """Who wrote a frame and where its events stand: ``first`` to ``last``, both included, of ``epoch``."""

    headers: Mapping[str, str]
    message_id: str
    node: str
    service: str
    kind: str
    epoch: str
    first: int
    last: int
    prev: Place | None
    lane: str


class FrameEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as forebay writes it, without attributes of others."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: datetime
    forebayhlc: str = ""
    partitionkey: str | None = None
    datacontenttype: str | None = None
    forebaycause: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: bytes | None = None


def read_alike(
    frame: FrameIdentity, source: str, events: Sequence[FrameEvent], stored_at: datetime
) -> list[Message] | None:
    """Return the events of a frame if each is as a relay writes most of them; None if any is not, or is wrong.

    Args:
        frame: what the headers say; it has as many places as there are ``events``.
        source: what each event has to name.
        events: in order.
        stored_at: when the broker stored the frame.
    """
    epoch, places = frame.epoch, range(frame.first, frame.last + 1)
    ids = [event.id for event in events]
    bodies = [bytes(event.data) for event in events]
    if (
        ids != [f"{epoch}-{place}" for place in places]
        or {event.source for event in events} != {source}
        or "" in {event.type for event in events}
        or not {event.datacontenttype for event in events} <= _USUAL_TYPES
        or any(zone is not UTC for zone in {event.time.tzinfo for event in events})
        or not all(bodies)
    ):
        return None
    ticks = _ticks([event.forebayhlc for event in events])
    if ticks is None:
        return None
    _, _, node, service, kind, _, _, _, prev, lane = frame
    new = tuple.__new__
    return [
        Message(
            event.id,
            node,
            service,
            kind,
            event.id,
            source,
            event.type,
            event.time,
            event.partitionkey,
            JSON,
            {},
            lane,
            place,
            prev,
            tick,
            event.forebaycause,
            event.traceparent,
            event.tracestate,
            stored_at,
            body,
        )
        for event, place, tick, body in zip(
            events, [new(Place, (epoch, n)) for n in places], ticks, bodies, strict=True
        )
    ]


def _ticks(texts: list[str]) -> tuple[int, ...] | None:
    """Return ticks of the hybrid clock; None where one is anything but 16 hex digits."""
    joined = "".join(texts)
    try:
        raw = bytes.fromhex(joined)
    except ValueError:
        return None
    if raw.hex() != joined or any(len(text) != _TICK_DIGITS for text in texts):  # in capitals, or with spaces
        return None
    return struct.unpack(f">{len(texts)}Q", raw)
