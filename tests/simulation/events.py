"""What travels in the simulation: events and the messages that carry them; and the names of who takes part."""

from __future__ import annotations

from typing import NamedTuple

from forebay.identity import Origin, Place

EDGE, CORE = "edge", "core"
"""The two services: edge nodes write events of the one, the core's consumer ``x`` emits events of the other."""

DESK, DESTINATIONS = "desk", ("n0/edge", "n0/door")
"""Who sends commands of its own accord, beside ``x``, which sends some because of events; and whom they are for."""

EVENTS, COMMANDS = "events", "commands"
"""The two streams."""

ARCHIVE, EMITTER, DERIVED, LATECOMER = "archive", "x", "d", "y"
"""The consumers: what keeps everything; what emits; what handles that; and one that is added later."""

Body = int | tuple[str, object]
"""The oracle's name of an event, whatever place it has; what is emitted because of it is named after it."""


class Event(NamedTuple):
    """One event of an origin, or a command; ``cause`` is set on what a handler emitted (B5), ``expires`` is a tick."""

    origin: Origin
    place: Place
    prev: Place | None
    key: str
    body: Body
    cause: str | None = None
    expires: int | None = None


class Message(NamedTuple):
    """One message of a stream, an event or a frame of consecutive ones; its id may have a suffix (I4)."""

    message_id: str
    events: tuple[Event, ...]

    @property
    def origin(self) -> Origin:
        """The origin of what it carries."""
        return self.events[0].origin

    def carries(self, place: Place) -> bool:
        """Whether the event of a place is in it."""
        first = self.events[0].place
        return first.epoch == place.epoch and first.sequence <= place.sequence < first.sequence + len(self.events)


class Position(NamedTuple):
    """Where a reader is in which stream, and the message that stands there (S5)."""

    incarnation: str
    sequence: int
    message_id: str
