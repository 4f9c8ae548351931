"""What travels in the simulation: events and the messages that carry them; and the names of who takes part."""

from __future__ import annotations

from typing import NamedTuple

from forebay.identity import Origin, Place

EDGE, CORE = "edge", "core"
"""The two services: edge nodes write events of the one, the core's consumer ``x`` emits events of the other."""

ARCHIVE, EMITTER, DERIVED, LATECOMER = "archive", "x", "d", "y"
"""The consumers: what keeps everything; what emits; what handles that; and one that is added later."""

Body = int | tuple[str, object]
"""The oracle's name of an event, whatever place it has; what is emitted because of it is named after it."""


class Event(NamedTuple):
    """One event of an origin; ``cause`` is set on what a handler emitted (B5)."""

    origin: Origin
    place: Place
    prev: Place | None
    key: str
    body: Body
    cause: str | None = None


class Message(NamedTuple):
    """One message of the stream; its id may have a suffix (I4)."""

    message_id: str
    event: Event


class Position(NamedTuple):
    """Where a reader is in which stream, and the message that stands there (S5)."""

    incarnation: str
    sequence: int
    message_id: str
